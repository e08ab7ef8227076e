"""Define the recipe's `executor`, `engine` and `align`: where and how responses are generated."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from selfalign.system.environment import accelerators, processor_dtype
from selfalign.system.strict_yaml import Strict

Probability = Field(gt=0, le=1)
Temperature = Field(ge=0, le=5)
Tokens = Field(ge=1, le=32768)


def _auto_or_number(least: int, most: int, whole: bool = True) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        is_number = type(value) is int or (not whole and type(value) is float)
        if value == "auto" or (is_number and least <= value <= most):
            return value
        kind = "whole number" if whole else "number"
        raise ValueError(f"{info.field_name} is {value!r}: expected auto or a {kind} from {least} to {most}")

    return BeforeValidator(check)


class ExecutorSettings(Strict):
    """Where requests run. `executor: ray` is short for `executor: {kind: ray}`."""

    kind: Literal["local", "ray"] = "local"
    """local: in this process; ray: by the workers of a Ray cluster, each with its own engine (docs/cluster.md)."""
    address: str | None = None
    """ray: null starts a cluster on this machine that ends with the command; auto connects to the cluster that this
    machine belongs to; HOST:PORT is the head node of a cluster."""
    workers: Annotated[int | Literal["auto"], _auto_or_number(1, 10_000)] = "auto"
    """ray: number of workers. auto: one for each `gpus` accelerators, or one per machine if workers take none."""
    cpus: Annotated[float | Literal["auto"], _auto_or_number(0, 1024, whole=False)] = "auto"
    """ray: CPUs per worker. auto: an equal share of the machine's CPUs, or 1 for a worker with an accelerator."""
    gpus: Annotated[float | Literal["auto"], _auto_or_number(0, 1024, whole=False)] = "auto"
    """ray: accelerators per worker. auto: `engine.tensor_parallel_size` for vllm on a cluster with accelerators, else
    0."""
    start_seconds: float = Field(1800.0, gt=0)
    """ray: seconds that a worker may take to load its engine, and that the run waits while no worker is running."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None or value == "auto" or re.fullmatch(r"[\w.-]+:\d{1,5}", value):
            return value
        raise ValueError(f"address is {value!r}: expected auto or HOST:PORT of the head node, such as 10.0.0.5:6379")


_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class ServerSettings(Strict):
    """One of several servers: an address, or a mapping with the settings that differ from those in `engine`."""

    url: str
    served: dict[str, str] = {}
    """Model ids on this server that differ from `engine.served`."""
    key_env: str | None = Field(None, pattern=_VARIABLE)
    """The environment variable that holds this server's key; null: as `engine.key_env`."""
    slots: int | None = Field(None, ge=1, le=1024)
    """Maximum concurrent requests to this server; null: as `engine.slots`."""


def _servers(value: Any) -> Any:
    return [{"url": s} if isinstance(s, str) else s for s in value] if isinstance(value, list) else value


class EngineSettings(Strict):
    """The engine that generates responses."""

    kind: Literal["auto", "llama_cpp", "torch", "vllm", "vllm_server", "openai", "fake"] = "auto"
    """auto: openai if `url` or `urls` is set; on an accelerator vllm_server if vLLM is installed, else torch; otherwise
    llama_cpp, or torch for a model without a GGUF."""
    url: str | None = None
    """openai: the server's address, such as http://127.0.0.1:8080/v1."""
    urls: Annotated[
        list[ServerSettings] | None,
        BeforeValidator(_servers, json_schema_input_type=list[str | ServerSettings] | None),
    ] = None
    """openai: addresses of several servers of the same model, in place of `url`; faster servers get more requests. A
    server with other settings is a mapping: `{url, served, key_env, slots}`."""
    served: dict[str, str] = {}
    """openai: the server's model ids of the base model (`base`) and, once they are trained, of the models with the
    adapters (`engrave`, `verbose_cloning`)."""
    key_env: str | None = Field(None, pattern=_VARIABLE)
    """openai: the environment variable that holds the server's key. The key itself is never written to a file."""
    attempts: int = Field(6, ge=1, le=100)
    """openai: maximum attempts per request."""
    timeout: float = Field(60.0, gt=0, le=3600)
    """openai: seconds without data from the server after which an attempt fails."""

    slots: Annotated[int | Literal["auto"], _auto_or_number(1, 1024)] = "auto"
    """Concurrent requests; with several servers, the maximum per server. auto: for llama_cpp the fastest number in a
    short measurement of this machine, 64 for torch and for vLLM on an accelerator, else 8."""
    context: int = Field(4096, ge=256, le=131072)
    """Context size in tokens, per slot."""
    threads: int = Field(0, ge=0)
    """llama_cpp: CPU threads; 0: all cores that this process may use."""
    vllm_python: str | None = None
    """vllm_server: the Python of an environment with vLLM. null: that of `selfalign setup vllm`, or else selfalign's
    own."""
    start_seconds: float = Field(1800.0, gt=0)
    """vllm_server: maximum seconds from the start of vLLM until it answers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """vLLM and torch: the type to compute in. auto: on an accelerator bfloat16 (torch) or vLLM's choice; on a CPU
    bfloat16 if a short test finds it faster, else float32."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """vLLM: number of accelerators that share one copy of the model; a Ray worker takes as many."""
    top_k: int = Field(1000, ge=0)
    """Draw from the k most likely tokens, before top_p. 0: no limit, which halves the speed with a vocabulary of
    262,144 tokens (benchmarks/sampling.py)."""

    @model_validator(mode="after")
    def _served(self) -> EngineSettings:
        known = ("base", "engrave", "verbose_cloning")
        named = [*self.served, *(name for server in self.urls or () for name in server.served)]
        if wrong := next((name for name in named if name not in known), None):
            raise ValueError(f"served has an entry {wrong!r}; the models are {', '.join(known)}")
        if self.urls is not None and self.url is not None:
            raise ValueError("url and urls are both set: use url for one server, urls for several")
        if self.urls == []:
            raise ValueError("urls is an empty list: name a server, or remove the key")
        return self

    def vllm_dtype(self) -> str:
        """Return the dtype for vLLM. `auto` is resolved by a measurement on a CPU, and by vLLM on an accelerator."""
        return processor_dtype() if self.dtype == "auto" and not accelerators() else self.dtype


class AlignSettings(Strict):
    """How stage 2 generates responses under the constitution."""

    form: Literal["guided", "paper", "given"] = "guided"
    """guided: generate the internal thoughts up to the end of their line, append the response's cue, then generate the
    response; paper: generate both in one pass; given: take the responses from `prompts.file`."""
    temperature: float = Temperature
    top_p: float = Probability
    max_new_tokens: int = Tokens
    max_thought_tokens: int = Field(80, ge=8)
    repetition: float = Field(1.0, ge=0, le=10)
    """Penalty on the token that would repeat a sequence of 7 tokens (in one pass 6) in internal thoughts and response,
    doubled for each further token; 0 is off, as in the paper."""
    samples: int = Field(1, ge=1, le=16)
    """Maximum responses per prompt. See `rank`."""
    rank: Literal["first", "contrast"] = "first"
    """first: generate responses until one passes the filters and shows the behaviour that the prompt's type requires
    (its `check`); contrast: generate all `samples`, and of those that pass, keep the one whose likelihood the
    constitution raises most (docs/recipe.md)."""
    exemplars: Literal["by_type", "fixed"] = "by_type"
    """by_type: show the exemplars of the prompt's question type, or the general ones for a prompt without a type;
    fixed: show the general exemplars for every prompt, as in the paper."""
    hints: bool = False
    """Begin the internal thoughts with the principles that the question's type suggests."""
