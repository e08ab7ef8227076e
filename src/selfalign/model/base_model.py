"""Provide a base model in the forms that the stages need: a GGUF for llama.cpp, a folder for torch and vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.model import hub, plain_lora
from selfalign.model.conversion import convert, convert_tokenizer, folder_lock
from selfalign.model.dialogue import Template, Tokenizer, detect
from selfalign.system.atomic import file_hash
from selfalign.system.environment import cache_folder, cache_subfolder, expand_home, read_cached, save_cached

BASE_NOTE = "base.json"
"""The file in an adapter's folder that names the base it was trained on."""


@dataclass(frozen=True)
class Model:
    """A base model. Each form is created when it is first needed and kept in the cache."""

    source: str
    """The recipe's `model`."""
    identity: str
    """A hash of the weights."""
    gguf_path: Path | None
    folder_path: Path | None
    notice: str
    """Licence terms that must accompany everything made from the model; empty if unknown."""
    licence: str = ""
    """The hub's identifier of those terms; set for the embedded model only."""
    home: str = ""
    """The hub id of the embedded model."""

    is_fake: ClassVar[bool] = False
    """True for the model of the fake engine (`FakeModel`), which has no weights."""

    def check_weights(self, consequence: str) -> None:
        """Raise UserError if the model has no weights.

        Args:
            consequence: what is impossible without weights, for the error message.
        """

    def has_adapter(self, gguf: Path) -> bool:
        """Return whether the adapter in that file can be loaded."""
        return gguf.exists()

    def identities(self, adapters: Mapping[str, Path]) -> dict[str | None, str]:
        """Return a hash of the weights for the base (None) and each adapter.

        Args:
            adapters: name -> GGUF file.
        """
        hashes: dict[str | None, str] = {None: self.identity}
        for name, gguf in adapters.items():
            hashes[name] = content_hash(self.identity, file_hash(gguf))
        return hashes

    @property
    def hub_id(self) -> str:
        """The model's hub id; empty for a local file or folder."""
        return self.repository or self.home

    @property
    def repository(self) -> str:
        """The hub id in the source, without file and commit; empty if it names no model on the hub."""
        name = hub.parse(self.source)
        return name.repo if name and not Path(self.source).exists() else ""

    @property
    def name(self) -> str:
        """The source without local folders: "embedded", a hub id, or the last part of a path."""
        path = expand_home(self.source)
        return path.name if self.source != "embedded" and path.exists() else self.repository or self.source

    @property
    def gguf(self) -> Path:
        """The weights as llama.cpp loads them.

        Raises:
            UserError: the model has no GGUF.
        """
        if self.gguf_path is None:
            raise UserError(
                f"model {self.source!r} has no GGUF for the engine. Set engine.kind to torch, or create a GGUF with "
                f"llama.cpp: `python convert_hf_to_gguf.py {self.folder_path} --outtype f16 "
                f"--outfile {self.folder_path}/model-f16.gguf`, then run the same command again"
            )
        return self.gguf_path

    def existing_folder(self) -> Path | None:
        """Return the value of `folder`, or None if the weights would have to be converted first."""
        if self.folder_path:
            return self.folder_path
        cached = cache_folder() / "torch" / self.identity
        return cached if (cached / "config.json").exists() else None

    def folder(self, say: Callable[[str], None] = lambda _: None) -> Path:
        """Return the weights as transformers loads them; a GGUF is converted to float32 once.

        Raises:
            UserError: the GGUF cannot be converted.
            Resumable: the disk has no room for the converted weights.
        """
        if folder := self.existing_folder():
            return folder
        target = cache_subfolder("torch") / self.identity
        tokenizer = self._tokenizer_folder(say)
        say("  converting the GGUF to float32 torch weights (once, under a minute)")
        with folder_lock(target):  # another run may be converting the same model
            if not self.existing_folder():
                convert(self.gguf, tokenizer, target)
        return target

    def _tokenizer_folder(self, say: Callable[[str], None]) -> Path:
        """Return a folder with the tokenizer's files; a GGUF's weights need no conversion for it."""
        if folder := self.existing_folder():
            return folder
        target = cache_folder() / "tokenizers" / self.identity
        if not (target / "tokenizer.json").exists():
            if missing := [m for m in ("gguf", "tokenizers", "transformers") if not find_spec(m)]:
                raise UserError(f"a GGUF's tokenizer needs {', '.join(missing)}: pip install 'selfalign[train]'")
            say("  reading the GGUF's tokenizer (once, about 20 seconds)")
            with folder_lock(cache_subfolder("tokenizers") / self.identity):
                if not (target / "tokenizer.json").exists():
                    convert_tokenizer(self.gguf, target)
        return target

    def check_trainable(self, with_gguf: bool = True) -> None:
        """Check, before the hours of generation, that this model can be trained here.

        Args:
            with_gguf: whether llama.cpp will load the adapter.

        Raises:
            UserError: packages are missing, or llama.cpp cannot load adapters of this architecture.
        """
        missing = [m for m in ("torch", "transformers", "peft", "gguf", "safetensors") if not find_spec(m)]
        if missing:
            raise UserError(f"training needs {', '.join(missing)}: pip install 'selfalign[train]'")
        if self.folder_path is not None and with_gguf:
            from selfalign.model import gguf_adapter

            gguf_adapter.architecture(json.loads((self.folder_path / "config.json").read_text("utf-8")))

    @property
    def has_gguf_adapters(self) -> bool:
        """Whether llama.cpp can load adapters of this architecture."""
        from selfalign.model import gguf_adapter

        return gguf_adapter.is_supported(_read_object(self.folder() / "config.json"))

    def base_json(self) -> str:
        """Return the content of `BASE_NOTE` for adapters that are trained on this model."""
        return json.dumps({"name": self.name, "identity": self.identity}) + "\n"

    def check_adapter(self, folder: Path) -> None:
        """Check that the adapter in `folder` is a plain LoRA, and that its `BASE_NOTE`, if any, names these weights.

        Raises:
            UserError: it is no plain LoRA or was trained on other weights, or one of its files cannot be read.
        """
        plain_lora.read(folder)
        try:
            note = json.loads((folder / BASE_NOTE).read_text("utf-8"))
        except FileNotFoundError:
            return
        except (ValueError, RecursionError):
            note = None
        if not isinstance(note, dict):
            raise UserError(f"{folder / BASE_NOTE} is not a JSON object: restore it, or train the adapter again")
        if note.get("identity") != self.identity:
            base = " ".join(str(note[key])[:40] for key in ("name", "identity") if note.get(key))
            raise UserError(
                f"the adapter in {folder} was trained on another base ({base or 'unknown'}) than {self.source} "
                f"{self.identity}: set `model` to the base it was trained on, or train it again"
            )

    def tokenizer(self, say: Callable[[str], None] = lambda _: None) -> Tokenizer:
        """Return the tokenizer that training and the engines share.

        Raises:
            UserError: it cannot be read, or the packages for that are missing.
        """
        if not find_spec("tokenizers"):
            raise UserError("the model's tokenizer needs tokenizers: pip install 'selfalign[train]'")
        folder = self._tokenizer_folder(say)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder} has no tokenizer.json: save one there with transformers' AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(...)"
            )
        tokens = _special_tokens(folder)
        # Without add_bos_token the post-processor decides: many configurations name a bos_token but never add it.
        adds = tokens.get("add_bos_token")
        bos = None if adds is None else (tokens.get("bos_token") or "") if adds else ""
        return _load_tokenizer(folder / "tokenizer.json", bos)

    def token_counter(self) -> Callable[[str], int]:
        """Return a function that counts the tokens of a text. Raises as `tokenizer`."""
        tokenizer = self.tokenizer()
        return lambda text: len(tokenizer.ids(text))

    def context_length(self) -> int | None:
        """Return the model's maximum number of tokens; None if its configuration has none."""
        config = json.loads((self.folder() / "config.json").read_text("utf-8"))
        length = config.get("max_position_embeddings")
        return length if isinstance(length, int) and length > 0 else None

    def end_tokens(self) -> tuple[str, ...]:
        """Return the control tokens that end a response: the template's and the model's end-of-text tokens."""
        return tuple(dict.fromkeys((self.template.end, *_end_texts(self.folder()))))

    @cached_property
    def template(self) -> Template:
        """The dialogue template of this model, detected from its weights once and kept in the cache."""
        name = f"templates/{self.identity}.json"
        if cached := read_cached(name):
            return Template(**json.loads(cached))
        template = _detect_template(self.folder())
        save_cached(name, json.dumps(asdict(template)))
        return template


@lru_cache(maxsize=2)
def _load_tokenizer(file: Path, bos: str | None) -> Tokenizer:
    return Tokenizer(str(file), bos)


def _read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _special_tokens(folder: Path) -> dict[str, Any]:
    """Return the `…_token` entries of the tokenizer's files; a token given as an object is reduced to its text."""
    config, known = (_read_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    if not config and not known:
        raise UserError(f"{folder} has no readable tokenizer_config.json")
    merged = {**known, **{k: v for k, v in config.items() if v is not None or k not in known}}
    return {k: v.get("content") if isinstance(v, dict) else v for k, v in merged.items() if k.endswith("_token")}


def _end_texts(folder: Path) -> list[str]:
    """Return the texts of the end-of-text tokens that the model's files name, by text or by id, the first one first."""
    added = {t["id"]: t["content"] for t in _read_object(folder / "tokenizer.json").get("added_tokens", [])}
    settings = _read_object(folder / "generation_config.json")
    ids = settings.get("eos_token_id", _read_object(folder / "config.json").get("eos_token_id"))
    named = _special_tokens(folder).get("eos_token")
    texts = [*(named if isinstance(named, list) else [named]), *map(added.get, ids if isinstance(ids, list) else [ids])]
    return list(dict.fromkeys(text for text in texts if text))


def _detect_template(folder: Path) -> Template:
    from safetensors import safe_open

    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    ends = _end_texts(folder)
    if not ends:
        raise UserError(f"the tokenizer in {folder} names no eos_token: add it to tokenizer_config.json")

    def cosine(token: int, others: list[int]) -> float:
        import torch

        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(str(path), "pt") as file:
                names = [n for n in file.keys() if n.endswith(("lm_head.weight", "embed_tokens.weight"))]  # noqa: SIM118
                for name in sorted(names, reverse=True):  # lm_head first: its rows determine which tokens are generated
                    rows = file.get_slice(name)
                    mean = torch.stack([rows[i].float() for i in others[:64]]).mean(0)
                    return float(torch.nn.functional.cosine_similarity(rows[token].float(), mean, dim=0))
        return 0.0

    return detect(vocabulary, ends[0], cosine)
