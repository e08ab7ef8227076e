"""Find a model on the Hugging Face hub: the parts of its name, its commit, and which of its files are the model."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfalign.errors import Resumable, UserError
from selfalign.system import atomic

_NAME = re.compile(
    r"(?P<prefix>hf:)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<file>(?:/[\w+ .-]+)+\.gguf)?"
    r"(?::(?P<quant>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SIDE_GGUF = re.compile(r"(?<![a-z])(mmproj|imatrix|ggml-vocab)", re.IGNORECASE)
"""Names of GGUF files that accompany a model: image projectors, importance matrices, vocabularies."""
_SIDE_WEIGHTS = ("consolidated", "adapter_")
"""Beginnings of the names of safetensors that repeat the model in another form, or are no model."""
_ABOUT = re.compile(r"[^/]+\.json|tokenizer\.model|(LICENSE|NOTICE)[^/]*")
_TIMEOUT_SECONDS = 30
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub: owner/name[:QUANT][@REVISION], or hf:owner/name/FILE.gguf[@REVISION]."""

    repo: str
    file: str | None = None
    """The GGUF file."""
    quant: str | None = None
    """A part of the GGUF file's name, such as Q4_K_M."""
    revision: str | None = None

    def __str__(self) -> str:
        name = f"hf:{self.repo}/{self.file}" if self.file else self.repo
        return name + "".join(mark + part for mark, part in ((":", self.quant), ("@", self.revision)) if part)


def parse(text: str) -> HubModel | None:
    """Parse the name of a model on the hub. Return None if the text is something else."""
    match = _NAME.fullmatch(text)
    if not match or (match["file"] and (match["quant"] or not match["prefix"])):
        return None
    return HubModel(match["repo"], match["file"] and match["file"][1:], match["quant"], match["revision"])


def with_frozen_commit(source: str, frozen: str | None) -> str:
    """Return the source with the commit of a run's recipe, if both name the same model and only that one has it."""
    requested, before = parse(source), parse(frozen or "")
    if requested and before and not requested.revision and requested == replace(before, revision=None):
        return str(before)
    return source


# -- which files are the model ---------------------------------------------------------------------------------------


def model_ggufs(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the GGUF files that are models: the file that llama.cpp loads -> all its parts."""
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        name = file.rpartition("/")[2]
        if not name.endswith(".gguf") or _SIDE_GGUF.search(name):
            continue
        part = _PART.fullmatch(file)
        models.setdefault(f"{part['stem']}-00001-of-{part['count']}.gguf" if part else file, []).append(file)
    return models


def check_parts(first: str, parts: Sequence[str], where: str) -> None:
    """Raise UserError if some parts of a split GGUF are missing."""
    if match := _PART.fullmatch(first):
        expected = {f"{match['stem']}-{n:05d}-of-{match['count']}.gguf" for n in range(1, int(match["count"]) + 1)}
        if missing := sorted(expected - set(parts)):
            raise UserError(f"{where} lacks {missing[0]}, one of {len(expected)} parts of the model: download it too")


def weight_files(files: Iterable[str]) -> list[str]:
    """Return the safetensors that are the model, of the files of a folder."""
    weights = sorted(f for f in files if f.endswith(".safetensors") and "/" not in f)
    return [f for f in weights if not f.startswith(_SIDE_WEIGHTS)] or weights


def choose(files: Sequence[str], model: HubModel) -> tuple[list[str], str | None]:
    """Return the files of a repository to download, and the GGUF among them that llama.cpp loads, if any.

    Raises:
        UserError: no file is the model, or several are.
    """
    ggufs, weights, where = model_ggufs(files), weight_files(files), f"hub model '{model}'"
    about = [f for f in files if _ABOUT.fullmatch(f)]
    if model.file:
        found = [first for first, parts in ggufs.items() if model.file in (first, *parts)]
        if not found and model.file in files:
            raise UserError(f"{where} is no model but a file that accompanies one; {_others(ggufs, model.repo)}")
    elif model.quant:
        pattern = re.compile(rf"(?<![^\W_]){re.escape(model.quant)}(?![^\W-])", re.IGNORECASE)
        found = [first for first in ggufs if pattern.search(first)]
    else:
        found = [first for first in ggufs if not weights or "/" not in first]
    if len(found) > 1:
        raise UserError(f"{where} has several GGUF files; {_others({f: [] for f in found}, model.repo)}")
    if not found and (model.file or model.quant):
        raise UserError(f"{where} does not exist; {_others(ggufs, model.repo)}")
    if not found and not weights:
        raise UserError(f"{where} has neither safetensors nor GGUF files")
    gguf = found[0] if found else None
    if gguf:
        check_parts(gguf, ggufs[gguf], where)
    return [*about, *weights, *(ggufs[gguf] if gguf else [])], gguf


def _others(ggufs: dict[str, list[str]], repo: str) -> str:
    """Tell which files can be named."""
    names = list(ggufs)
    if not names:
        return "it has no GGUF files"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"name one as {repo}:QUANT or hf:{repo}/FILE: {', '.join(names[:_SHOWN])}{more}"


# -- the hub ---------------------------------------------------------------------------------------------------------


def download(model: HubModel) -> tuple[Path, str | None, HubModel]:
    """Download a model, or find it in the hub's cache if there is no network.

    Returns:
        (folder, name of the GGUF that llama.cpp loads, the model with its commit).

    Raises:
        UserError: the hub has no such model, refuses it, or cannot be reached while the cache has none.
        Resumable: the disk is full.
    """
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UserError("a hub id needs the extra `train`: pip install 'selfalign[train]'") from None
    try:
        info = HfApi().model_info(model.repo, revision=model.revision, timeout=_TIMEOUT_SECONDS)
        files, commit = [s.rfilename for s in info.siblings or []], str(info.sha)
    except Exception as error:  # errors of the hub, of the network library, of the system
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise _refused(model, error) from None
        return _cached(model, error)
    chosen, gguf = choose(files, model)
    patterns = [re.sub(r"([*?[])", r"[\1]", file) for file in chosen]
    try:
        with atomic.disk_errors(Path(constants.HF_HUB_CACHE)):
            folder = snapshot_download(model.repo, revision=commit, allow_patterns=patterns)
    except Resumable:
        raise
    except Exception as error:
        raise _refused(model, error) from None
    return Path(folder), gguf, replace(model, revision=commit)


def _cached(model: HubModel, error: Exception) -> tuple[Path, str | None, HubModel]:
    from huggingface_hub import snapshot_download

    try:
        # With a pattern that no file has, files that were never requested do not count as missing.
        found = snapshot_download(model.repo, revision=model.revision, local_files_only=True, allow_patterns=["."])
    except Exception:  # it is not in the cache; the first error tells more
        raise _refused(model, error) from None
    folder = Path(found)
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return folder, choose(files, model)[1], replace(model, revision=folder.name)


def _refused(model: HubModel, error: Any) -> UserError:
    kind = type(error).__name__
    if isinstance(error, OSError) and error.filename and error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
        return UserError(
            f"the hub's cache {error.filename} cannot be written ({error.strerror}): set HF_HOME to a folder"
        )
    if kind == "GatedRepoError":
        return UserError(
            f"hub model '{model}' is gated: accept its terms on its page, then log in with `hf auth login`"
        )
    if kind == "RepositoryNotFoundError":
        return UserError(f"the hub has no model '{model}', or it needs a login: check the name, or `hf auth login`")
    if kind == "RevisionNotFoundError":
        return UserError(f"hub model '{model}' has no revision {model.revision!r}")
    return UserError(f"hub model '{model}' cannot be downloaded: {' '.join(str(error).split())[:160]}")
