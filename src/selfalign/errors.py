"""What can go wrong, and with which exit code the command ends.

SelfAlignError
├── UserError           1   something the user gave is wrong: one line, no traceback
├── TooManyFailed       3   the stage finished, but more rows failed than the recipe allows
├── Resumable          75   stopped by the machine (disk, engine); the same command goes on
├── Interrupted   130/143   stopped by a signal; the same command goes on
└── CountMismatch       1   rows were lost or doubled: in != kept + dropped + failed
"""

from __future__ import annotations

import signal


class SelfAlignError(Exception):
    """An end of the command that is explained in one line."""

    exit_code = 1


class UserError(SelfAlignError):
    """What was wrong, the value, where, and what to do."""


class TooManyFailed(SelfAlignError):
    """More rows failed than `max_failed` of the recipe allows; the rest is kept."""

    exit_code = 3


class Resumable(SelfAlignError):
    """The machine stopped the run; nothing done so far is lost."""

    exit_code = 75


class Interrupted(SelfAlignError):
    """A signal stopped the run; nothing done so far is lost."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from here")
        self.exit_code = 128 + signum


class CountMismatch(SelfAlignError):
    """A stage's counts do not balance: a bug of ours, never the user's mistake."""
