"""Score by a server that echoes prompts with their log-probabilities, as vLLM's `/v1/completions` does.

The servers of llama.cpp and Ollama return them for generated tokens only, which is an error at the first reply.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Resumable, UserError
from selfalign.generation.engines.base import RowError, TooLong
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.scoring.base import Scored, Text
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import as_text

KEY = "SELFALIGN_API_KEY"
"""The environment variable with the key of a server that the command line names."""


class ServerScorer(OpenAiApi):
    """A scorer of one model on a server. See `Scorer`.

    Args:
        url: the server's address.
        served: the server's id of the model.
        parallel: concurrent requests.

    Raises:
        UserError: the address is invalid.
    """

    def __init__(self, url: str, served: str, parallel: int = 8) -> None:
        config = EngineSettings.model_validate(
            {"url": url, "served": {"base": served}, "key_env": KEY if os.environ.get(KEY) else None}
        )
        super().__init__(config, parallel)
        self.name = f"{served} at {self.client.address.hostname}"
        self._tokens = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Scorer`. Both numbers are equal, since a server does not report what it took from its cache."""
        return self._tokens, self._tokens

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`. A continuation begins after as many tokens as its context has when encoded alone.

        Raises:
            UserError: the server returns no log-probabilities of prompts.
            Resumable: the server cannot be reached, or refuses.
        """
        contexts = list(dict.fromkeys(context for context, _ in requests))
        with ThreadPoolExecutor(self.parallel) as pool:
            lengths = dict(zip(contexts, pool.map(self._context_length, contexts), strict=True))
            return list(pool.map(lambda r: self._score(r, lengths[r[0]]), requests))

    def _context_length(self, context: Pieces) -> int | None:
        """Return the number of tokens of a context; None if it is too long."""
        try:
            return self._prompt_tokens(self._ask(as_text(context)[0], echo=False))
        except TooLong:
            return None

    def _score(self, request: Text, context_length: int | None) -> Scored | None:
        context, continuation = request
        try:
            reply = self._ask(as_text((*context, continuation))[0], echo=True)
        except TooLong:
            return None
        if context_length is None:
            return None
        length = self._prompt_tokens(reply)
        self._tokens += length
        logprobs = reply["choices"][0].get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list) or len(values) < length:
            raise UserError(
                f"the server of {self.name} returns no log-probabilities of prompts (llama.cpp: of generated "
                "tokens only): name the model's weights in place of the address to score by torch"
            )
        start = min(context_length, length - 1)  # the last token may hold both context and continuation
        logprobs = values[start:length]
        if not all(isinstance(v, int | float) for v in logprobs):
            raise UserError(f"the server of {self.name} returns no log-probabilities of some tokens of a prompt")
        return Scored(tuple(float(v) for v in logprobs))

    def _ask(self, text: str, echo: bool) -> dict[str, Any]:
        body = {"model": self._model(None), "prompt": text, "max_tokens": 1, "temperature": 0.0, "stream": False}
        if echo:
            body |= {"echo": True, "logprobs": 1}
        try:
            return self._retrier.call(lambda: self.complete(body))
        except TooLong:
            raise
        except RowError as error:
            raise Resumable(f"{self.name}: {error}; run the same command again to resume") from None

    def _prompt_tokens(self, reply: dict[str, Any]) -> int:
        usage = reply.get("usage")
        number = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(number, int) or number < 1:
            raise UserError(f"the server of {self.name} does not report the tokens of a prompt (`usage`)")
        return number
