"""Measure the server's overhead: time to the first token, and decode speed compared with the engine alone.

    python benchmarks/serving.py RUN           # RUN: a finished run of the embedded model; about 10 minutes

First token: seconds from sending a short message to the first streamed text (median and maximum). Decode: in each round
the same requests go to the engine directly and through HTTP; tokens per second from a response's first text to its end,
with one client and with one per slot. Ratios are within a round; the result is the median over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfalign import constitution
from selfalign.generation.engines.base import Engine
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.web import server
from selfalign.web.guard import Policy
from selfalign.web.serve import openai_api, routes
from selfalign.web.serve.job_queue import JobQueue
from selfalign.web.serve.models import ServedModels

SLOTS = 4
MODEL = "final"
MESSAGES = [seed.instruction for seed in constitution.load_seeds("default")]


def body(number: int, tokens: int) -> dict[str, Any]:
    """Return a request whose response usually reaches max_tokens: high temperature, its own seed."""
    messages = [{"role": "user", "content": f"{MESSAGES[number % len(MESSAGES)]} Write a long story about it."}]
    return {
        "model": MODEL,
        "messages": messages,
        "seed": number,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": tokens,
    }


class Measured:
    """The times of one response."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first = 0.0
        self.tokens = 0
        self.ended = 0.0

    def text(self) -> None:
        self.first = self.first or time.monotonic()

    def end(self, tokens: int) -> Measured:
        self.tokens, self.ended = tokens, time.monotonic()
        return self


def directly(engine: Engine, models: ServedModels, request: dict[str, Any]) -> Measured:
    (job,) = models.chat_jobs(openai_api.parse(openai_api.ChatRequest, json.dumps(request).encode(), 4096))
    result = Measured()

    def show(_: str) -> bool:
        result.text()
        return True

    job_request = job.request
    part = engine.generate(job_request.prompt, job_request.steps[0], job_request.seed, job_request.adapter, show)
    return result.end(part.generated_tokens)


def over_http(port: int, request: dict[str, Any]) -> Measured:
    result = Measured()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body_sent = {**request, "stream": True, "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/chat/completions", json.dumps(body_sent), {"content-type": "application/json"})
    reply = connection.getresponse()
    assert reply.status == 200, reply.read()
    tokens = 0
    for line in reply:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event["usage"]:
            tokens = event["usage"]["completion_tokens"]
        elif event["choices"][0]["delta"].get("content"):
            result.text()
    connection.close()
    return result.end(tokens)


def rate(answers: list[Measured]) -> float:
    """Return tokens per second of all responses, from the first text of any to the end of the last."""
    first = min(a.first for a in answers)
    return sum(a.tokens for a in answers) / (max(a.ended for a in answers) - first)


def many(lane: Any, requests: list[dict[str, Any]], at_once: int) -> float:
    if at_once == 1:
        rates = [(a.tokens - 1, a.ended - a.first) for a in map(lane, requests)]
        return sum(tokens for tokens, _ in rates) / sum(seconds for _, seconds in rates)
    with ThreadPoolExecutor(at_once) as clients:
        return rate(list(clients.map(lane, requests)))


def first_tokens(port: int, times: int) -> list[float]:
    """Return seconds to the first text of short messages, after one that warms the slot."""
    short = [
        {**body(i, 4), "messages": [{"role": "user", "content": MESSAGES[i % len(MESSAGES)][:60]}]}
        for i in range(times + 1)
    ]
    answers = [over_http(port, request) for request in short][1:]
    return [a.first - a.began for a in answers if a.first]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--answers", type=int, default=4, help="answers of one client and of all, in each round")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--first", type=int, default=40, help="short messages")
    given = parser.parse_args()
    context = Context(RunDir.open(given.run), Screen(-1))
    models = ServedModels(context)
    engine = models.start(SLOTS)
    listening = server.listen("127.0.0.1", 0)
    port = int(listening.getsockname()[1])
    queue = JobQueue(engine, SLOTS, 64)
    uvicorn_server = server.build(routes.build(models, queue, Policy(), 4096))
    thread = threading.Thread(target=lambda: asyncio.run(uvicorn_server._serve([listening])))
    thread.start()
    try:
        times = first_tokens(port, given.first)
        middle = statistics.median(times)
        print(f"first token, {len(times)} short messages: median {middle:.3f} s, worst {max(times):.3f} s")
        for at_once in (1, SLOTS):
            ratios, speeds = [], []
            for number in range(given.rounds):
                rows = [body(100 * number + i, given.tokens) for i in range(given.answers * (1 if at_once == 1 else 2))]
                lanes = [lambda w: directly(engine, models, w), lambda w: over_http(port, w)]
                # Alternate the order: the first one has the cooler processor.
                order = (0, 1) if number % 2 == 0 else (1, 0)
                result = {lane: many(lanes[lane], rows, at_once) for lane in order}
                ratios.append(result[1] / result[0])
                speeds.append((result[0], result[1]))
            bare, ours = (statistics.median(s[i] for s in speeds) for i in (0, 1))
            print(
                f"{at_once} at once: engine {bare:.1f} tokens/s, server {ours:.1f}; ratio median "
                f"{statistics.median(ratios):.3f} ({', '.join(f'{r:.2f}' for r in ratios)})"
            )
    finally:
        uvicorn_server.should_exit = True
        thread.join()
        queue.close()
        engine.close()


if __name__ == "__main__":
    main()
