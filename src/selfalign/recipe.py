"""The recipe: one YAML document that says everything about a run but the human texts. Strict and typed."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from selfalign.constitution.reading import SHIPPED as CONSTITUTIONS
from selfalign.errors import UserError
from selfalign.executors.settings import Executor
from selfalign.quality.thresholds import Filters
from selfalign.records import content_hash
from selfalign.storage import Location
from selfalign.strict import Strict, parse_yaml, read_text, validate

Stage = Literal["prompts", "align", "engrave", "clone", "evaluate", "report"]
STAGES: tuple[Stage, ...] = ("prompts", "align", "engrave", "clone", "evaluate", "report")
SHIPPED = ("quick", "standard", "paper", "two-stage", "single-gpu")

Probability = Field(gt=0, le=1)
Temperature = Field(ge=0, le=5)
Tokens = Field(ge=1, le=32768)
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _as_server(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


def _or_address(schema: dict[str, Any]) -> None:
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string"}, whole]


class Server(Strict):
    """One of several servers: its address, or a mapping where it differs from what `engine` says."""

    model_config = ConfigDict(json_schema_extra=_or_address)
    _address = model_validator(mode="before")(_as_server)

    url: str
    served: dict[str, str] = {}
    """Model ids that are others there."""
    key_env: str | None = Field(None, pattern=_VARIABLE)
    """The environment variable with its key, if it is another."""
    slots: int | None = Field(None, ge=1, le=1024)
    """Requests at once there, at most; null: as `engine.slots`."""


class Engine(Strict):
    kind: Literal["auto", "llama_cpp", "vllm", "openai", "fake"] = "auto"
    """auto takes openai where `url` or `urls` is given, vllm where it is installed beside an accelerator, else
    llama_cpp."""
    url: str | None = None
    """openai: the server's address, as http://127.0.0.1:8080/v1."""
    urls: list[Server] | None = None
    """openai: the addresses of several servers of the same model, in place of `url`; the work is shared by speed. One
    that differs is a mapping: `{url, served, key_env, slots}`."""
    served: dict[str, str] = {}
    """openai: the model ids under which the server has the base and, once they are trained, the adapters."""
    key_env: str | None = Field(None, pattern=_VARIABLE)
    """openai: the environment variable that holds the server's key. The key itself never stands in a file."""
    attempts: int = Field(6, ge=1, le=100)
    """openai: tries of one request."""
    timeout: float = Field(60.0, gt=0, le=3600)
    """openai: seconds without a sign from the server after which a try has failed."""

    @model_validator(mode="after")
    def _served(self) -> Engine:
        known = ("base", "engrave", "clone")
        named = [*self.served, *(name for server in self.urls or () for name in server.served)]
        if wrong := next((name for name in named if name not in known), None):
            raise ValueError(f"served names the models {', '.join(known)}, not {wrong!r}")
        if self.urls is not None and self.url is not None:
            raise ValueError("url and urls are both given: give one server as url, several as urls")
        if self.urls == []:
            raise ValueError("urls is an empty list: name a server, or leave it out")
        return self

    @field_validator("slots", mode="before")
    @classmethod
    def _slots(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= 1024):
            return value
        raise ValueError(f"slots is {value!r}: auto, or a number from 1 to 1024")

    slots: int | Literal["auto"] = Field("auto")
    """Requests generated at once; of several servers, at each at most. auto: for llama_cpp what a short measurement of
    this machine finds best, 64 for vllm on an accelerator, else 8."""
    context: int = Field(4096, ge=256, le=131072)
    """Tokens of context per slot."""
    threads: int = Field(0, ge=0)
    """0: all cores that this process may use."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """vllm: the type to compute in. auto: bfloat16 where this machine is really faster in it, else float32."""
    tensor_parallel: int = Field(1, ge=1, le=64)
    """vllm: accelerators that one copy of the model is spread over; a Ray worker then takes so many."""
    top_k: int = Field(1000, ge=0)
    """Draw from the k most likely tokens, then top_p. 0 is no limit: with a vocabulary of 262,144 tokens that halves
    the speed (benchmarks/sampling.py)."""


class SelfInstruct(Strict):
    count: int = Field(60, ge=0)
    """Prompts to accept."""
    seeds_per_request: int = Field(5, ge=1)
    requests_per_round: int = Field(16, ge=1)
    max_rounds: int = Field(100, ge=1)
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens


class RedTeam(Strict):
    count: int = Field(60, ge=0)
    topic_rounds: int = Field(2, ge=1)
    topic_requests: int | None = Field(None, ge=1)
    """At most so many topic requests per type and round; null: one for each topic that is known."""
    max_rounds: int = Field(20, ge=1)
    """Rounds of questions, at most."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens


class Steering(Strict):
    """What stage 1 does between rounds. The paper does none of it."""

    own_seeds: float = Field(0.0, ge=0, le=1)
    """Self-Instruct: the share of the shown tasks that is drawn from accepted prompts. 0 is off: on the embedded model
    it brought more repetition and no more diversity (docs/data.md)."""
    rebalance: bool = True
    """Red-teaming: ask next about the question types and topics that have the fewest accepted prompts."""
    least_novel: float = Field(0.05, ge=0, lt=1)
    """Stop where a smaller share of the last usable candidates was new. 0 is off."""


class Prompts(Strict):
    self_instruct: SelfInstruct
    red_team: RedTeam
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
    steering: Steering = Steering()  # type: ignore[call-arg]


class Align(Strict):
    form: Literal["guided", "paper", "given"] = "guided"
    """guided: the thoughts end with their line, then the answer's cue is given; paper: one pass; given: nothing is
    generated, the answers are those of `prompts.file`."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens
    max_thought_tokens: int = Field(80, ge=8)
    repetition: float = Field(1.0, ge=0, le=10)
    """Penalty on repeated 3-grams in thoughts and answer, doubled for each token more; 0 is off, as in the paper."""
    hints: bool = False
    """Begin the thoughts with the principles that the question's type hints at."""


class Engrave(Strict):
    rank: int = Field(16, ge=1, le=256)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"], min_length=1
    )
    learning_rate: float = Field(4.0e-4, gt=0)
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(8, ge=1)
    """Examples per optimiser step."""
    warmup_steps: int = Field(5, ge=0)
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    validation: float = Field(0.0, ge=0, le=0.5)
    """The share of the examples that is not trained on: the loss on them is measured while training."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between two measurements; null: once an epoch."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many measurements without a better one, and keep the best adapter; null: never."""
    tokens_at_once: int = Field(1024, ge=1)
    """Tokens computed at once, padding counted: it decides the memory. Halved where memory runs out."""
    gradient_checkpointing: bool = False
    """Compute each layer again on the way back instead of keeping it: less memory, a third slower."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Seconds between two checkpoints, at most; a stop by a signal writes one too. 0: after each step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of the frozen weights. auto: bfloat16 where this machine is really faster in it."""
    max_length: int = Field(512, ge=16)
    """Tokens of one example; a longer one is a drop, never cut."""
    preflight: Literal["refuse", "warn"] = "refuse"
    """What is done about rows that cannot be learnt as they should: training is refused, or they are named only."""
    elsewhere: bool = False
    """Stages 3 and 4 stop once their examples are written: `selfalign export RUN launch` makes a folder to train in,
    and `selfalign engrave|clone RUN --adapter DIR` takes what it made."""

    @model_validator(mode="after")
    def _measured(self) -> Engrave:
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs rows to measure the loss on: set validation, as 0.05")
        return self

    def deciding(self) -> dict[str, Any]:
        """The settings that the trained adapter follows from."""
        return self.model_dump(mode="json", exclude={"preflight", "checkpoint_seconds", "tokens_at_once", "elsewhere"})


class Clone(Strict):
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


class Evaluate(Strict):
    run_on: int = Field(40, ge=0)
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
    engine: Engine = Engine()  # type: ignore[call-arg]
    executor: Executor = Executor()  # type: ignore[call-arg]
    storage: Location | None = None
    """Where the run is kept besides its folder, for another machine to take up (docs/cluster.md)."""
    prompts: Prompts
    align: Align
    filters: Filters = Filters.model_validate("default")
    engrave: Engrave = Engrave()  # type: ignore[call-arg]
    clone: Clone
    evaluate: Evaluate = Evaluate()  # type: ignore[call-arg]
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

    def training(self, stage: str) -> Engrave:
        """LoRA and optimiser of stage 3 (engrave) or 4 (clone), which has some settings of its own."""
        if stage == "engrave":
            return self.engrave
        own = self.clone
        return self.engrave.model_copy(
            update={
                "max_length": own.max_length,
                "learning_rate": own.learning_rate or self.engrave.learning_rate,
                "epochs": own.epochs or self.engrave.epochs,
            }
        )


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
    from selfalign import own_data

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
        value["prompts"]["file"], value["prompts"]["file_sha256"] = own_data.pinned(str(prompts), kept)
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
    value["clone"]["prompts"] = min(value["clone"]["prompts"] or limit, limit)
    value["evaluate"]["run_on"] = min(value["evaluate"]["run_on"], max(1, limit // 2))
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
