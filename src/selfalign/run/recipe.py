"""Define the recipe, one YAML document with all settings of a run; load, upgrade and change it.

It also defines the settings of rooms that `run` may not import: stage 1, verbose cloning and the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from selfalign.constitution.loading import SHIPPED as CONSTITUTIONS
from selfalign.data.records import content_hash
from selfalign.data.scenarios import Half
from selfalign.errors import UserError
from selfalign.generation.settings import (
    AlignSettings,
    EngineSettings,
    ExecutorSettings,
    Probability,
    Temperature,
    Tokens,
)
from selfalign.quality.filter_settings import FilterSettings
from selfalign.run.storage import Location
from selfalign.system.environment import expand_home
from selfalign.system.strict_yaml import Strict, parse_yaml, read_text, validate
from selfalign.training.settings import TrainingSettings

Stage = Literal["prompts", "align", "engrave", "verbose_cloning", "evaluate", "report"]
STAGES: tuple[Stage, ...] = ("prompts", "align", "engrave", "verbose_cloning", "evaluate", "report")
SHIPPED = ("quick", "standard", "paper", "two-stage", "single-gpu")


class SelfInstructSettings(Strict):
    count: int = Field(60, ge=0)
    """Number of prompts to accept."""
    seeds_per_request: int = Field(5, ge=1)
    requests_per_round: int = Field(16, ge=1)
    max_rounds: int = Field(100, ge=1)
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens


class RedTeamSettings(Strict):
    count: int = Field(60, ge=0)
    topic_rounds: int = Field(2, ge=1)
    topic_requests: int | None = Field(None, ge=1)
    """Limit of topic requests per type and round; null: one for each known topic."""
    max_rounds: int = Field(20, ge=1)
    """Limit of question rounds."""
    form: Literal["by_topic", "by_type"] = "by_topic"
    """by_topic: extend the list of topics of each type, then write one question for each topic, as in the paper;
    by_type: continue a list of topics and questions of one type, or of questions alone, and drop questions that do not
    name their topic or are of other types. Small base models keep to the type in this form only."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens


class SteeringSettings(Strict):
    """How stage 1 adapts between rounds, which the paper does not."""

    own_seeds: float = Field(0.0, ge=0, le=1)
    """Self-Instruct: the fraction of the shown tasks that is sampled from accepted prompts. 0 is off: with the embedded
    model it gave more repetition and no more diversity (docs/data.md)."""
    rebalance: bool = True
    """Red-teaming: request questions about the types and topics with the fewest accepted prompts first."""
    least_novel: float = Field(0.05, ge=0, lt=1)
    """Stop when a smaller fraction of the last usable candidates is new. 0 is off."""


class PromptsSettings(Strict):
    self_instruct: SelfInstructSettings
    red_team: RedTeamSettings
    file: str | None = None
    """User prompts instead of generated ones: a file, a folder or a hub data set, as owner/name[/config][:split]
    (docs/formats.md); `run --prompts FILE` sets it. The run adds a hub data set's commit, as @COMMIT."""
    file_sha256: str | None = None
    """Set by the run, which does not resume if the content of the file or folder changes."""
    rows: int | None = Field(None, ge=1)
    """Limit of prompts from the file; null: all. `--limit` sets it."""
    tokens: list[int] | None = Field(None, min_length=2, max_length=2)
    """Minimum and maximum tokens of a prompt from the file; null: any length."""
    novelty: float = Field(0.7, gt=0, le=1)
    """Prompts with a higher ROUGE-L F1 to an accepted prompt are dropped."""
    mean_similarity: bool = False
    """Store each prompt's mean ROUGE-L F1 to the seeds and the prompts of earlier rounds, as the original does. It
    compares all pairs, 0.15 µs each: 11 minutes for 100,000 prompts. It does not affect which prompts are kept."""
    steering: SteeringSettings = SteeringSettings()  # type: ignore[call-arg]


class VerboseCloningSettings(Strict):
    prompts: int | None = Field(None, ge=1)
    """Number of stage 1 prompts that the engraved model responds to; null: all."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens
    start: Literal["base", "engraved"] = "base"
    """What the final adapter begins as. base, as in the paper: a new adapter of the base. engraved: the engraved
    adapter, trained further, so that fewer epochs suffice and the engraved behaviour stays."""
    replay: float = Field(1.0, ge=0, le=1)
    """Fraction of the engraving examples that the final adapter is trained on, too, so that cloning adds length and
    takes no behaviour away. Above 0, the identity questions keep the constitution's answers, and prompts of a type with
    a check keep the responses of stage 2. 0 is the paper's stage 4: all examples are the engraved model's responses."""
    end_penalty: float = Field(0.6, ge=0, le=20)
    """Subtracted from the logit of the end token under the verbose system prompt, because small models end these
    responses too early. The paper has no such penalty."""
    max_length: int = Field(768, ge=16)
    learning_rate: float | None = Field(None, gt=0)
    """null: as in engrave."""
    epochs: int | None = Field(None, ge=1)


class EvaluateSettings(Strict):
    heldout_prompts: int = Field(40, ge=0)
    """Number of prompts that are excluded from training and that every model responds to."""
    max_new_tokens: int = Field(320, ge=16)
    temperature: float = Field(0.3, ge=0, le=5)
    top_p: float = Field(0.9, gt=0, le=1)
    repetition: float = Field(1.0, ge=0, le=10)
    """Penalty on repeated 3-grams (as in stage 4), for every compared model and for chat. 0 is off."""
    tasks: list[str] = []
    """Benchmarks that the stage runs; `selfalign evaluate RUN --benchmarks ...` runs more of them later. Only that
    command can judge generated answers, with its option --judge."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of items of each benchmark in `tasks`; null: all. `behaviour` takes the scenarios that count
    towards the primary endpoints first."""
    prompted_base: bool = True
    """Whether open-ended benchmarks also ask the base with the constitution in its prompt, which takes longer than the
    other models together."""
    scenarios: Half = "development"
    """The half of the shipped scenarios that `behaviour` asks. Read `test` for published runs only."""
    benchmarks: list[str] = []
    """Files of benchmarks (JSON, JSONL, CSV, TSV, text) that the models will be evaluated on: prompts and responses
    that overlap with an item are dropped (`filters.overlap`)."""


class Recipe(Strict):
    """All settings of a run (docs/recipe.md)."""

    model: str = "embedded"
    """The base model: embedded, a GGUF file, a model folder, or a hub id (docs/own-base.md)."""
    constitution: str = "default"
    """default, two-stage, or the path of a constitution."""
    seeds: str = "default"
    """The seed tasks: default, or the path of a JSONL file."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The random seed. Each request's seed is derived from it and from the row's content."""
    stages: list[Stage] = list(STAGES)
    """The stages to run, in order."""
    engine: EngineSettings = EngineSettings()  # type: ignore[call-arg]
    executor: ExecutorSettings = ExecutorSettings()  # type: ignore[call-arg]
    storage: Location | None = None
    """Shared storage to which the run is saved, so that another machine can resume it (docs/cluster.md)."""
    prompts: PromptsSettings
    align: AlignSettings
    filters: FilterSettings = FilterSettings.model_validate("default")
    engrave: TrainingSettings = TrainingSettings()  # type: ignore[call-arg]
    verbose_cloning: VerboseCloningSettings
    evaluate: EvaluateSettings = EvaluateSettings()  # type: ignore[call-arg]
    max_failed: float = Field(0.01, ge=0, le=1)
    """Fraction of failed rows above which a stage ends with exit code 3."""

    @model_validator(mode="after")
    def _order(self) -> Recipe:
        order = [STAGES.index(s) for s in self.stages]
        if order != sorted(set(order)):
            raise ValueError(f"stages must be in the order {', '.join(STAGES)}, each at most once")
        return self

    @model_validator(mode="after")
    def _trained_here(self) -> Recipe:
        cloning = "verbose_cloning" in self.stages
        if cloning and self.engrave.elsewhere and self.verbose_cloning.start == "engraved":
            raise ValueError(
                "engrave.elsewhere trains new adapters only, and verbose_cloning.start is engraved: set it to base"
            )
        return self

    def digest(self) -> str:
        """Return a hash of all settings."""
        return content_hash(self.model_dump(mode="json"))

    def training(self, stage: str) -> TrainingSettings:
        """Return the training settings of engrave or verbose_cloning, which overrides some of engrave's."""
        if stage == "engrave":
            return self.engrave
        own = self.verbose_cloning
        return self.engrave.model_copy(
            update={
                "method": "sft",
                "max_length": own.max_length,
                "learning_rate": own.learning_rate or self.engrave.learning_rate,
                "epochs": own.epochs or self.engrave.epochs,
            }
        )


RENAMED_KEYS = {
    "clone": "verbose_cloning",
    "evaluate.run_on": "evaluate.heldout_prompts",  # old name
    "engrave.tokens_at_once": "engrave.micro_batch_tokens",  # old name
    "engine.tensor_parallel": "engine.tensor_parallel_size",
    "engine.served.clone": "engine.served.verbose_cloning",
}
"""Keys of version 0.1, which recipes and `--set` may still use -> of this version."""


def _old_keys(value: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (old key, new key, the mapping that contains it) for the recipe's keys of version 0.1."""
    for old, new in RENAMED_KEYS.items():
        *groups, last = old.split(".")
        target: object = value
        for group in groups:
            target = target.get(group) if isinstance(target, dict) else None
        if isinstance(target, dict) and last in target:
            yield old, new, target


def upgrade(value: dict[str, Any]) -> dict[str, Any]:
    """Rename the keys and stages of version 0.1 in a recipe, in place; return the recipe.

    Raises:
        UserError: the recipe has a value under both names.
    """
    for old, new, target in _old_keys(value):
        last, old_last = new.rsplit(".", 1)[-1], old.rsplit(".", 1)[-1]
        if last in target:
            raise UserError(f"the recipe has both {new!r} and its old name {old!r}: remove the old one")
        target[last] = target.pop(old_last)
    if isinstance(value.get("stages"), list):
        value["stages"] = ["verbose_cloning" if stage == "clone" else stage for stage in value["stages"]]
    return value


def _new_key(key: str) -> str:
    """Return the present name of a key that may be of version 0.1."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def load(source: str, settings: list[str] | None = None, limit: int | None = None) -> Recipe:
    """Return the shipped recipe of that name or the recipe in the file `source`.

    Args:
        settings: `key=value` texts that replace values.
        limit: see `limited`.

    Raises:
        UserError: the file, a key or a value is invalid.
    """
    if source in SHIPPED:
        text = (resources.files("selfalign") / f"assets/recipes/{source}.yaml").read_text("utf-8")
    elif Path(source).suffix in (".yaml", ".yml") or Path(source).exists():
        text = read_text(Path(source), "recipe")
    else:
        raise UserError(f"recipe {source!r} is neither shipped ({', '.join(SHIPPED)}) nor a YAML file")
    value = parse_yaml(text, source)
    if not isinstance(value, dict):
        raise UserError(f"recipe {source} must be a mapping of keys")
    upgrade(value)
    for setting in settings or []:
        _apply(value, setting)
    upgrade(value)  # a setting may name a stage by its old name
    recipe = validate(Recipe, value, f"recipe {source}")
    return recipe if limit is None else limited(recipe, limit)


def located(recipe: Recipe, prompts: Path | None = None, source: str = "", frozen: str | None = None) -> Recipe:
    """Return the recipe with absolute paths, and with the version of the user prompts.

    Args:
        prompts: a file, folder or hub data set from the command line.
        source: the recipe's file; relative paths start there, or else in the working directory.
        frozen: the `prompts.file` of the run that is resumed, if any.

    Raises:
        UserError: the prompts file or a benchmark file does not exist, or the hub cannot be reached.
    """
    from selfalign.data import user_data

    value = recipe.model_dump(mode="json")
    folder = Path() if source in ("", *SHIPPED) else Path(source).parent

    def locate(text: str) -> Path:
        return folder / text if (folder / text).exists() else expand_home(text)

    for key in ("model", "seeds", "constitution"):
        if value[key] not in ("", "embedded", *CONSTITUTIONS) and locate(value[key]).exists():
            value[key] = str(locate(value[key]).absolute())
    for number, name in enumerate(value["evaluate"]["benchmarks"]):
        if not locate(name).is_file():
            reason = "is no file: name the files" if locate(name).exists() else "does not exist"
            raise UserError(f"evaluate.benchmarks: {name!r} {reason}")
        value["evaluate"]["benchmarks"][number] = str(locate(name).absolute())
    if prompts is None and value["prompts"]["file"]:
        prompts = locate(value["prompts"]["file"])
    if prompts is not None:
        value["prompts"]["file"], value["prompts"]["file_sha256"] = user_data.pin_source(str(prompts), frozen)
    return validate(Recipe, value, "recipe")


def _apply(value: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = _new_key(key.strip()).split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {setting!r}: write key=value, for example --set align.temperature=0.7")
    if parts == ["filters", "base"]:  # a base sets all its values
        parts = ["filters"]
    target = value
    for part in parts[:-1]:
        inner = target.setdefault(part, {})
        if inner in ("default", "paper") and part == "filters":
            inner = target[part] = {"base": inner}
        if part == "executor" and isinstance(inner, str):
            inner = target[part] = {"kind": inner}
        if not isinstance(inner, dict):
            raise UserError(f"--set {setting!r}: {part!r} is a value, not a group of keys")
        target = inner
    target[parts[-1]] = parse_yaml(text, f"--set {key}")


def limited(recipe: Recipe, limit: int) -> Recipe:
    """Return the recipe with every count limited to `limit` rows."""
    if limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    value = recipe.model_dump(mode="json")
    for group in ("self_instruct", "red_team"):
        value["prompts"][group]["count"] = min(value["prompts"][group]["count"], limit)
    value["prompts"]["rows"] = min(value["prompts"]["rows"] or limit, limit)
    value["verbose_cloning"]["prompts"] = min(value["verbose_cloning"]["prompts"] or limit, limit)
    value["evaluate"]["heldout_prompts"] = min(value["evaluate"]["heldout_prompts"], max(1, limit // 2))
    value["evaluate"]["limit"] = min(value["evaluate"]["limit"] or limit, limit)
    return validate(Recipe, value, "recipe")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return `key: old -> new` for every value that differs."""
    changes = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key}: {json.dumps(a)} -> {json.dumps(b)}")
    return changes
