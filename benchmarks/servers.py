"""Measure several servers as one engine: rows per second, shares by speed, the cost of failures.

    python benchmarks/servers.py      # about a minute and a half

Each fake server answers a completion after a fixed time, as many concurrently as it has slots. All servers run in one
other process. A row is one request through the generation loop and the journal. The ideal is slots / latency, summed
over the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from selfalign.data.prompt_text import BOS
from selfalign.generation.engines.base import Request, Sampling, Step
from selfalign.generation.engines.many_servers import ManyServers
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.generation.settings import EngineSettings
from selfalign.run.journal import Journal

SLOTS = 8
LATENCY = 0.16
"""Seconds: with eight slots, 50 rows/s."""
_STEP = Step(Sampling(1.0, 1.0, 64))


class Server:
    """One fake server."""

    def __init__(self, latency: float, failing: float) -> None:
        self._latency, self._failing = latency, failing
        self._slots = asyncio.Semaphore(SLOTS)
        self._random = random.Random(1)
        self.calls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                counts = body["max_tokens"] > 1
                failed = counts and self._random.random() < self._failing
                if counts:
                    self.calls += 1
                if counts and not failed:
                    async with self._slots:
                        await asyncio.sleep(self._latency)
                choice = {"text": " a b c", "finish_reason": "stop"}
                usage = {"prompt_tokens": 9, "completion_tokens": 50}
                data = json.dumps({"choices": [choice], "usage": usage}).encode()
                status = b"503 Busy" if failed else b"200 OK"
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data), data))
                await writer.drain()
        writer.close()


async def _serve_all(latencies: list[float], failing: list[float], pipe: Connection) -> None:
    servers = [Server(latency, share) for latency, share in zip(latencies, failing, strict=True)]
    listening = [await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=256) for server in servers]
    pipe.send([server.sockets[0].getsockname()[1] for server in listening])
    while not await asyncio.to_thread(pipe.poll, 60):
        pass
    pipe.send([server.calls for server in servers])


def serve_all(latencies: list[float], failing: list[float], pipe: Connection) -> None:
    asyncio.run(_serve_all(latencies, failing, pipe))


def measure(latencies: list[float], failing: list[float], rows: int) -> tuple[float, list[int], int]:
    """Return (rows per second, calls that each server got, failed rows)."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_all, args=(latencies, failing, there))
    process.start()
    urls = [f"http://127.0.0.1:{port}" for port in here.recv()]
    engine = ManyServers(EngineSettings.model_validate({"urls": urls, "served": {"base": "m"}}), SLOTS)
    requests = [RowRequest(f"r{n}", Request((BOS, f"Question {n}?"), (_STEP,), n)) for n in range(rows)]
    with tempfile.TemporaryDirectory(prefix="selfalign-servers-") as folder:
        journal = Journal(Path(folder) / "journal.sqlite")
        begun = time.perf_counter()
        results = JournaledEngine(engine, journal, "s", {None: "m"}).generate(requests)
        seconds = time.perf_counter() - begun
        journal.close()
    engine.close()
    here.send(None)
    calls: list[int] = here.recv()
    process.join()
    return rows / seconds, calls, sum(r.completion is None for r in results)


def ideal(latencies: list[float]) -> float:
    return sum(SLOTS / latency for latency in latencies)


def main(seconds: float) -> None:
    rates = {}
    for count in (1, 2, 4, 8):
        latencies = [LATENCY] * count
        rates[count], _, lost = measure(latencies, [0.0] * count, int(ideal(latencies) * seconds))
        share = rates[count] / ideal(latencies)
        print(f"{count} servers: {rates[count]:.0f} rows/s, {share:.1%} of the ideal, {lost} failed", flush=True)
    print(f"servers.efficiency_8: {rates[8] / rates[1] / 8:.1%} of eight times one server")
    latencies = [LATENCY * 4, LATENCY * 2, LATENCY]
    rate, calls, _ = measure(latencies, [0.0] * 3, int(ideal(latencies) * seconds))
    shares = ", ".join(f"{c / sum(calls):.1%}" for c in calls)
    print(
        f"servers.unequal: shares {shares} (ideal 14.3, 28.6, 57.1 %); {rate / ideal(latencies):.1%} of the ideal rate"
    )
    latencies = [LATENCY] * 4
    whole, _, _ = measure(latencies, [0.0] * 4, int(ideal(latencies) * seconds))
    rate, calls, lost = measure(latencies, [0.2, 0.0, 0.0, 0.0], int(ideal(latencies) * seconds))
    print(f"servers.failing: one of four fails 20 % of its calls: {1 - rate / whole:.1%} of the throughput lost")
    print(f"  ({rate:.0f} against {whole:.0f} rows/s; it got {calls[0]} of {sum(calls)} calls; {lost} rows failed)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="ideal duration of each part")
    main(parser.parse_args().seconds)
