"""The recipe's part that says where requests are answered. Nothing that a run makes follows from it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from selfalign.system.strict_yaml import Strict

Probability = Field(gt=0, le=1)
Temperature = Field(ge=0, le=5)
Tokens = Field(ge=1, le=32768)


class ExecutorSettings(Strict):
    """`executor: ray` is short for `executor: {kind: ray}`."""

    kind: Literal["local", "ray"] = "local"
    """local: this process; ray: workers of a Ray cluster, each with an engine of its own (docs/cluster.md)."""
    address: str | None = None
    """ray: null starts a cluster on this machine that ends with the command; auto takes the one that this machine
    belongs to; HOST:PORT is a cluster's head node."""
    workers: int | Literal["auto"] = Field("auto")
    """ray: engines. auto: one for each `gpus` accelerators, or where there are none, one a machine."""
    cpus: float | Literal["auto"] = Field("auto")
    """ray: processors that a worker takes. auto: its share of its machine's, or 1 beside an accelerator."""
    gpus: float | Literal["auto"] = Field("auto")
    """ray: accelerators that a worker takes. auto: for vllm `engine.tensor_parallel_size` (1) where the cluster
    has any, else 0."""
    start_seconds: float = Field(1800.0, gt=0)
    """ray: for so long a worker may take to load its engine, and may no worker be there, before the run stops."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= 10_000):
            return value
        raise ValueError(f"workers is {value!r}: auto, or a number from 1")

    @field_validator("cpus", "gpus", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        if value == "auto":
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1024:
            return float(value)
        raise ValueError(f"{value!r} is neither auto nor a number from 0")

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None or value == "auto" or re.fullmatch(r"[\w.-]+:\d{1,5}", value):
            return value
        raise ValueError(f"address {value!r} is not auto or HOST:PORT (the head node's, as 10.0.0.5:6379)")


_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _as_server(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


def _or_address(schema: dict[str, Any]) -> None:
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string"}, whole]


class ServerSettings(Strict):
    """One of several servers: its address, or a mapping where it differs from what `engine` says."""

    model_config = ConfigDict(json_schema_extra=_or_address)
    _address = model_validator(mode="before")(_as_server)

    url: str
    served: dict[str, str] = {}
    """Model ids that are others there."""
    key_env: str | None = Field(None, pattern=_VARIABLE)
    """The environment variable with its key, if it is another."""
    slots: int | None = Field(None, ge=1, le=1024)
    """Requests at once there, at most; null: as `engine.slots`."""


class EngineSettings(Strict):
    kind: Literal["auto", "llama_cpp", "vllm", "openai", "fake"] = "auto"
    """auto takes openai where `url` or `urls` is given, vllm where it is installed beside an accelerator, else
    llama_cpp."""
    url: str | None = None
    """openai: the server's address, as http://127.0.0.1:8080/v1."""
    urls: list[ServerSettings] | None = None
    """openai: the addresses of several servers of the same model, in place of `url`; the work is shared by speed. One
    that differs is a mapping: `{url, served, key_env, slots}`."""
    served: dict[str, str] = {}
    """openai: the model ids under which the server has the base and, once they are trained, the adapters."""
    key_env: str | None = Field(None, pattern=_VARIABLE)
    """openai: the environment variable that holds the server's key. The key itself never stands in a file."""
    attempts: int = Field(6, ge=1, le=100)
    """openai: tries of one request."""
    timeout: float = Field(60.0, gt=0, le=3600)
    """openai: seconds without a sign from the server after which a try has failed."""

    @model_validator(mode="after")
    def _served(self) -> EngineSettings:
        known = ("base", "engrave", "verbose_cloning")
        named = [*self.served, *(name for server in self.urls or () for name in server.served)]
        if wrong := next((name for name in named if name not in known), None):
            raise ValueError(f"served names the models {', '.join(known)}, not {wrong!r}")
        if self.urls is not None and self.url is not None:
            raise ValueError("url and urls are both given: give one server as url, several as urls")
        if self.urls == []:
            raise ValueError("urls is an empty list: name a server, or leave it out")
        return self

    @field_validator("slots", mode="before")
    @classmethod
    def _slots(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= 1024):
            return value
        raise ValueError(f"slots is {value!r}: auto, or a number from 1 to 1024")

    slots: int | Literal["auto"] = Field("auto")
    """Requests generated at once; of several servers, at each at most. auto: for llama_cpp what a short measurement of
    this machine finds best, 64 for vllm on an accelerator, else 8."""
    context: int = Field(4096, ge=256, le=131072)
    """Tokens of context per slot."""
    threads: int = Field(0, ge=0)
    """0: all cores that this process may use."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """vllm: the type to compute in. auto: bfloat16 where this machine is really faster in it, else float32."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """vllm: accelerators that one copy of the model is tensor_parallel_size over; a Ray worker then takes so many."""
    top_k: int = Field(1000, ge=0)
    """Draw from the k most likely tokens, then top_p. 0 is no limit: with a vocabulary of 262,144 tokens that halves
    the speed (benchmarks/sampling.py)."""


class AlignSettings(Strict):
    form: Literal["guided", "paper", "given"] = "guided"
    """guided: the thoughts end with their line, then the answer's cue is given; paper: one pass; given: nothing is
    generated, the answers are those of `prompts.file`."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens
    max_thought_tokens: int = Field(80, ge=8)
    repetition: float = Field(1.0, ge=0, le=10)
    """Penalty on repeated 3-grams in thoughts and answer, doubled for each token more; 0 is off, as in the paper."""
    hints: bool = False
    """Begin the thoughts with the principles that the question's type hints at."""
