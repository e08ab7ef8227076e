"""Tiny random base models of real architectures: a Hugging Face folder with a GGUF for llama.cpp beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Family:
    """How llama.cpp's converter writes a family of models."""

    arch: str
    """llama.cpp's architecture."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The family's entries of config.json."""
    permuted: bool = False
    """Whether rows of queries and keys are reordered, from halves to neighbouring pairs."""
    norm_shift: int = 0
    """What is added to the weights of normalisations."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Metadata key without the architecture -> entry of config.json."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Metadata key without the architecture -> value."""


_WINDOW = {"attention.sliding_window": "sliding_window"}
_NARROW = {"head_dim": 16}
FAMILIES = {
    "llama": Family("llama", permuted=True),
    "gemma3_text": Family("gemma3", {"sliding_window": 512, "query_pre_attn_scalar": 32}, norm_shift=1, keys=_WINDOW),
    "mistral": Family("llama", {"sliding_window": None}, permuted=True),
    "qwen2": Family("qwen2", _NARROW),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", norm_shift=1),
    "gemma2": Family(
        "gemma2",
        {"sliding_window": 512, "query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"]},
        norm_shift=1,
        keys={
            **_WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
    ),
    "olmo": Family("olmo", _NARROW, permuted=True, values={"attention.layer_norm_epsilon": 1e-5}),
    "olmo2": Family("olmo2", {**_NARROW, "tie_word_embeddings": False}),
    "olmo3": Family(
        "olmo2",
        {
            "sliding_window": 16,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        keys=_WINDOW,
        values={"attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "smollm3": Family(
        "smollm3",
        {
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "use_sliding_window": False,
            "head_dim": 16,
            "pad_token_id": 0,
        },
        permuted=True,
    ),
    "granite": Family(
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "head_dim": 16,
        },
        permuted=True,
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "phi3": Family(
        "phi3",
        {"head_dim": 16, "pad_token_id": 0, "sliding_window": None},
        values={"attention.sliding_window": 0, "rope.scaling.original_context_length": 2048},
    ),
    "cohere": Family(
        "command-r",
        {"head_dim": 16, "logit_scale": 0.5},
        keys={"logit_scale": "logit_scale"},
        values={"rope.scaling.type": "none"},
    ),
    "cohere2": Family(
        "cohere2",
        {
            "head_dim": 16,
            "logit_scale": 0.5,
            "sliding_window": 16,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        keys={"logit_scale": "logit_scale", **_WINDOW},
        values={"rope.scaling.type": "none"},
    ),
    "glm4": Family(
        "glm4", {"head_dim": 16, "partial_rotary_factor": 0.5, "pad_token_id": 0}, values={"rope.dimension_count": 8}
    ),
    "exaone4": Family(
        "exaone4", {**_NARROW, "sliding_window": None, "layer_types": ["full_attention", "full_attention"]}
    ),
    "stablelm": Family(
        "stablelm",
        {"head_dim": 16, "partial_rotary_factor": 0.25, "tie_word_embeddings": False},
        values={"rope.dimension_count": 4},
    ),
    "starcoder2": Family("starcoder2", {"head_dim": 16, "sliding_window": None}),
    "nemotron": Family(
        "nemotron",
        {"head_dim": 16, "tie_word_embeddings": False, "partial_rotary_factor": 0.5},
        norm_shift=1,
        values={"rope.dimension_count": 8},
    ),
    "seed_oss": Family("seed_oss"),
    "arcee": Family("arcee", permuted=True),
    "ernie4_5": Family("ernie4_5"),
    "hunyuan_v1_dense": Family("hunyuan-dense"),
    "ministral3": Family(
        "mistral3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "llama_4_scaling_beta": 0.0,
                "original_max_position_embeddings": 2048,
            }
        },
        permuted=True,
    ),
}


def write(folder: Path, family: str, template: str = "plain", starts: bool = True) -> Path:
    """The folder of a random model.

    Args:
        family: transformers' model type, or gemma3.
        template: which role tokens it knows; plain: none.
        starts: whether texts begin with <bos>.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    tokens = _tokenizer(folder, SPECIAL[template], starts)
    torch.manual_seed(5)
    kind = "gemma3_text" if family == "gemma3" else family
    config = AutoConfig.for_model(kind, **{**_settings(len(tokens)), **FAMILIES[kind].settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    (folder / "LICENSE").write_text('Free for "all" uses.\n"""\nFROM elsewhere\n')
    _gguf(model, folder / "model-f32.gguf", FAMILIES[kind], tokens, len(SPECIAL[template]), starts)
    return folder


def _settings(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
        "initializer_range": 0.15, "bos_token_id": 264, "eos_token_id": 265, "tie_word_embeddings": True,
    }  # fmt: skip


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


def _gguf(model: Any, target: Path, family: Family, tokens: list[str], special: int, starts: bool) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(target), family.arch)
    writer.add_name("a tiny base")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)
    if epsilon := getattr(config, "rms_norm_eps", None):
        writer.add_layer_norm_rms_eps(epsilon)
    if epsilon := next(
        (v for n in ("layer_norm_eps", "norm_epsilon", "norm_eps") if (v := getattr(config, n, None))), 0
    ):
        writer.add_layer_norm_eps(epsilon)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if "rope.dimension_count" not in family.values:
        writer.add_rope_dimension_count(size)
    writer.add_vocab_size(len(tokens))
    for key, value in {**{k: getattr(config, v) for k, v in family.keys.items()}, **family.values}.items():
        kind = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}[type(value)]
        getattr(writer, f"add_{kind}")(f"{family.arch}.{key}", value)
    _add_tokens(writer, tokens, special, starts)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy().astype(np.float32)
        module = key.split(".")[-2]
        if family.permuted and module in heads:
            # As llama.cpp's converter has it: from halves to neighbouring pairs.
            array = array.reshape(heads[module], 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if key.endswith("norm.weight"):
            array = array + np.float32(family.norm_shift)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: Any, tokens: list[str], special: int, starts: bool) -> None:
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
