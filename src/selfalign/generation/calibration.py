"""Measure the best number of slots and the throughput of llama.cpp on this machine, once per model.

More concurrent requests make a token cheaper until the processor is saturated, and more expensive after that. The
optimum depends on the model, the processor and the library, so it is measured.
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
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.system.environment import free_megabytes, processor, read_cached, save_cached, usable_cores

CANDIDATES = (1, 2, 4, 8, 16, 32)
"""Numbers of slots that are tried."""
_SECONDS = 2.0
"""Duration of the measurement of each candidate."""
_GAIN = 1.05
"""Minimum factor by which more slots must increase the throughput, because they cost memory."""
_PREFIX_TOKENS = 1300
"""Length of a constitution: the cost of a token depends on how many tokens it attends to."""
_PREFIX_SECONDS = 5.0
"""Maximum duration of computing the prefix; a slow machine gets a shorter one."""
_CONTEXT = 2048
"""Context size of a slot in a trial. Throughput depends on the content of the context, not on its size."""
_FIRST = 8
"""Largest candidate of the first trial."""
_SENTENCE = "The morning was cold and the harbour lay still, but in the market people spoke of bread, boats and rain. "


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measured throughput of a model on this machine."""

    slots: int
    """The best number of concurrent requests."""
    by_slots: dict[str, float]
    """Number of concurrent requests -> their total generated tokens per second, after a shared prefix."""
    prompt_tokens_per_second: float
    load_seconds: float
    megabytes: float
    """Memory of the engine, including weights."""
    cells: int
    """Tokens of context that fit into this memory."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second with the best number of slots."""
        return self.rate(self.slots)

    def rate(self, slots: int) -> float:
        """Return the generated tokens per second with `slots` concurrent requests, from the nearest measurement."""
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
    """Return the calibration of a model on this machine, from the cache or measured (about 20 seconds).

    Args:
        identity: hash of the model's weights, for the cache.
        context: tokens of context per slot.
        threads: 0 for all cores.
        fresh: measure even if there is a cached calibration.

    Raises:
        UserError: llama.cpp cannot load the model.
    """
    cores = threads or usable_cores()
    version = importlib.metadata.version("xllamacpp")
    name = f"calibration/{content_hash(identity, version, cores, processor(), context)}.json"
    if not fresh and (cached := _read(name)):
        return cached
    say("  measuring this machine (once per model, about 20 seconds)")
    measured = _measure(gguf, context, threads)
    save_cached(name, json.dumps(asdict(measured), indent=1) + "\n")
    return measured


def _read(name: str) -> Calibration | None:
    """Return a cached calibration; None if there is none, or another version wrote it."""
    try:
        return Calibration(**json.loads(read_cached(name) or ""))
    except (ValueError, TypeError):
        return None


def _measure(gguf: Path, context: int, threads: int) -> Calibration:
    """Try up to 8 slots, and more only if throughput still rises and they fit into half of the free memory."""
    small = _Trial(gguf, min(context, _CONTEXT), threads, [n for n in CANDIDATES if n <= _FIRST])
    rates, best = dict(small.rates), _best(small.rates)
    larger = [n for n in CANDIDATES if n > _FIRST]
    free = 1e6 * (free_megabytes() or 0.0)
    per_slot = max(0.0, small.bytes - gguf.stat().st_size) / _FIRST
    if best == _FIRST and gguf.stat().st_size + per_slot * max(larger) < free / 2:
        rates |= _Trial(gguf, min(context, _CONTEXT), threads, larger).rates
        best = _best(rates)
    cells = _FIRST * min(context, _CONTEXT)
    by_slots = {str(k): round(v, 1) for k, v in rates.items()}
    return Calibration(best, by_slots, round(small.prompt_rate, 1), small.load_seconds, small.bytes / 1e6, cells)


def _best(rates: dict[int, float]) -> int:
    best = min(rates)
    for slots, rate in rates.items():
        if rate > rates[best] * _GAIN:
            best = slots
    return best


class _Trial:
    """Measurements on one engine, which has as many slots as the largest candidate."""

    def __init__(self, gguf: Path, context: int, threads: int, candidates: list[int]) -> None:
        before, start = _process_bytes(), time.monotonic()
        engine = LlamaCpp(gguf, {}, slots=max(candidates), context=context, threads=threads)
        try:
            self.load_seconds = time.monotonic() - start
            _prefix_rate(engine, 64)  # warm-up: the first computation allocates its memory
            rate, _ = _prefix_rate(engine, 128)
            tokens = int(min(_PREFIX_TOKENS, max(128, rate * _PREFIX_SECONDS), context - 256))
            self.prompt_rate, prefix = _prefix_rate(engine, tokens)
            self.rates: dict[int, float] = {}
            for slots in candidates:
                self.rates[slots] = _rate(engine, prefix, slots)
                if self.rates[slots] < max(self.rates.values()) * 0.8:
                    break  # past the optimum
            self.bytes = max(0.0, _process_bytes() - before)
        finally:
            engine.close()


def _prefix_rate(engine: LlamaCpp, tokens: int) -> tuple[float, Pieces]:
    """Compute a prefix of about `tokens` tokens for all slots; return (prompt tokens per second, the prefix)."""
    repeats = max(1, round(tokens / max(1, len(engine.encode((_SENTENCE,))))))
    # Each prefix begins differently, so that the cache of an earlier one does not count.
    prefix: Pieces = (BOS, f"{tokens}. {_SENTENCE * repeats}")
    start = time.monotonic()
    engine.warm_prefix(prefix, None)
    return len(engine.encode(prefix)) / (time.monotonic() - start), prefix


def _rate(engine: Engine, prefix: Pieces, slots: int) -> float:
    """Return the generated tokens per second with `slots` concurrent requests."""
    step = Step(Sampling(1.0, 0.95, 1000, top_k=1000, ban_eos=True))
    counts = [0] * slots
    deadline = 0.0

    def request(number: int) -> None:
        def count(text: str) -> bool:
            counts[number] += 1
            return time.monotonic() < deadline

        engine.generate((*prefix, f"Number {number}:"), step, number, None, count)

    with ThreadPoolExecutor(slots) as pool:
        start = time.monotonic()
        deadline = start + _SECONDS
        list(pool.map(request, range(slots)))
        return sum(counts) / (time.monotonic() - start)


def _process_bytes() -> float:
    """Return the resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
