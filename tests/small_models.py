"""Small random models of real architectures, and one with a tokenizer of its own as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096,
}  # fmt: skip


def tiny(kind: str, vocabulary: int = 300) -> Any:
    """A random model: windows on some layers, on all, on none; capped logits; another body's name and biases."""
    import transformers as t

    torch.manual_seed(1)
    sizes = {**SIZES, "vocab_size": vocabulary}
    made = {
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**sizes, head_dim=16, sliding_window=8, final_logit_softcapping=2.0)
        ),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**sizes, sliding_window=8)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**sizes)),
        "phi": lambda: t.PhiForCausalLM(t.PhiConfig(**{**sizes, "num_key_value_heads": 2})),
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**sizes, logits_scaling=4.0)),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)),
    }[kind]()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def write(path: Path) -> Path:
    """A small random Gemma with a tokenizer that was trained on our fixtures, as `models.resolve` takes it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tiny("gemma3", 1500).save_pretrained(path)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [f.read_text("utf-8") for f in sorted((Path(__file__).parent / "data").glob("fixture_*"))]
    backend.train_from_iterator([*texts, "a stone is hard and a river is wet, true or false"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(path)
    return path
