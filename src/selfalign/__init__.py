"""Principle-driven self-alignment of language models from scratch (SELF-ALIGN, arXiv 2305.03047).

`create`, `open_run`, `plan`, `plan_cluster` and `Run` are the command line from Python (see `selfalign.api` and
`selfalign.planning`), loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfalign.errors import SelfAlignError, UserError

if TYPE_CHECKING:
    from selfalign.api import Run, create, open_run
    from selfalign.planning import plan, plan_cluster

__version__ = "0.1.0"
__all__ = ["Run", "SelfAlignError", "UserError", "__version__", "create", "open_run", "plan", "plan_cluster"]


def __getattr__(name: str) -> Any:
    if name in ("plan", "plan_cluster"):
        from selfalign import planning

        return getattr(planning, name)
    if name in ("Run", "create", "open_run"):
        from selfalign import api

        return getattr(api, name)
    raise AttributeError(f"module 'selfalign' has no attribute {name!r}")
