"""Scoring by a server that echoes prompts with their log-probabilities, as vLLM's `/v1/completions` does.

llama.cpp's and Ollama's give them for generated tokens only: that is seen at the first reply, and said.
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
"""The environment variable with the key of a server that is named on the command line."""


class ServerScorer(OpenAiApi):
    """One model behind a server.

    Args:
        url: the server's address.
        served: the model's id there.
        parallel: requests at once.

    Raises:
        UserError: the address is wrong.
    """

    def __init__(self, url: str, served: str, parallel: int = 8) -> None:
        config = EngineSettings.model_validate(
            {"url": url, "served": {"base": served}, "key_env": KEY if os.environ.get(KEY) else None}
        )
        super().__init__(config, parallel)
        self.name = f"{served} at {self.client.address.hostname}"
        self._asked = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens asked for, the same): what the server shares it does not say."""
        return self._asked, self._asked

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`. A continuation's tokens are those past as many as the context alone has.

        Raises:
            UserError: the server gives no log-probabilities of prompts.
            Resumable: it cannot be reached, or refuses.
        """
        contexts = list(dict.fromkeys(context for context, _ in requests))
        with ThreadPoolExecutor(self.parallel) as pool:
            lengths = dict(zip(contexts, pool.map(self._length, contexts), strict=True))
            return list(pool.map(lambda r: self._scored(r, lengths[r[0]]), requests))

    def _length(self, context: Pieces) -> int | None:
        """Tokens of a context by itself; None where it is too long."""
        try:
            return self._prompt_tokens(self._ask(as_text(context)[0], echo=False))
        except TooLong:
            return None

    def _scored(self, request: Text, before: int | None) -> Scored | None:
        context, continuation = request
        try:
            reply = self._ask(as_text((*context, continuation))[0], echo=True)
        except TooLong:
            return None
        if before is None:
            return None
        whole = self._prompt_tokens(reply)
        self._asked += whole
        logprobs = reply["choices"][0].get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list) or len(values) < whole:
            raise UserError(
                f"the server of {self.name} gives no log-probabilities of prompts (llama.cpp's completions give them "
                "for generated tokens only): name the model's weights in place of the address, and torch scores them"
            )
        if before >= whole:
            before = whole - 1  # the border lies inside the last token
        found = values[before:whole]
        if not all(isinstance(v, int | float) for v in found):
            raise UserError(f"the server of {self.name} leaves out log-probabilities of some tokens of a prompt")
        return Scored(tuple(float(v) for v in found))

    def _ask(self, text: str, echo: bool) -> dict[str, Any]:
        body = {"model": self._model(None), "prompt": text, "max_tokens": 1, "temperature": 0.0, "stream": False}
        if echo:
            body |= {"echo": True, "logprobs": 1}
        try:
            return self._retrier.call(lambda: self.complete(body))
        except TooLong:
            raise
        except RowError as error:
            raise Resumable(f"{self.name}: {error}; the same command goes on") from None

    def _prompt_tokens(self, reply: dict[str, Any]) -> int:
        usage = reply.get("usage")
        number = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(number, int) or number < 1:
            raise UserError(f"the server of {self.name} does not say how many tokens a prompt has (`usage`)")
        return number
