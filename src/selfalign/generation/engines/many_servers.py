"""Use several OpenAI-compatible servers of the same model as one engine.

A request goes to the server that will likely answer it first. Each server gets as many concurrent requests as it can
handle, and a request that fails on one server goes to another. A server that keeps failing is taken out of service;
health checks in the background return it to service when it answers and still serves the same model. If all servers
are out of service, calls are retried as with one server (see `retries`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Interrupted, SelfAlignError, UserError
from selfalign.generation.engines.base import OnText, Part, RowError, Step
from selfalign.generation.engines.fleet import Call, Endpoint, Fleet
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.engines.same_model import Fingerprint, difference, fingerprint
from selfalign.generation.engines.server_client import base_url, parse_addresses
from selfalign.generation.retries import Retrier, RetryPolicy, Transient
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer

_LONGEST_CHECK_WAIT = 30.0
"""Maximum seconds between two health checks."""
_CLOSE_SECONDS = 2.0
_REPORT_SECONDS = 300.0
"""Minimum seconds between two messages about the same server; the end of a stage prints the totals."""


class ManyServers:
    """An engine that calls several servers. See `Engine`.

    Args:
        slots: maximum concurrent requests per server, for servers without a number of their own in the recipe.
        say: receives a message when a server goes out of service.

    Raises:
        UserError: an address, or the variable with a key, is invalid or missing; two servers serve different models.
        Resumable: a server refuses all requests, or lacks the model.
        Interrupted: a signal came while the servers were compared.
    """

    def __init__(
        self,
        config: EngineSettings,
        slots: int,
        policy: RetryPolicy | None = None,
        tokenizer: Tokenizer | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._policy = policy or RetryPolicy(attempts=config.attempts)
        self._retrier = Retrier(self._policy)
        self._thread = threading.local()
        """For each thread: its last call."""
        self._say, self._closing = say, threading.Event()
        self._health_checks: list[threading.Thread] = []
        self._reported: dict[Endpoint, float] = {}
        self._reference: tuple[Endpoint, Fingerprint] | None = None
        self._comparing = threading.Lock()
        self._text_only = tokenizer is None
        self._served: dict[Endpoint, dict[str, str]] = {}
        for parts, server in zip(parse_addresses(config), config.urls or (), strict=True):
            url, served = base_url(parts), {**config.served, **server.served}
            key = server.key_env or config.key_env
            settings = config.model_copy(update={"url": server.url, "urls": None, "served": served, "key_env": key})
            endpoint = Endpoint(OpenAiApi(settings, slots, policy, tokenizer, url, say), url, server.slots or slots)
            self._served[endpoint] = served
        self._fleet = Fleet(list(self._served), self._on_outage)
        self.parallel = sum(e.window.limit for e in self._served)
        try:
            self._compare_all()
        except BaseException:
            self.close()
            raise

    @property
    def note(self) -> str:
        """The servers that get text, and a line about the calls of each server so far."""
        texts = [e.api.note for e in self._fleet.endpoints if e.api.note]
        if self._text_only:
            texts = ["the servers get text: this machine does not have the model's tokenizer"]
        used = any(e.requests or e.errors or e.outage for e in self._fleet.endpoints)
        return "\n  ".join(texts + (self._fleet.summaries() if used else []))

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`. The text arrives in one piece.

        Raises:
            Resumable: no server answers.
            Interrupted: a signal came before any server received the request.
        """
        server = self._server_of_last_step(prompt, adapter)
        call = Call(preferred=server, begun=server is not None)
        part = self._retrier.call(
            lambda: self._generate_once(call, prompt, step, seed, adapter),
            lambda: time.monotonic() - call.waited,  # waiting for a server does not count against the call
        )
        self._thread.last = (prompt, adapter, call.preferred)
        if on_text is not None:
            on_text(part.text)
        return part

    def _server_of_last_step(self, prompt: Pieces, adapter: str | None) -> Endpoint | None:
        """Return the server that answered the previous step of this request; one thread runs all steps of a request."""
        last: tuple[Pieces, str | None, Endpoint | None] = getattr(self._thread, "last", ((), None, None))
        continues = last[0] and last[1] == adapter and prompt[: len(last[0])] == last[0]
        return last[2] if continues else None

    def _generate_once(self, call: Call, prompt: Pieces, step: Step, seed: int, adapter: str | None) -> Part:
        """Make one attempt; a server that fails for another reason than the request is replaced at once."""
        while endpoint := self._fleet.acquire(call):
            call.begun = True
            start = time.monotonic()
            try:
                part = endpoint.api.generate_once(prompt, step, seed, adapter)
            except RowError:
                self._fleet.record_refusal(endpoint)
                raise
            except (Transient, SelfAlignError) as error:
                others_left = self._fleet.record_failure(endpoint, call, error, self._retrier.pause)
                # The request may be the cause of a bad reply: without counting an attempt, it would circle forever.
                if not others_left or (isinstance(error, Transient) and error.failure == "bad reply"):
                    raise
            except BaseException:
                self._fleet.release(endpoint)
                raise
            else:
                self._fleet.record_answer(endpoint, call, time.monotonic() - start, part.generated_tokens)
                call.preferred = endpoint
                call.excluded.clear()
                return part
        raise Transient(f"no server is in service: {self._fleet.outages()}", failure="unreachable")

    # -- comparing the servers, at the start and when one comes back -------------------------------------------------

    def _compare_all(self) -> None:
        endpoints = [e for e in self._fleet.endpoints if self._served[e]]
        with ThreadPoolExecutor(len(self._served)) as pool:
            futures = [pool.submit(fingerprint, e.api, self._served[e]) for e in endpoints]
        for endpoint, future in zip(endpoints, futures, strict=True):
            try:
                self._compare(endpoint, future.result())
            except Transient as error:
                self._fleet.take_out(endpoint, str(error))
            except RowError as error:
                raise UserError(f"{endpoint.url} cannot complete plain text: {error}") from None

    def _compare(self, endpoint: Endpoint, own: Fingerprint) -> None:
        """Raise UserError if the server does not serve the model of the first server that answered."""
        with self._comparing:
            if self._reference is None:
                self._reference = endpoint, own
                return
        first, reference = self._reference
        if text := difference(reference, own):
            raise UserError(f"{endpoint.url} serves another model than {first.url}: {text}")

    def _on_outage(self, endpoint: Endpoint) -> None:
        """Report the outage, and start health checks."""
        if self._closing.is_set():
            return
        now = time.monotonic()
        if endpoint not in self._reported or now - self._reported[endpoint] > _REPORT_SECONDS:
            self._reported[endpoint] = now
            self._say(f"  {endpoint.url} is out of service until a health check succeeds: {endpoint.outage}")
        thread = threading.Thread(target=self._check_health, args=(endpoint,), name="health-check", daemon=True)
        self._health_checks = [t for t in self._health_checks if t.is_alive()] + [thread]
        thread.start()

    def _check_health(self, endpoint: Endpoint) -> None:
        """Probe the server at growing intervals; return it to service when it serves the same model as the others."""
        wait = self._policy.probe_wait
        while not self._closing.wait(self._retrier.pause(1, wait)):
            wait = min(_LONGEST_CHECK_WAIT, wait * 2)
            try:
                self._compare(endpoint, fingerprint(endpoint.api, self._served[endpoint]))
            except Interrupted:
                continue
            except (Transient, RowError, SelfAlignError) as error:
                self._fleet.take_out(endpoint, str(error))
            else:
                self._fleet.put_back(endpoint)
                return

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Do nothing: the servers keep their own prefix caches."""
        return "left to the servers' caches"

    def close(self) -> None:
        """End the health checks and close the connections."""
        self._closing.set()
        for thread in self._health_checks:
            thread.join(_CLOSE_SECONDS)
        for endpoint in self._fleet.endpoints:
            endpoint.api.close()
