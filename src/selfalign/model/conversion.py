"""A GGUF as transformers loads it: weights in float32 and a tokenizer, each written once as a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.errors import Resumable, UserError
from selfalign.system import atomic


@contextlib.contextmanager
def folder_lock(target: Path) -> Iterator[None]:
    """The only process that makes this folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def convert_tokenizer(gguf: Path, target: Path) -> None:
    """Write the tokenizer that a GGUF describes as a folder (reference: transformers' GGUF loading)."""
    transformers = quiet_transformers()
    with atomic.new_folder(target) as folder:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        except _UNREADABLE as error:
            raise _unreadable(gguf, error) from None
        _set_digits_apart(gguf, tokenizer.backend_tokenizer)
        tokenizer.save_pretrained(str(folder))


_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""`tokenizer.ggml.pre` of the vocabularies whose texts are cut around each digit before all else (llama.cpp)."""


def _set_digits_apart(gguf: Path, backend: Any) -> None:
    """Cut texts around digits where the GGUF says so: transformers does not know this of byte-level vocabularies."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if not isinstance(backend.pre_tokenizer, ByteLevel):
        return
    field = GGUFReader(str(gguf)).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in _DIGITS_APART:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def convert(gguf: Path, tokenizer: Path, target: Path) -> None:
    """Write float32 torch weights of a GGUF as a folder, with its tokenizer (reference: transformers' GGUF loading)."""
    if shutil.disk_usage(_existing(target)).free < gguf.stat().st_size * 9:
        raise Resumable(
            f"no space in {target.parent} for the torch weights of {gguf.name}: make room or set SELFALIGN_CACHE, "
            "then run the same command again"
        )
    import torch

    transformers = quiet_transformers()
    with atomic.new_folder(target) as folder:
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
            )
        except _UNREADABLE as error:
            raise _unreadable(gguf, error) from None
        # Or save_pretrained refuses: it takes the weights for quantised ones.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(str(folder))
        for file in tokenizer.iterdir():
            shutil.copyfile(file, folder / file.name)


_UNREADABLE = (ValueError, KeyError, NotImplementedError)


def _unreadable(gguf: Path, error: Exception) -> UserError:
    return UserError(
        f"transformers cannot read {gguf.name} ({' '.join(str(error).split())[:120]}): "
        "give the model's Hugging Face folder with the GGUF inside it"
    )


def quiet_transformers() -> Any:
    """transformers, without its bars and advice."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Whatever is needed is here by now: the hub is contacted by `models.resolve` only.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
