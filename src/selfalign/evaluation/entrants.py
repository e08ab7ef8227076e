"""Who is compared: the models of a run, and any other adapter, model or server that the user names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.evaluation import heldout, sanity
from selfalign.evaluation.forms import PromptKind
from selfalign.evaluation.probes import PROMPTED
from selfalign.generation import executors
from selfalign.generation.scoring.base import Scorer
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.model.dialogue import Template
from selfalign.run.context import Context
from selfalign.system.atomic import file_hash

NAMES = ("base", PROMPTED, "engraved", "final")
"""The models of a run, in the order of tables."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One compared model."""

    name: str
    prompt: PromptKind
    adapter: str | None
    """Its name in the scorer; None is the base."""
    identity: str
    """A hash of the weights, and of how they are scored."""


@dataclass
class Team:
    """Entrants that one scorer serves: a base and its adapters. The scorer starts when it is first needed."""

    entrants: list[Entrant]
    template: Callable[[], Template]
    constitution: Constitution
    start: Callable[[], Scorer]
    _scorer: Scorer | None = field(default=None, repr=False)

    def scorer(self) -> Scorer:
        """The scorer, which has shown on trivial items that it is whole.

        Raises:
            UserError: it cannot be started, or is broken.
        """
        if self._scorer is None:
            self._scorer = self.start()
            sanity.check(self._scorer)
        return self._scorer

    def close(self) -> None:
        """Free the scorer's memory."""
        if self._scorer is not None:
            self._scorer.close()
        self._scorer = None


def of_run(context: Context, names: Sequence[str], others: Sequence[str], prompt: PromptKind) -> list[Team]:
    """The models of a run, and `others` (NAME=ADAPTER, NAME=MODEL or NAME=URL#ID).

    Args:
        names: some of base, prompted base (or prompted), engraved and final; none stands for all that the run has.
        prompt: the system prompt; the prompted base has the constitution instead.

    Raises:
        UserError: a name is not known, the run has no such model, or it runs no model at all.
    """
    context.model.check_weights("nothing can be scored")
    wanted = chosen(context, names)
    adapters = {a: context.run.adapter(a) for n in wanted if (a := heldout.ADAPTERS.get(n))}
    constitution, others_in = context.run.constitution, dict(named(o) for o in others)
    mine = {n: Path(spec) for n, spec in others_in.items() if is_adapter(spec)}
    check_names([named(o)[0] for o in others], [*wanted, *adapters])
    folders = {**adapters, **mine}
    identity = identities(context.model.identity, folders, _arithmetic(context))
    entrants = [
        Entrant(n, "constitution" if n == PROMPTED else prompt, a, identity[a])
        for n in wanted
        for a in [heldout.ADAPTERS.get(n)]
    ]
    entrants += [Entrant(n, prompt, n, identity[n]) for n in mine]
    team = Team(entrants, lambda: context.model.template, constitution, _starter(context, folders))
    rest = {n: spec for n, spec in others_in.items() if n not in mine}
    return [team, *(_foreign(n, spec, constitution, prompt) for n, spec in rest.items())]


def check_names(names: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Raises UserError where two models would have one name.

    Args:
        taken: names of the run's own models.
    """
    for number, name in enumerate(names):
        if name in taken:
            raise UserError(f"--with {name}=...: the run has a model of that name; name it otherwise")
        if name in names[:number]:
            raise UserError(f"two models are named {name!r}: write NAME=... for one of them")


def chosen(context: Context, names: Sequence[str]) -> list[str]:
    """The models that names stand for, in the order of tables. Raises as `of_run`."""
    has = heldout.models(context)
    wanted = [PROMPTED if n in ("prompted", "prompted-base") else n for n in names] or list(NAMES)
    for name in wanted:
        if name not in NAMES:
            raise UserError(f"--models: {name!r} is not a model; models are {', '.join(NAMES)}")
        if names and name != PROMPTED and name not in has:
            raise UserError(f"--models: {name!r} was not trained in this run; it has {', '.join(has)}")
    return [n for n in NAMES if n in wanted and (n == PROMPTED or n in has)]


def of_models(specs: Sequence[str], constitution: Constitution, prompt: PromptKind, prompted: bool) -> list[Team]:
    """Models by themselves: a GGUF file, a folder or a hub id, each with +ADAPTER or without, as NAME=... or without.

    Args:
        prompted: each also with the constitution in its prompt.
    """
    teams = []
    check_names([(named(s)[0] if "=" in s else short(s)) for s in specs])
    for spec in specs:
        name, source = named(spec) if "=" in spec else (short(spec), spec)
        team = _foreign(name, source, constitution, prompt)
        if prompted:
            first = team.entrants[0]
            team.entrants.append(Entrant(f"{name}, prompted", "constitution", first.adapter, first.identity))
        teams.append(team)
    return teams


def named(text: str) -> tuple[str, str]:
    """(NAME, SPEC) of NAME=SPEC."""
    name, equals, spec = text.partition("=")
    if not equals or not name.strip() or not spec.strip():
        raise UserError(f"{text!r}: write NAME=ADAPTER, NAME=MODEL or NAME=URL#ID")
    return name.strip(), spec.strip()


def short(spec: str) -> str:
    """A model's name in tables: the last parts of its path, without its ending."""
    base, adapter = apart(spec)
    short = Path(base).name.removesuffix(".gguf") or base
    return f"{short}+{'/'.join(adapter.parts[-2:])}" if adapter else short


def apart(spec: str) -> tuple[str, Path | None]:
    """(model, adapter) of MODEL+ADAPTER; a path that holds a plus itself is one."""
    if "+" not in spec or Path(spec).exists():
        return spec, None
    base, _, adapter = spec.partition("+")
    if not is_adapter(adapter):
        raise UserError(f"{adapter!r} is no PEFT adapter: the folder has no adapter_config.json and safetensors")
    return base, Path(adapter)


def is_adapter(spec: str) -> bool:
    """Whether a folder is an adapter as PEFT writes it."""
    return all((Path(spec) / f).is_file() for f in ("adapter_config.json", "adapter_model.safetensors"))


def _foreign(name: str, spec: str, constitution: Constitution, prompt: PromptKind) -> Team:
    if spec.startswith(("http://", "https://")):
        return _server(name, spec, constitution, prompt)
    source, adapter = apart(spec)
    model = sources.resolve(source)
    folders = {"adapter": adapter} if adapter else {}
    used = "adapter" if adapter else None
    identity = identities(model.identity, folders)[used]
    entrant = Entrant(name, prompt, used, identity)

    def start() -> Scorer:
        from selfalign.generation.scoring.torch_scorer import TorchScorer

        for folder in folders.values():
            model.check_adapter(folder)
        return TorchScorer(model.folder(), folders, model.tokenizer())

    return Team([entrant], lambda: model.template, constitution, start)


def _server(name: str, spec: str, constitution: Constitution, prompt: PromptKind) -> Team:
    """A model behind a server, in plain-text turns: its template is not known."""
    from selfalign.model.dialogue import PLAIN

    url, _, served = spec.partition("#")
    if not served:
        raise UserError(f"{name}={spec}: write the model's id after the address, as http://127.0.0.1:8000/v1#ID")

    def start() -> Scorer:
        from selfalign.generation.scoring.server_scorer import ServerScorer

        return ServerScorer(url, served)

    return Team([Entrant(name, prompt, None, content_hash("server", url, served))], lambda: PLAIN, constitution, start)


TORCH = "torch float32"


def _arithmetic(context: Context) -> str:
    """What a run's scorer computes with: vLLM where that is its engine, else torch."""
    from selfalign.generation import engines

    config = context.recipe.engine
    return f"vllm {_dtype(config)}" if engines.kind(config) == "vllm" else TORCH


def _dtype(config: EngineSettings) -> str:
    from selfalign.system import environment

    return environment.dtype() if config.dtype == "auto" else config.dtype


def identities(base: str, adapters: Mapping[str, Path], arithmetic: str = TORCH) -> dict[str | None, str]:
    """For the base (None) and each adapter, a hash of the weights and of the scorer's arithmetic."""
    found: dict[str | None, str] = {None: content_hash(arithmetic, base)}
    for name, folder in adapters.items():
        files = [file_hash(folder / "adapter_model.safetensors"), _adapter_settings(folder)]
        found[name] = content_hash(arithmetic, base, files)
    return found


def _adapter_settings(folder: Path) -> str:
    """A hash of the settings that the adapter's output depends on: not of its base's name, which may be a path."""
    value = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return content_hash({k: v for k, v in value.items() if k != "base_model_name_or_path"})


def _starter(context: Context, folders: Mapping[str, Path]) -> Callable[[], Scorer]:
    """A run's scorer: vLLM where that is its engine, else torch, and it is said why."""

    def start() -> Scorer:
        from selfalign.generation import engines

        model, config, say = context.model, context.recipe.engine, context.screen.say
        executor = context.recipe.executor
        for folder in folders.values():
            model.check_adapter(folder)
        context.release_engine()
        kind = engines.kind(config)
        where = " on Ray workers" if executor.kind == "ray" else ""
        if kind == "vllm":
            say(f"  scored by vLLM ({_dtype(config)}){where}", "dim")
            return executors.scorer(executor, config, model, folders, "vllm", _dtype(config), say)
        why = {
            "llama_cpp": ": llama.cpp gives no log-probabilities of prompts",
            "openai": ": the weights are here, and few servers give log-probabilities of prompts",
        }.get(kind, "")
        say(f"  scored by torch in float32{where}{why}", "dim")
        return executors.scorer(executor, config, model, folders, "torch", say=say)

    return start
