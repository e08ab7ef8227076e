"""Convert a GGUF to a Hugging Face folder: its tokenizer, and its weights in float32."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.errors import Resumable, UserError
from selfalign.system import atomic


@contextlib.contextmanager
def folder_lock(target: Path) -> Iterator[None]:
    """Hold a lock that lets only one process at a time create the folder `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def convert_tokenizer(gguf: Path, target: Path) -> None:
    """Write a GGUF's tokenizer to the folder `target`, as transformers reads it."""
    tokenizer = _from_gguf("AutoTokenizer", gguf)
    with atomic.new_folder(target) as folder:
        _split_digits(gguf, tokenizer.backend_tokenizer)
        tokenizer.save_pretrained(str(folder))


_SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Values of `tokenizer.ggml.pre` for which llama.cpp splits a text around each digit first."""


def _split_digits(gguf: Path, backend: Any) -> None:
    """Split text around digits if the GGUF requires it, which transformers ignores for byte-level vocabularies."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if not isinstance(backend.pre_tokenizer, ByteLevel):
        return
    field = GGUFReader(str(gguf)).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SPLIT_DIGITS:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def convert(gguf: Path, tokenizer: Path, target: Path) -> None:
    """Write a GGUF's weights in float32, and the files of the folder `tokenizer`, to the folder `target`.

    Raises:
        Resumable: the disk has no room for them.
        UserError: transformers cannot read the GGUF.
    """
    if shutil.disk_usage(_existing_parent(target)).free < gguf.stat().st_size * 9:
        raise Resumable(
            f"no space in {target.parent} for the torch weights of {gguf.name}: make room or set SELFALIGN_CACHE, "
            "then run the same command again"
        )
    import torch

    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", gguf.name):
        raise UserError(
            f"{gguf.name} is one of several parts, which transformers cannot read: join them with llama.cpp's "
            "llama-gguf-split --merge, or name the model's Hugging Face folder"
        )
    model, loading = _from_gguf("AutoModelForCausalLM", gguf, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"transformers finds no {missing[0]} in {gguf.name} ({len(missing)} weights are missing): give the model's "
            "Hugging Face folder with the GGUF inside it"
        )
    with atomic.new_folder(target) as folder:
        # Otherwise save_pretrained refuses, because it takes the weights for quantised ones.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(str(folder))
        for file in tokenizer.iterdir():
            shutil.copyfile(file, folder / file.name)


def _from_gguf(kind: str, gguf: Path, **options: Any) -> Any:
    transformers = quiet_transformers()
    try:
        return getattr(transformers, kind).from_pretrained(str(gguf.parent), gguf_file=gguf.name, **options)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"transformers cannot read {gguf.name} ({' '.join(str(error).split())[:120]}): "
            "give the model's Hugging Face folder with the GGUF inside it"
        ) from None


def quiet_transformers() -> Any:
    """Import transformers without progress bars, advice and network access."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Only `sources.resolve` contacts the hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _existing_parent(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
