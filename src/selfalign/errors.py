"""Define the errors that end a command with one line instead of a traceback, and their exit codes.

SelfAlignError
├── UserError           1   the user's input is wrong
├── TooManyFailed       3   the stage finished, but more rows failed than the recipe allows
├── Resumable          75   the machine stopped the run (disk, engine); the same command resumes it
├── Interrupted   130/143   a signal stopped the run; the same command resumes it
└── CountMismatch       1   rows were lost or duplicated: in != kept + dropped + failed
"""

from __future__ import annotations

import signal


class SelfAlignError(Exception):
    """An expected error. Its text is one line that explains it."""

    exit_code = 1


class UserError(SelfAlignError):
    """The user's input is wrong. The text states the problem, the value, the place and the remedy."""


class TooManyFailed(SelfAlignError):
    """More rows failed than the recipe's `max_failed` allows; the other rows are kept."""

    exit_code = 3


class Resumable(SelfAlignError):
    """The machine stopped the run; finished work is kept."""

    exit_code = 75


class Interrupted(SelfAlignError):
    """A signal stopped the run; finished work is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command again to resume")
        self.exit_code = 128 + signum


class CountMismatch(SelfAlignError):
    """The counts of a stage do not add up. This is a bug, not a mistake of the user."""
