"""Align language models from scratch, with principles and few human-written items (SELF-ALIGN, arXiv 2305.03047).

The Python interface is in `api` and `planning.prepare`; its modules are imported on first use. docs/python.md lists it.

The subpackages are the rooms of the code. A room imports only the rooms before it: system, data, quality, constitution,
model, training, generation, run, evaluation, planning, report, pipeline, export, web, cli. Each room's docstring says
what the room does and where to begin. `pipeline` is the method, one module per step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfalign.errors import SelfAlignError, UserError
from selfalign.system.version import __version__

if TYPE_CHECKING:
    from selfalign.api import Run, create, open_run
    from selfalign.planning.prepare import plan, plan_cluster

__all__ = ["Run", "SelfAlignError", "UserError", "__version__", "create", "open_run", "plan", "plan_cluster"]


def __getattr__(name: str) -> Any:
    if name in ("plan", "plan_cluster"):
        from selfalign.planning import prepare

        return getattr(prepare, name)
    if name in ("Run", "create", "open_run"):
        from selfalign import api

        return getattr(api, name)
    raise AttributeError(f"module 'selfalign' has no attribute {name!r}")
