"""Tiny random base models of real architectures: a Hugging Face folder with a GGUF for llama.cpp beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

MERGES = [("t", "h"), ("i", "n"), ("e", "r"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("o", "u"), ("a", "n")]
SPECIAL = {
    "plain": ["<bos>", "<eos>"],
    "chatml": ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"],
}


def write(folder: Path, family: str, template: str = "plain", starts: bool = True) -> Path:
    """The folder of a random model.

    Args:
        family: llama or gemma3.
        template: which role tokens it knows; plain: none.
        starts: whether texts begin with <bos>.
    """
    folder.mkdir(parents=True)
    tokens = _tokenizer(folder, SPECIAL[template], starts)
    torch.manual_seed(5)
    model = {"llama": _llama, "gemma3": _gemma}[family](len(tokens))
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    (folder / "LICENSE").write_text('Free for "all" uses.\n"""\nFROM elsewhere\n')
    _gguf(model, folder / "model-f32.gguf", family, tokens, len(SPECIAL[template]), starts)
    return folder


def _settings(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
        "initializer_range": 0.15, "bos_token_id": 264, "eos_token_id": 265, "tie_word_embeddings": True,
    }  # fmt: skip


def _llama(vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_settings(vocabulary)))


def _gemma(vocabulary: int) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**_settings(vocabulary), sliding_window=512, query_pre_attn_scalar=32))


def _tokenizer(folder: Path, special: list[str], starts: bool) -> list[str]:
    """tokenizer.json and its settings; returns the tokens in order."""
    words = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    backend = Backend(BPE({word: i for i, word in enumerate(words)}, MERGES))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteDecoder()
    backend.add_tokens([AddedToken(token, special=True) for token in special])
    if starts:
        bos = ("<bos>", backend.token_to_id("<bos>"))
        backend.post_processor = TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "of the base"}))
    return [*words, *special]


def _gguf(model: Any, target: Path, family: str, tokens: list[str], special: int, starts: bool) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(target), family)
    writer.add_name("a tiny base")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if family == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1_000_000.0)
    else:
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control = len(tokens) - special
    kinds = [gguf.TokenType.NORMAL if i < control else gguf.TokenType.CONTROL for i in range(len(tokens))]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(tokens.index("<bos>"))
    writer.add_eos_token_id(tokens.index("<eos>"))
    writer.add_add_bos_token(starts)
    writer.add_chat_template("{{ 'of the base' }}")
    kind = gguf.MODEL_ARCH.GEMMA3 if family == "gemma3" else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight":
            continue  # tied
        array = value.numpy().astype(np.float32)
        module = key.split(".")[-2]
        if family == "llama" and module in heads:
            # As llama.cpp's converter has it: from halves to neighbouring pairs.
            array = array.reshape(heads[module], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if family == "gemma3" and key.endswith("norm.weight"):
            array = array + 1
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
