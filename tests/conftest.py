"""What several test files need: reproducible property tests, a run on the fake engine, a guard against hanging."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import report_numbers
from selfalign import constitution as constitutions
from selfalign import recipe as recipes
from selfalign.constitution import Constitution
from selfalign.context import Context
from selfalign.engines.fake import Fake, default_script
from selfalign.progress import Screen
from selfalign.run import RunDir

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


@contextmanager
def hang_guard(limit: float = 20.0) -> Iterator[None]:
    """Fail where the block hangs, a regex included: processor seconds far beyond what any machine needs for it."""

    def too_slow(*_: object) -> None:
        raise AssertionError(f"took more than {limit} s of processor time")

    before = signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(scope="session")
def default_constitution() -> Constitution:
    return constitutions.load("default")


@pytest.fixture(scope="session")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the report says of a run in which everything happened. Not to be changed."""
    return report_numbers.gather(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def fake_run(tmp_path: Path, default_constitution: Constitution) -> Iterator[Callable[..., Context]]:
    """Makes contexts on the fake engine: `fake_run("align.form=paper", name="a", script=...)`."""
    made: list[Context] = []

    def make(*sets: str, name: str = "run", texts: Constitution | None = None, **fake: Any) -> Context:
        recipe = recipes.load("quick", ["engine.kind=fake", *sets])
        texts = texts or default_constitution
        context = Context(RunDir.create(tmp_path / name, recipe, texts), Screen(-1))
        context._engine = Fake(parallel=context.slots(), **{"script": default_script, **fake})
        context._engine_for = tuple(context.identities().values())
        made.append(context)
        return context

    yield make
    for context in made:
        context.release_engine()
        context.journal.close()
