"""The run directory: every file's name stands here once. Freezing, resuming, manifest."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from selfalign.constitution import Constitution, load
from selfalign.errors import UserError
from selfalign.run import recipe
from selfalign.run.journal import Journal
from selfalign.run.recipe import Recipe, differences
from selfalign.system import atomic, strict_yaml
from selfalign.system.atomic import file_hash

JSONL_FILES = {
    "self_instruct": "1_prompts/self_instruct.jsonl",
    "topics": "1_prompts/topics.jsonl",
    "red_team": "1_prompts/red_team.jsonl",
    "prompts": "1_prompts/prompts.jsonl",
    "responses": "2_self_align/responses.jsonl",
    "engrave_examples": "3_engrave/examples.jsonl",
    "verbose_responses": "4_verbose_clone/responses.jsonl",
    "verbose_cloning_examples": "4_verbose_clone/examples.jsonl",
    "answers": "5_evaluation/answers.jsonl",
    "probes": "5_evaluation/probes.jsonl",
    "hhh": "5_evaluation/hhh.jsonl",
    "truthfulqa": "5_evaluation/truthfulqa.jsonl",
    "truthfulqa-generation": "5_evaluation/truthfulqa-generation.jsonl",
    "behaviour": "5_evaluation/behaviour.jsonl",
    "vicuna": "5_evaluation/vicuna.jsonl",
    "vicuna-verdicts": "5_evaluation/vicuna-verdicts.jsonl",
    "questions": "5_evaluation/questions.jsonl",
    "questions-verdicts": "5_evaluation/questions-verdicts.jsonl",
    "drops": "drops.jsonl",
    "marks": "marks.jsonl",
    "feedback": "feedback.jsonl",
}

LOCK = "journal.lock"


class RunDir:
    """One run. Steps meet only in its files.

    Raises:
        UserError: see `create` and `open`.
    """

    def __init__(self, path: Path, recipe: Recipe, constitution: Constitution) -> None:
        self.path = path
        self.recipe = recipe
        self.constitution = constitution

    @cached_property
    def journal(self) -> Journal:
        """The journal, opened to be written."""
        return Journal(self.path / "journal.sqlite")

    # -- names ---------------------------------------------------------------------------------------------------

    def jsonl(self, name: str) -> Path:
        return self.path / JSONL_FILES[name]

    def adapter(self, stage: str) -> Path:
        """The PEFT adapter of `engrave` or `clone`."""
        return self.path / {"engrave": "3_engrave", "verbose_cloning": "4_verbose_clone"}[stage] / "adapter"

    def adapter_gguf(self, stage: str) -> Path:
        """The same adapter as llama.cpp loads it."""
        return self.adapter(stage).with_suffix(".gguf")

    def checkpoint(self, stage: str) -> Path:
        """The state of a training that has not ended yet."""
        return self.adapter(stage).with_name("checkpoint.safetensors")

    def export(self, name: str) -> Path:
        """An export's folder, unless the user names another."""
        return self.path / "export" / name

    @property
    def scores(self) -> Path:
        return self.path / "5_evaluation/scores.json"

    @property
    def report(self) -> Path:
        return self.path / "report/index.html"

    @property
    def report_json(self) -> Path:
        return self.path / "report/report.json"

    @property
    def view(self) -> Path:
        """The viewer's cache: no part of what the run made, and free to be deleted."""
        return self.path / "view.sqlite"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    # -- making and finding --------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, wanted: Recipe, constitution: Constitution, new: bool = False) -> RunDir:
        """A new run, or the one that stands there if recipe and constitution are the same.

        Args:
            new: an existing run is set aside (renamed, never deleted) and a new one begun.

        Raises:
            UserError: the folder holds a run with another recipe (the differences are named), or something else.
        """
        path = path.resolve() if new else path
        frozen = path / "recipe.yaml"
        is_run = frozen.is_file() and (path / "journal.sqlite").exists()
        if new and is_run:
            number = 1
            while (aside := path.with_name(f"{path.name}.{number}")).exists():
                number += 1
            path.rename(aside)
            is_run = False
        if is_run:
            found = cls.open(path)
            changes = differences(found.recipe.model_dump(mode="json"), wanted.model_dump(mode="json"))
            # Own prompts are known by their content; where they lie may be otherwise on another machine.
            sha256 = wanted.prompts.file_sha256
            moved = ("prompts.file:",) if sha256 and sha256 == found.recipe.prompts.file_sha256 else ()
            changes = [c for c in changes if not c.startswith((*_MAY_CHANGE, *moved))]
            if found.constitution.digest() != constitution.digest():
                changes.append(f"the constitution is not the one in {path / 'constitution.yaml'}")
            if changes:
                found.journal.close()
                raise UserError(
                    f"{path} was made with another recipe ({'; '.join(changes)}). "
                    "Name another --out, or give --new to set it aside and begin again"
                )
            if found.recipe != wanted:
                atomic.write_text(frozen, strict_yaml.dump(wanted))
            found.recipe = wanted
            return found
        texts = {"constitution.yaml": strict_yaml.dump(constitution), "recipe.yaml": strict_yaml.dump(wanted)}
        cls._check_free(path, texts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made: {error.strerror}") from None
        for name, text in texts.items():
            atomic.write_text(path / name, text)
        made = cls(path, wanted, constitution)
        made.journal  # noqa: B018  (with it the folder is a run)
        return made

    @staticmethod
    def _check_free(path: Path, texts: dict[str, str]) -> None:
        """Raises UserError if the folder holds anything but what a run of its own left in its first moment."""
        if not path.exists():
            return
        if (path / "recipe.yaml").is_file() and (path / "recipe.yaml").read_text("utf-8", "replace") != texts[
            "recipe.yaml"
        ]:
            raise UserError(f"{path} holds a recipe to edit and is no run: name another --out")
        ours = path.is_dir() and all(
            f.is_file()
            and (
                ((half := atomic.HALF_WRITTEN.fullmatch(f.name)) is not None and half[1] in texts)
                or texts.get(f.name) == f.read_text("utf-8", "replace")
            )
            for f in path.iterdir()
        )
        if not ours:
            raise UserError(f"{path} exists and is not a run: name another --out")

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The run in that folder.

        Raises:
            UserError: there is none.
        """
        found = cls.look(path)
        found.journal  # noqa: B018  (whether it is whole is said now)
        return found

    @classmethod
    def look(cls, path: Path) -> RunDir:
        """The run in that folder, with nothing opened to be written as long as its journal is not asked for.

        Raises:
            UserError: there is none.
        """
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path} is not a run: it has no recipe.yaml. `selfalign run` makes one")
        if not (path / "journal.sqlite").exists():
            raise UserError(
                f"{path} holds a recipe to edit and is no run: `selfalign run {path}/recipe.yaml` makes one"
            )
        text = strict_yaml.read_text(path / "recipe.yaml", "recipe")
        frozen = strict_yaml.validate(
            Recipe, _upgraded(strict_yaml.parse_yaml(text, str(path / "recipe.yaml"))), "recipe.yaml"
        )
        if frozen.engine.kind == "auto":
            kind = _old_auto(frozen.engine.url)
            frozen = frozen.model_copy(update={"engine": frozen.engine.model_copy(update={"kind": kind})})
        return cls(path, frozen, load(str(path / "constitution.yaml")))

    # -- what is finished ----------------------------------------------------------------------------------------

    def done(self, stage: str, inputs: str) -> bool:
        """Whether the stage was finished from these inputs and its files still stand."""
        record = self.journal.published().get(stage)
        return record is not None and record[0] == inputs and all((self.path / f).exists() for f in record[1])

    def mark_done(self, stage: str, inputs: str, files: list[Path]) -> None:
        """Remember the stage's inputs and the hash of each file that it published."""
        self.journal.publish(stage, inputs, {str(f.relative_to(self.path)): file_hash(f) for f in files})

    @contextmanager
    def rewriting(self, file: Path) -> Iterator[None]:
        """Write a file anew that a finished stage published: it stays finished, the file is not taken for edited."""
        name = str(file.relative_to(self.path))
        owners = {s: record for s, record in self.journal.published().items() if name in record[1]}
        for stage in owners:
            self.journal.unpublish(stage)
        yield
        for stage, (inputs, files) in owners.items():
            self.journal.publish(stage, inputs, {**files, name: file_hash(file)})

    def check_not_edited(self, files: list[Path], force: bool) -> None:
        """Raises UserError if a file that a stage is about to write was changed by hand since it was published."""
        published = {name: sha for _, files_ in self.journal.published().values() for name, sha in files_.items()}
        for file in files:
            sha = published.get(str(file.relative_to(self.path)))
            if file.exists() and not force and sha and file_hash(file) != sha:
                raise UserError(f"{file} was edited since it was made; --force overwrites it")

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """No other process writes anew what people write (marks, feedback) meanwhile: viewer and dialogue may both be
        open. It may not be entered twice."""
        import fcntl

        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write_manifest(self) -> None:
        """Publish sha256, bytes and rows of every file. Written last: that it exists means that the run finished."""
        entries = {}
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = str(file.relative_to(self.path))
            if name.startswith(_APART) or "/." in name:
                continue
            entries[name] = {"sha256": file_hash(file), "bytes": file.stat().st_size}
            if file.suffix == ".jsonl":
                with file.open("rb") as stream:
                    entries[name]["rows"] = sum(1 for line in stream if line.strip())
        counts = [self.journal.counts(s).as_dict() for s in self.journal.stages()]
        value = {
            "format": 1,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "recipe": self.recipe.digest(),
            "constitution": self.constitution.digest(),
            "stages": counts,
            "files": entries,
        }
        atomic.write_text(self.manifest, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


_APART = ("journal", "manifest.json", "export/", "view.sqlite", "storage.json", "feedback.jsonl", ".")
"""Beginnings of names that the manifest leaves out."""

_MAY_CHANGE = (
    "stages:",
    "constitution:",
    "max_failed:",
    "executor.",
    "storage:",
    "evaluate.tasks:",
    "engrave.",
    "verbose_cloning.learning_rate:",
    "verbose_cloning.epochs:",
    "verbose_cloning.max_length:",
    *(f"engine.{key}:" for key in ("slots", "threads", "context", "url", "urls", "key_env", "attempts", "timeout")),
    "engine.served.",
    "engine.tensor_parallel_size:",
)
"""Settings that do not change what a generated row is: a run may go on under other values of them, and trains anew
where they are about training. Of the constitution the content counts, not its path."""


def _upgraded(value: object) -> object:
    return recipe.upgraded(value) if isinstance(value, dict) else value


def _frozen(path: Path, part: str) -> dict[str, Any]:
    """That part of the recipe of the run in the folder; empty where there is no run."""
    if not (path / "journal.sqlite").exists() or not (path / "recipe.yaml").is_file():
        return {}
    value = strict_yaml.parse_yaml(strict_yaml.read_text(path / "recipe.yaml", "recipe"), str(path / "recipe.yaml"))
    found = recipe.upgraded(value).get(part) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def frozen_prompts(path: Path) -> str | None:
    """The `prompts.file` of the run in that folder; None where there is no run, or no such file."""
    file = _frozen(path, "prompts").get("file")
    return file if isinstance(file, str) else None


def frozen_kind(path: Path) -> str | None:
    """The kind of engine that the run in that folder chose; None where there is no run."""
    engine = _frozen(path, "engine")
    if not engine:
        return None
    kind = engine.get("kind", "auto")
    if kind == "auto":
        return _old_auto(engine.get("url"))
    return kind if kind in ("llama_cpp", "vllm", "openai") else None


def _old_auto(url: str | None) -> str:
    """What "auto" was where it stands in a frozen recipe: version 0.1 froze the word, and took one of these two."""
    return "openai" if url else "llama_cpp"


def default_out(source: str) -> Path:
    """Where a recipe runs unless told otherwise: runs/<the recipe's name>."""
    return Path("runs") / (source if source in recipe.SHIPPED else re.sub(r"[^\w.-]", "_", Path(source).stem))


def held(path: Path) -> bool:
    """Whether a process works in the run now."""
    import fcntl

    try:
        handle = os.open(path / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def hold(path: Path) -> int:
    """Take the run for this process; returns the lock's file descriptor.

    Raises:
        UserError: another process works in the run.
    """
    import fcntl

    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # it may be a `status` that looks whether the run is held
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise UserError(f"{path} is in use by process {other}; wait for it, or take another run directory") from None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle
