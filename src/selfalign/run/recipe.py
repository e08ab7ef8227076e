"""The recipe: one YAML document that says everything about a run but the human texts. Strict and typed."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from selfalign.constitution.loading import SHIPPED as CONSTITUTIONS
from selfalign.data.records import content_hash
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
from selfalign.system.strict_yaml import Strict, parse_yaml, read_text, validate
from selfalign.training.settings import TrainingSettings

Stage = Literal["prompts", "align", "engrave", "verbose_cloning", "evaluate", "report"]
STAGES: tuple[Stage, ...] = ("prompts", "align", "engrave", "verbose_cloning", "evaluate", "report")
SHIPPED = ("quick", "standard", "paper", "two-stage", "single-gpu")


class SelfInstructSettings(Strict):
    count: int = Field(60, ge=0)
    """Prompts to accept."""
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
    """At most so many topic requests per type and round; null: one for each topic that is known."""
    max_rounds: int = Field(20, ge=1)
    """Rounds of questions, at most."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens


class SteeringSettings(Strict):
    """What stage 1 does between rounds. The paper does none of it."""

    own_seeds: float = Field(0.0, ge=0, le=1)
    """Self-Instruct: the share of the shown tasks that is drawn from accepted prompts. 0 is off: on the embedded model
    it brought more repetition and no more diversity (docs/data.md)."""
    rebalance: bool = True
    """Red-teaming: ask next about the question types and topics that have the fewest accepted prompts."""
    least_novel: float = Field(0.05, ge=0, lt=1)
    """Stop where a smaller share of the last usable candidates was new. 0 is off."""


class PromptsSettings(Strict):
    self_instruct: SelfInstructSettings
    red_team: RedTeamSettings
    file: str | None = None
    """Your own rows in place of written ones: a file, a folder or a hub data set, as owner/name[/config][:split]
    (docs/formats.md); `run --prompts FILE` sets it. The run adds a hub data set's commit, as @COMMIT."""
    file_sha256: str | None = None
    """Set by the run: another content of the file or folder is another run."""
    rows: int | None = Field(None, ge=1)
    """At most so many prompts from the file; null: all. `--limit` sets it."""
    tokens: list[int] | None = Field(None, min_length=2, max_length=2)
    """Fewest and most tokens of a prompt from the file; null: any length."""
    novelty: float = Field(0.7, gt=0, le=1)
    """A prompt whose ROUGE-L F1 with an accepted one is above this is dropped."""
    mean_similarity: bool = False
    """Store each prompt's mean ROUGE-L F1 with the seeds and the prompts of the rounds before, as the original does.
    Compares with all: about 0.15 µs a pair, 11 minutes for 100,000 prompts. Decides nothing."""
    steering: SteeringSettings = SteeringSettings()  # type: ignore[call-arg]


class VerboseCloningSettings(Strict):
    prompts: int | None = Field(None, ge=1)
    """How many prompts of stage 1 the engraved model answers; null: all."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens
    end_penalty: float = Field(0.6, ge=0, le=20)
    """Taken from the end token's logit while the verbose mode writes: a small model's verbose mode ends too early to
    be worth cloning. The paper has none."""
    max_length: int = Field(768, ge=16)
    learning_rate: float | None = Field(None, gt=0)
    """null: as in engrave."""
    epochs: int | None = Field(None, ge=1)


class EvaluateSettings(Strict):
    heldout_prompts: int = Field(40, ge=0)
    """Prompts that are kept out of training and answered by every model."""
    max_new_tokens: int = Field(320, ge=16)
    temperature: float = Field(0.3, ge=0, le=5)
    top_p: float = Field(0.9, gt=0, le=1)
    repetition: float = Field(1.0, ge=0, le=10)
    """Penalty on repeated 3-grams (as in stage 4), the same for every compared model; chat uses it too. 0 is off."""
    tasks: list[Literal["behaviour", "hhh", "truthfulqa", "truthfulqa-generation", "vicuna", "questions"]] = []
    """Benchmarks that the stage runs besides; `selfalign evaluate RUN --benchmarks ...` runs them later. Generated
    answers stay unjudged here: the command takes a judge."""
    benchmarks: list[str] = []
    """Files of benchmarks (JSON, JSONL, CSV, TSV, text) that the models will be measured on: prompts and answers that
    overlap with one are dropped (`filters.overlap`)."""


class Recipe(Strict):
    """See docs/recipe.md. `selfalign recipe --schema` prints the JSON Schema for editors."""

    model: str = "embedded"
    constitution: str = "default"
    seeds: str = "default"
    seed: int = Field(0, ge=0, lt=2**32)
    stages: list[Stage] = list(STAGES)
    engine: EngineSettings = EngineSettings()  # type: ignore[call-arg]
    executor: ExecutorSettings = ExecutorSettings()  # type: ignore[call-arg]
    storage: Location | None = None
    """Where the run is kept besides its folder, for another machine to take up (docs/cluster.md)."""
    prompts: PromptsSettings
    align: AlignSettings
    filters: FilterSettings = FilterSettings.model_validate("default")
    engrave: TrainingSettings = TrainingSettings()  # type: ignore[call-arg]
    verbose_cloning: VerboseCloningSettings
    evaluate: EvaluateSettings = EvaluateSettings()  # type: ignore[call-arg]
    max_failed: float = Field(0.01, ge=0, le=1)
    """The share of failed rows above which a stage ends with exit code 3."""

    @model_validator(mode="after")
    def _order(self) -> Recipe:
        order = [STAGES.index(s) for s in self.stages]
        if order != sorted(set(order)):
            raise ValueError(f"stages must be in the order {', '.join(STAGES)}, each at most once")
        return self

    def digest(self) -> str:
        return content_hash(self.model_dump(mode="json"))

    def training(self, stage: str) -> TrainingSettings:
        """LoRA and optimiser of stage 3 (engrave) or 4 (clone), which has some settings of its own."""
        if stage == "engrave":
            return self.engrave
        own = self.verbose_cloning
        return self.engrave.model_copy(
            update={
                "max_length": own.max_length,
                "learning_rate": own.learning_rate or self.engrave.learning_rate,
                "epochs": own.epochs or self.engrave.epochs,
            }
        )


RENAMED_KEYS = {
    "clone": "verbose_cloning",
    "evaluate.run_on": "evaluate.heldout_prompts",
    "engrave.tokens_at_once": "engrave.micro_batch_tokens",
    "engine.tensor_parallel": "engine.tensor_parallel_size",
    "engine.served.clone": "engine.served.verbose_cloning",
}
"""Keys of earlier versions -> what they are called now."""


def _find(value: dict[str, Any], key: str) -> tuple[dict[str, Any], str] | None:
    """Return the mapping that holds a dotted key and the key's last part; None if it is not there."""
    *groups, last = key.split(".")
    target: object = value
    for group in groups:
        target = target.get(group) if isinstance(target, dict) else None
    return (target, last) if isinstance(target, dict) and last in target else None


def refuse_renamed_keys(value: dict[str, Any], where: str) -> None:
    """Raise for keys and stages of earlier versions, and name the new one.

    Raises:
        UserError: the recipe uses one.
    """
    for old, new in RENAMED_KEYS.items():
        if _find(value, old):
            raise UserError(f"{where}: the key {old!r} is now called {new!r}: rename it")
    stages = value.get("stages")
    if isinstance(stages, list) and "clone" in stages:
        raise UserError(f"{where}: the stage 'clone' is now called 'verbose_cloning': rename it in `stages`")


def upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run of an earlier version with the keys and stages of this one. Changes `value`."""
    for old, new in RENAMED_KEYS.items():
        if found := _find(value, old):
            target, last = found
            target[new.rsplit(".", 1)[-1]] = target.pop(last)
    if isinstance(value.get("stages"), list):
        value["stages"] = ["verbose_cloning" if stage == "clone" else stage for stage in value["stages"]]
    return value


def load(source: str, settings: list[str] | None = None, limit: int | None = None) -> Recipe:
    """The shipped recipe of that name or the file `source`, with `key=value` settings and a limit applied.

    Raises:
        UserError: the file, a key or a value is wrong.
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
    for setting in settings or []:
        _apply(value, setting)
    refuse_renamed_keys(value, f"recipe {source}")
    recipe = validate(Recipe, value, f"recipe {source}")
    return recipe if limit is None else limited(recipe, limit)


def located(recipe: Recipe, prompts: Path | None = None, source: str = "", kept: str | None = None) -> Recipe:
    """The recipe with the paths in it made absolute, and with own prompts in place of stage 1's writing.

    Args:
        prompts: a file, folder or hub data set given on the command line.
        source: the recipe's file; relative paths in it start there, or else where the command runs.
        kept: the `prompts.file` of the run that goes on, if there is one.

    Raises:
        UserError: the prompts file or a benchmark file does not exist, or the hub cannot be asked.
    """
    from selfalign.data import user_data

    value = recipe.model_dump(mode="json")
    beside = Path() if source in ("", *SHIPPED) else Path(source).parent

    def found(text: str) -> Path:
        return beside / text if (beside / text).exists() else Path(text)

    for key in ("model", "seeds", "constitution"):
        if value[key] not in ("embedded", *CONSTITUTIONS) and found(value[key]).exists():
            value[key] = str(found(value[key]).absolute())
    for number, name in enumerate(value["evaluate"]["benchmarks"]):
        if not found(name).is_file():
            raise UserError(f"evaluate.benchmarks: {name!r} does not exist")
        value["evaluate"]["benchmarks"][number] = str(found(name).absolute())
    if prompts is None and value["prompts"]["file"]:
        prompts = found(value["prompts"]["file"])
    if prompts is not None:
        value["prompts"]["file"], value["prompts"]["file_sha256"] = user_data.pin_source(str(prompts), kept)
    return validate(Recipe, value, "recipe")


def _apply(value: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {setting!r}: write key=value, for example --set align.temperature=0.7")
    if parts == ["filters", "base"]:  # the values of a base come with it
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
    """The same recipe with every size cut to at most `limit` rows."""
    if limit < 1:
        raise UserError(f"--limit {limit}: at least 1")
    value = recipe.model_dump(mode="json")
    for group, key in (("self_instruct", "count"), ("red_team", "count")):
        value["prompts"][group][key] = min(value["prompts"][group][key], limit)
    value["prompts"]["rows"] = min(value["prompts"]["rows"] or limit, limit)
    value["verbose_cloning"]["prompts"] = min(value["verbose_cloning"]["prompts"] or limit, limit)
    value["evaluate"]["heldout_prompts"] = min(value["evaluate"]["heldout_prompts"], max(1, limit // 2))
    return validate(Recipe, value, "recipe")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every value that differs."""
    found = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {json.dumps(a)} -> {json.dumps(b)}")
    return found
