"""Name the files of a run directory; create, open, lock and check runs; write the manifest."""

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
from selfalign.run.moved import relocate
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
    "pairs": "3_engrave/pairs.jsonl",
    "user_pairs": "3_engrave/user_pairs.jsonl",
    "on_policy": "3_engrave/on_policy.jsonl",
    "verbose_responses": "4_verbose_clone/responses.jsonl",
    "verbose_cloning_examples": "4_verbose_clone/examples.jsonl",
    "answers": "5_evaluation/answers.jsonl",
    "probes": "5_evaluation/probes.jsonl",
    "drops": "drops.jsonl",
    "marks": "marks.jsonl",
    "feedback": "feedback.jsonl",
}

LOCK = "journal.lock"


class RunDir:
    """The folder of a run, through whose files the stages communicate. Use `create`, `open` or `load` to get one."""

    def __init__(self, path: Path, recipe: Recipe, constitution: Constitution) -> None:
        self.path = path
        self.recipe = recipe
        self.constitution = constitution
        self.training_changes: list[str] = []
        """The training settings that `create` has changed, as `key: old -> new`."""
        self.evaluation = path / "5_evaluation"
        """The folder of the evaluation; its tasks name their own files."""
        self.scores = self.evaluation / "scores.json"
        self.report = path / "report/index.html"
        self.report_json = path / "report/report.json"
        self.plan = path / "plan.json"
        self.manifest = path / "manifest.json"
        self.log = path / "logs/vllm.log"
        """The output of vLLM as a process of its own."""
        self.view = path / "view.sqlite"
        """The viewer's cache, which may be deleted."""

    @cached_property
    def journal(self) -> Journal:
        """The journal, opened for writing."""
        return Journal(self.path / "journal.sqlite")

    # -- names ---------------------------------------------------------------------------------------------------

    def jsonl(self, name: str) -> Path:
        """Return the path of a file in `JSONL_FILES`."""
        return self.path / JSONL_FILES[name]

    def adapter(self, stage: str) -> Path:
        """Return the folder of the PEFT adapter of engrave or verbose_cloning, or of a round: engrave-1."""
        name, _, number = stage.partition("-")
        folder = self.path / {"engrave": "3_engrave", "verbose_cloning": "4_verbose_clone"}[name]
        return folder / (f"rounds/{number}/adapter" if number else "adapter")

    @property
    def rounds(self) -> Path:
        """The folder of the adapters of the rounds of stage 3, which exists until the stage ends."""
        return self.path / "3_engrave/rounds"

    def adapter_gguf(self, stage: str) -> Path:
        """Return the same adapter's file for llama.cpp."""
        return self.adapter(stage).with_suffix(".gguf")

    def checkpoint(self, stage: str) -> Path:
        """Return the file with the state of an unfinished training."""
        return self.adapter(stage).with_name("checkpoint.safetensors")

    def export(self, name: str) -> Path:
        """Return the default folder of an export."""
        return self.path / "export" / name

    # -- create and open -----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, requested: Recipe, constitution: Constitution, new: bool = False) -> RunDir:
        """Create a run, or open the existing one if its recipe and constitution are the same.

        Args:
            new: rename an existing run (it is never deleted) and start a new one.

        Raises:
            UserError: the folder has a run with another recipe (the error lists the differences), or other files.
        """
        path = path.resolve() if new else path
        frozen = path / "recipe.yaml"
        is_run = frozen.is_file() and (path / "journal.sqlite").exists()
        if new and is_run:
            number = 1
            while (old_path := path.with_name(f"{path.name}.{number}")).exists():
                number += 1
            path.rename(old_path)
            is_run = False
        if is_run:
            existing = cls.open(path)
            changes = differences(existing.recipe.model_dump(mode="json"), requested.model_dump(mode="json"))
            # The content of user prompts counts; their path may differ on another machine.
            sha256 = requested.prompts.file_sha256
            moved = ["prompts.file:"] if sha256 and sha256 == existing.recipe.prompts.file_sha256 else []
            if _may_be(existing.recipe.model, requested.model):
                moved.append("model:")
            deciding = existing.recipe.engrave.deciding() | requested.engrave.deciding()
            names = tuple(f"engrave.{key}{end}" for key in deciding for end in ".:")
            training = [c for c in changes if c.startswith(("verbose_cloning.", *names))]
            changes = [c for c in changes if not c.startswith((*_MAY_CHANGE, *moved))]
            if existing.constitution.digest() != constitution.digest():
                changes.append(f"the constitution differs from {path / 'constitution.yaml'}")
            if changes:
                existing.journal.close()
                raise UserError(
                    f"{path} was made with another recipe ({'; '.join(changes)}). "
                    "Choose another --out, or use --new to rename the old run and start again"
                )
            existing.change_recipe(requested)
            existing.training_changes = training
            return existing
        texts = {"constitution.yaml": strict_yaml.dump(constitution), "recipe.yaml": strict_yaml.dump(requested)}
        cls._check_free(path, texts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be created: {error.strerror}") from None
        for name, text in texts.items():
            atomic.write_text(path / name, text)
        run = cls(path, requested, constitution)
        run.journal  # noqa: B018  (the folder is a run once it has a journal)
        return run

    def change_recipe(self, recipe: Recipe) -> None:
        """Replace the run's recipe, whose changed settings must be ones that may change."""
        frozen = self.path / "recipe.yaml"
        if frozen.read_text("utf-8") != (text := strict_yaml.dump(recipe)):
            atomic.write_text(frozen, text)
        self.recipe = recipe

    @staticmethod
    def _check_free(path: Path, texts: dict[str, str]) -> None:
        """Raise UserError if the folder has other files than those of an interrupted creation."""
        if not path.exists():
            return
        if (path / "recipe.yaml").is_file() and (path / "recipe.yaml").read_text("utf-8", "replace") != texts[
            "recipe.yaml"
        ]:
            raise UserError(f"{path} has a recipe but no run: choose another --out")
        is_unfinished = path.is_dir() and all(
            f.is_file()
            and (
                ((temporary := atomic.HALF_WRITTEN.fullmatch(f.name)) is not None and temporary[1] in texts)
                or texts.get(f.name) == f.read_text("utf-8", "replace")
            )
            for f in path.iterdir()
        )
        if not is_unfinished:
            raise UserError(f"{path} exists and is not a run: choose another --out")

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return the run in a folder, with its journal opened for writing.

        Raises:
            UserError: the folder has no run, or one of its files is invalid.
        """
        run = cls.load(path)
        run.journal  # noqa: B018  (a damaged journal is reported now)
        return run

    @classmethod
    def load(cls, path: Path) -> RunDir:
        """Return the run in a folder, without opening its journal. Raises as `open`."""
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path} is not a run: it has no recipe.yaml. `selfalign run` creates a run")
        if not (path / "journal.sqlite").exists():
            raise UserError(f"{path} has a recipe but no run: `selfalign run {path}/recipe.yaml` creates one")
        frozen = strict_yaml.validate(Recipe, _frozen_recipe(path), "recipe.yaml")
        if frozen.engine.kind == "auto":
            kind = _auto_of_0_1(frozen.engine.url)
            frozen = frozen.model_copy(update={"engine": frozen.engine.model_copy(update={"kind": kind})})
        return cls(path, relocate(frozen, path), load(str(path / "constitution.yaml")))

    # -- finished stages -----------------------------------------------------------------------------------------

    def done(self, stage: str, inputs: str) -> bool:
        """Return whether the stage finished with these inputs and its files still exist."""
        record = self.journal.published().get(stage)
        return record is not None and record[0] == inputs and all((self.path / f).exists() for f in record[1])

    def mark_done(self, stage: str, inputs: str, files: list[Path]) -> None:
        """Store the stage's inputs and the hash of each file that it published."""
        self.journal.publish(stage, inputs, {str(f.relative_to(self.path)): file_hash(f) for f in files})

    @contextmanager
    def rewriting(self, file: Path) -> Iterator[None]:
        """Let the block rewrite a file of a finished stage, which stays finished; the file does not count as edited."""
        name = str(file.relative_to(self.path))
        owners = {s: record for s, record in self.journal.published().items() if name in record[1]}
        for stage in owners:
            self.journal.unpublish(stage)
        yield
        for stage, (inputs, files) in owners.items():
            self.journal.publish(stage, inputs, {**files, name: file_hash(file)})

    def check_not_edited(self, files: list[Path], force: bool) -> None:
        """Raise UserError if the user edited a file that a stage is about to write."""
        published = {name: sha for _, files_ in self.journal.published().values() for name, sha in files_.items()}
        for file in files:
            sha = published.get(str(file.relative_to(self.path)))
            if file.exists() and not force and sha and file_hash(file) != sha:
                raise UserError(f"{file} was edited since the run wrote it; --force overwrites it")

    @contextmanager
    def user_files_lock(self) -> Iterator[None]:
        """Lock the files that users write (marks, feedback) against other processes. It is not reentrant."""
        import fcntl

        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write_manifest(self) -> None:
        """Write manifest.json with the hash, bytes and rows of every file. A run with a manifest is finished."""
        entries = {}
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = str(file.relative_to(self.path))
            if name.startswith(_NOT_IN_MANIFEST) or "/." in name:
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


_NOT_IN_MANIFEST = (
    "journal",
    "manifest.json",
    "export/",
    "view.sqlite",
    "storage.json",
    "feedback.jsonl",
    "logs/",
    ".",
)
"""Beginnings of the names of files that are not in the manifest."""

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
    "engine.vllm_python:",
    "engine.start_seconds:",
    "engine.served.",
    "engine.tensor_parallel_size:",
)
"""Settings that may change when a run is resumed, because they do not change generated rows. A changed training setting
makes the stage train again. Of the constitution, only the path may change, not the content."""


def _may_be(old: str, new: str) -> bool:
    """Return whether the model is gone from its path and has the same name at another, or has got its commit."""
    if old == new.rpartition("@")[0]:
        return True
    gone = Path(old).is_absolute() and not Path(old).exists()
    return gone and Path(new).is_absolute() and Path(old).name == Path(new).name


def _frozen_recipe(path: Path) -> dict[str, Any]:
    """Return the recipe.yaml of a run, with the keys of this version."""
    file = path / "recipe.yaml"
    value = strict_yaml.parse_yaml(strict_yaml.read_text(file, "recipe"), str(file))
    return recipe.upgrade(value) if isinstance(value, dict) else {}


def frozen_choices(path: Path) -> tuple[str | None, str | None, str | None]:
    """Return the engine's kind, `prompts.file` and `model` of the run in a folder; None for what it does not have."""
    if not (path / "journal.sqlite").exists() or not (path / "recipe.yaml").is_file():
        return None, None, None
    value = _frozen_recipe(path)
    engine, prompts = (part if isinstance(part := value.get(key), dict) else {} for key in ("engine", "prompts"))
    kind, file = engine.get("kind", "auto") if engine else None, prompts.get("file")
    if kind == "auto":
        kind = _auto_of_0_1(engine.get("url"))
    kind = kind if kind in ("llama_cpp", "torch", "vllm", "vllm_server", "openai") else None
    file, model = (v if isinstance(v, str) else None for v in (file, value.get("model")))
    return kind, file, model


def _auto_of_0_1(url: str | None) -> str:
    """Return the engine that version 0.1 used for "auto", which it wrote into frozen recipes."""
    return "openai" if url else "llama_cpp"


def default_out(source: str) -> Path:
    """Return the default folder of a recipe's run: runs/NAME."""
    return Path("runs") / (source if source in recipe.SHIPPED else re.sub(r"[^\w.-]", "_", Path(source).stem))


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the run."""
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


def acquire_lock(path: Path) -> int:
    """Lock the run for this process; return the lock's file descriptor.

    Raises:
        UserError: another process has locked the run.
    """
    import fcntl

    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # `is_locked` of another process holds the lock for a moment
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise UserError(f"{path} is in use by process {other}; wait for it, or use another run directory") from None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle
