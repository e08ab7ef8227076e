"""The recipe's part that says where requests are answered. Nothing that a run makes follows from it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from selfalign.strict import Strict


class Executor(Strict):
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
    """ray: accelerators that a worker takes. auto: for vllm `engine.tensor_parallel` (1) where the cluster
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
