"""A short measurement of llama.cpp on this machine: how many slots, how fast. Kept in the cache, per model.

More requests at once make a token cheaper until the processor runs out of arithmetic, and then dearer: where that is
depends on the model, the processor and the library, so it is tried and not guessed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from selfalign.data.prompt_text import BOS, Pieces
from selfalign.data.records import content_hash
from selfalign.generation.engines.base import Engine, Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp, usable_cores
from selfalign.system import atomic
from selfalign.system.environment import cache_folder, processor

CANDIDATES = (1, 2, 4, 8, 16, 32)
_SECONDS = 2.0
"""For each candidate."""
_GAIN = 1.15
"""More slots must bring at least this much more: they cost memory."""
_PREFIX_TOKENS = 1300
"""As long as a constitution: what a token costs depends on how much it looks back on."""
_PREFIX_SECONDS = 5.0
_CONTEXT = 2048
"""Of a slot in the trial: how much there is does not change the speed, what is in it does."""
_FIRST = 8
_SENTENCE = "The morning was cold and the harbour lay still, but in the market people spoke of bread, boats and rain. "


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured."""

    slots: int
    """The best number of requests at once."""
    by_slots: dict[str, float]
    """Number of requests at once -> generated tokens a second, all together, after a shared prefix."""
    prompt_tokens_per_second: float
    load_seconds: float
    megabytes: float
    """Memory that the engine took, its weights included."""
    cells: int
    """Tokens of context that this memory has room for."""

    @property
    def tokens_per_second(self) -> float:
        """At the chosen number of slots."""
        return self.rate(self.slots)

    def rate(self, slots: int) -> float:
        """Generated tokens a second at so many requests at once: of the nearest number that was tried."""
        nearest = min(self.by_slots, key=lambda n: abs(int(n) - slots))
        return self.by_slots[nearest]


def calibrate(
    gguf: Path,
    identity: str,
    context: int,
    threads: int,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """The calibration of this model on this machine, from the cache or measured (about 20 seconds).

    Args:
        identity: the model's.
        context: tokens of context per slot.
        threads: 0 for all cores.
        fresh: measure again.

    Raises:
        UserError: llama.cpp cannot load the model.
    """
    cores = threads or usable_cores()
    version = importlib.metadata.version("xllamacpp")
    kept = cache_folder() / "calibration" / f"{content_hash(identity, version, cores, processor(), context)}.json"
    if not fresh and (found := _read(kept)):
        return found
    say("  measuring this machine (once per model, about 20 seconds)")
    found = _measure(gguf, context, threads)
    atomic.write_text(kept, json.dumps(asdict(found), indent=1) + "\n")
    return found


def _read(kept: Path) -> Calibration | None:
    """What is kept; None where nothing is, or what another version wrote."""
    try:
        return Calibration(**json.loads(kept.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _measure(gguf: Path, context: int, threads: int) -> Calibration:
    """Up to 8 slots first, which take less memory than a run with 8; more only where they still gain and fit."""
    small = _Trial(gguf, min(context, _CONTEXT), threads, [n for n in CANDIDATES if n <= _FIRST])
    rates, best = dict(small.rates), _best(small.rates)
    more = [n for n in CANDIDATES if n > _FIRST]
    per_slot = max(0.0, small.bytes - gguf.stat().st_size) / _FIRST
    if best == _FIRST and gguf.stat().st_size + per_slot * max(more) < _available() / 2:
        rates |= _Trial(gguf, min(context, _CONTEXT), threads, more).rates
        best = _best(rates)
    cells = _FIRST * min(context, _CONTEXT)
    shown = {str(k): round(v, 1) for k, v in rates.items()}
    return Calibration(best, shown, round(small.prompt_rate, 1), small.load_seconds, small.bytes / 1e6, cells)


def _best(rates: dict[int, float]) -> int:
    best = min(rates)
    for slots, rate in rates.items():
        if rate > rates[best] * _GAIN:
            best = slots
    return best


class _Trial:
    """An engine with as many slots as the largest candidate, and what was measured on it."""

    def __init__(self, gguf: Path, context: int, threads: int, candidates: list[int]) -> None:
        before, start = memory(), time.monotonic()
        engine = LlamaCpp(gguf, {}, slots=max(candidates), context=context, threads=threads)
        try:
            self.load_seconds = time.monotonic() - start
            _prefix_rate(engine, 64)  # the first computation pays for memory that is touched for the first time
            rate, _ = _prefix_rate(engine, 128)
            tokens = int(min(_PREFIX_TOKENS, max(128, rate * _PREFIX_SECONDS), context - 256))
            self.prompt_rate, prefix = _prefix_rate(engine, tokens)
            self.rates: dict[int, float] = {}
            for slots in candidates:
                self.rates[slots] = _rate(engine, prefix, slots)
                if self.rates[slots] < max(self.rates.values()) * 0.8:
                    break  # it only gets worse
            self.bytes = max(0.0, memory() - before)
        finally:
            engine.close()


def _prefix_rate(engine: LlamaCpp, tokens: int) -> tuple[float, Pieces]:
    """(prompt tokens computed a second, the prefix of about so many tokens), which all slots then have."""
    repeats = max(1, round(tokens / max(1, len(engine.encode((_SENTENCE,))))))
    # Another beginning each time: what an earlier prefix left in the cache must not count.
    prefix: Pieces = (BOS, f"{tokens}. {_SENTENCE * repeats}")
    start = time.monotonic()
    engine.warm_prefix(prefix, None)
    return len(engine.encode(prefix)) / (time.monotonic() - start), prefix


def _rate(engine: Engine, prefix: Pieces, slots: int) -> float:
    """Generated tokens a second with so many requests at once."""
    step = Step(Sampling(1.0, 0.95, 1000, top_k=1000, ban_eos=True))
    counts = [0] * slots
    until = 0.0

    def ask(number: int) -> None:
        def count(text: str) -> bool:
            counts[number] += 1
            return time.monotonic() < until

        engine.generate((*prefix, f"Number {number}:"), step, number, None, count)

    with ThreadPoolExecutor(slots) as pool:
        start = time.monotonic()
        until = start + _SECONDS
        list(pool.map(ask, range(slots)))
        return sum(counts) / (time.monotonic() - start)


def _available() -> float:
    """Bytes of memory that are free for us; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0.0)


def memory() -> float:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
