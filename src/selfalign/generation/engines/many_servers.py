"""Several OpenAI-compatible servers of the same model as one engine.

The work goes where it will likely be answered first, each server gets as much at once as it bears, and what one fails
another takes over. A server that fails is left alone, asked in the background, and comes back when it is well and
still serves the same model. Where all are gone, what happens is what happens with one (see `retries`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Interrupted, SelfAlignError, UserError
from selfalign.generation.engines.base import Part, RowError, Step
from selfalign.generation.engines.fleet import Endpoint, Fleet, Ticket
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.engines.same_model import Portrait, difference, portrait
from selfalign.generation.engines.server_client import base_url, parse_addresses
from selfalign.generation.retries import Failover, Retrier, RetryPolicy, Transient
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer

_LONGEST_PROBE = 30.0
"""Seconds between two looks at a server that is away, at most."""
_CLOSE_SECONDS = 2.0
_SAY_EVERY = 300.0
"""Seconds between two lines about the same server: the end of a stage has the sum."""


class ManyServers:
    """See `Engine`.

    Args:
        config: addresses, model ids, limits.
        slots: requests at once at each server, at most, where the recipe does not say otherwise for it.
        policy: retries.
        tokenizer: the base model's; without it the servers get text.
        say: told when a server leaves.

    Raises:
        UserError: an address, or a variable with a key, is wrong or missing; two servers serve different models.
        Resumable: a server refuses everybody, or lacks the model.
        Interrupted: a signal came while they were asked.
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
        self._retrier = Retrier(self._policy, clock=self._time)
        self._own = threading.local()
        """Of each thread: the seconds it waited for a server, and what it asked last."""
        self._say, self._closing = say, threading.Event()
        self._nurses: list[threading.Thread] = []
        self._said: dict[Endpoint, float] = {}
        self._reference: tuple[Endpoint, Portrait] | None = None
        self._meeting = threading.Lock()
        self._text_only = tokenizer is None
        self._served: dict[Endpoint, dict[str, str]] = {}
        for parts, server in zip(parse_addresses(config), config.urls or (), strict=True):
            name, served = base_url(parts), {**config.served, **server.served}
            key = server.key_env or config.key_env
            own = config.model_copy(update={"url": server.url, "urls": None, "served": served, "key_env": key})
            endpoint = Endpoint(OpenAiApi(own, slots, policy, tokenizer, name), name, server.slots or slots)
            self._served[endpoint] = served
        self._fleet = Fleet(list(self._served), self._left)
        self.parallel = sum(e.window.limit for e in self._served)
        try:
            self._meet_all()
        except BaseException:
            self.close()
            raise

    @property
    def note(self) -> str:
        """What the user should know: who gets text, and what each server did so far, a line each."""
        texts = [e.api.note for e in self._fleet.endpoints if e.api.note]
        if self._text_only:
            texts = ["the servers get text: the model's tokenizer is not here"]
        used = any(e.requests or e.errors for e in self._fleet.endpoints)
        return "\n  ".join(texts + (self._fleet.lines() if used or self._fleet.troubles() else []))

    def generate(
        self,
        prompt: Pieces,
        step: Step,
        seed: int,
        adapter: str | None,
        on_text: Callable[[str], bool] | None = None,
    ) -> Part:
        """See `Engine.generate`. Text comes at once, not in stretches.

        Raises:
            RowError: this prompt cannot be answered.
            Resumable: no server answers anyone.
            Interrupted: a signal came before the request was begun.
        """
        ticket = Ticket(prefer=self._of_step_before(prompt, adapter))
        ticket.begun = ticket.prefer is not None
        part = self._retrier.call(lambda: self._once(ticket, prompt, step, seed, adapter))
        self._own.last = (prompt, adapter, ticket.prefer)
        if on_text is not None:
            on_text(part.text)
        return part

    def _of_step_before(self, prompt: Pieces, adapter: str | None) -> Endpoint | None:
        """The server that answered what this prompt goes on from: a request's steps come from one thread."""
        before: tuple[Pieces, str | None, Endpoint | None] = getattr(self._own, "last", ((), None, None))
        known = before[0] and before[1] == adapter and prompt[: len(before[0])] == before[0]
        return before[2] if known else None

    def _once(self, ticket: Ticket, prompt: Pieces, step: Step, seed: int, adapter: str | None) -> Part:
        """One try, at one server."""
        endpoint = self._place(ticket)
        if endpoint is None:
            raise Transient(f"no server is in service: {self._fleet.troubles()}", failure="unreachable")
        ticket.begun = True
        begun = time.monotonic()
        try:
            part = endpoint.api.generate_once(prompt, step, seed, adapter)
        except Transient as error:
            others = self._fleet.failed(endpoint, ticket, error, self._retrier.pause)
            # A reply that the request may be to blame for is a try of its own: it would go round all servers for ever.
            _again(error, others and error.failure != "bad reply")
        except RowError:
            self._fleet.refused(endpoint)
            raise
        except SelfAlignError as error:
            _again(error, self._fleet.lost(endpoint, ticket, str(error)))
        except BaseException:
            self._fleet.dropped(endpoint)
            raise
        self._fleet.finished(endpoint, ticket, time.monotonic() - begun, part.generated_tokens)
        ticket.prefer = endpoint
        ticket.tried.clear()
        return part

    def _place(self, ticket: Ticket) -> Endpoint | None:
        start = time.monotonic()
        try:
            return self._fleet.take(ticket)
        finally:
            self._own.waited = getattr(self._own, "waited", 0.0) + time.monotonic() - start

    def _time(self) -> float:
        """A clock that stands while the thread waits for room: that is no failure of the request's."""
        waited: float = getattr(self._own, "waited", 0.0)
        return time.monotonic() - waited

    # -- meeting the servers, at the start and when they come back --------------------------------------------------

    def _meet_all(self) -> None:
        endpoints = [e for e in self._fleet.endpoints if self._served[e]]
        with ThreadPoolExecutor(len(self._served)) as pool:
            met = [pool.submit(portrait, e.api, self._served[e]) for e in endpoints]
        for endpoint, asked in zip(endpoints, met, strict=True):
            try:
                self._compare(endpoint, asked.result())
            except Transient as error:
                self._fleet.leave(endpoint, str(error))
            except RowError as error:
                raise UserError(f"{endpoint.title} completes no plain text: {error}") from None

    def _compare(self, endpoint: Endpoint, seen: Portrait) -> None:
        """Raises UserError where the server does not serve what the first one does."""
        with self._meeting:
            if self._reference is None:
                self._reference = endpoint, seen
                return
        first, known = self._reference
        if wrong := difference(known, seen):
            raise UserError(f"{endpoint.title} serves another model than {first.title}: {wrong}")

    def _left(self, endpoint: Endpoint) -> None:
        """The fleet leaves a server alone: somebody must look after it."""
        if self._closing.is_set():
            return
        now = time.monotonic()
        if endpoint not in self._said or now - self._said[endpoint] > _SAY_EVERY:
            self._said[endpoint] = now
            self._say(f"  {endpoint.title} is left alone until it is well: {endpoint.away}")
        thread = threading.Thread(target=self._nurse, args=(endpoint,), name="server-probe", daemon=True)
        self._nurses = [t for t in self._nurses if t.is_alive()] + [thread]
        thread.start()

    def _nurse(self, endpoint: Endpoint) -> None:
        """Ask the server now and then; put it back when it answers as the others do."""
        wait = self._policy.probe_wait
        while not self._closing.wait(self._retrier.pause(1, wait)):
            wait = min(_LONGEST_PROBE, wait * 2)
            try:
                self._compare(endpoint, portrait(endpoint.api, self._served[endpoint]))
            except Interrupted:
                continue
            except (Transient, RowError, SelfAlignError) as error:
                self._fleet.leave(endpoint, str(error))
            else:
                self._fleet.back(endpoint)
                return

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """The servers keep their own prefix caches."""
        return "left to the servers' caches"

    def close(self) -> None:
        """Close the connections that are kept open, and look after no server any more."""
        self._closing.set()
        for thread in self._nurses:
            thread.join(_CLOSE_SECONDS)
        for endpoint in self._fleet.endpoints:
            endpoint.api.close()


def _again(error: Transient | SelfAlignError, elsewhere: bool) -> NoReturn:
    if elsewhere:
        raise Failover(str(error)) from None
    raise error
