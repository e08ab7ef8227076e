"""A push: an export's files to a repository on the hub, after it was said what leaves and somebody agreed.

Never by itself: no stage, no recipe and no other verb pushes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from selfalign.errors import UserError
from selfalign.export import parcel as parcels
from selfalign.export.hub import OF_THE_HUB, Hub, Remote, check_name
from selfalign.export.parcel import Parcel
from selfalign.system.console import Screen
from selfalign.system.signals import STOP

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to, and how."""

    repo: str
    """OWNER/NAME."""
    public: bool = False
    """A new repository is for everybody; needed, too, to write to one that is."""
    revision: str | None = None
    """The branch; main unless given. It is made if it is not there."""
    message: str = ""
    force: bool = False
    """Write to a repository that selfalign did not fill."""


def described(parcel: Parcel, wanted: Wanted) -> list[str]:
    """What a push would send, without asking anybody: for --dry-run."""
    check_name(wanted.repo)
    seen = "public" if wanted.public else "private"
    where = f"{parcel.kind} {wanted.repo}{f', branch {wanted.revision}' if wanted.revision else ''}"
    return [f"to the {where}, {seen} if it is new:", *parcels.listing(parcel), "nothing was sent"]


def push(folder: Path, wanted: Wanted, agreed: Callable[[list[str]], bool], screen: Screen) -> str | None:
    """Send the export in that folder; returns the repository's address, or None where it was not agreed to.

    Files of the repository that the export does not have stay. Until the one commit at the end nothing is seen there.

    Args:
        agreed: is given what would happen, a line each, and decides.

    Raises:
        UserError: the folder is no export as it was made, there is no token, the hub refuses it, the repository is
            somebody's own work or public without `wanted.public`.
        Resumable: the hub or the network failed; the same again goes on.
        Interrupted: a signal came; nothing was committed.
    """
    parcel = parcels.look(folder)
    hub = Hub(wanted.repo, parcel.kind, wanted.revision, lambda text: screen.say(f"  {text}", "yellow"))
    user = _watched(hub.user)
    remote = _watched(hub.look)
    _check(remote, wanted)
    if not agreed([f"as {user}, {_where(hub, remote, parcel, wanted)}", *parcels.listing(parcel)]):
        return None
    message = wanted.message or f"Upload {parcel.form} with selfalign"
    before = remote.commit
    with _bars(screen):
        commit = _watched(lambda: hub.send(remote, parcel.folder, [*parcel.files], message, not wanted.public))
    screen.say("  nothing was new: the repository has it already" if commit == before else f"  commit {commit[:12]}")
    return hub.url


def _check(remote: Remote, wanted: Wanted) -> None:
    if not remote.exists:
        return
    if not remote.ours and not wanted.force:
        some = ", ".join(remote.files[:3])
        raise UserError(
            f"{wanted.repo} holds what selfalign did not push ({some}{', …' if len(remote.files) > 3 else ''}): name "
            "another --to, or --force writes our files beside and over them"
        )
    if not remote.private and not wanted.public:
        raise UserError(f"{wanted.repo} is public: --public says that this may be, or name another --to")


def _where(hub: Hub, remote: Remote, parcel: Parcel, wanted: Wanted) -> str:
    branch = f", branch {wanted.revision}" if wanted.revision else ""
    if not remote.exists:
        seen = "PUBLIC: everybody can read it" if wanted.public else "private"
        return f"to the new {parcel.kind} {hub.url}{branch} ({seen}):"
    seen = "private" if remote.private else "PUBLIC: everybody can read it"
    if remote.private and wanted.public:
        seen = "private, and stays so: its settings on the hub change that"
    over = sum(name in parcel.files for name in remote.files)
    stay = len({*remote.files} - OF_THE_HUB) - over
    return f"to the {parcel.kind} {hub.url}{branch} ({seen}; {over} of its files are replaced, {stay} stay):"


class _bars:
    """The library's progress bars, where somebody looks."""

    def __init__(self, screen: Screen) -> None:
        self._hide = screen.verbosity < 0 or not screen.console.is_terminal

    def __enter__(self) -> None:
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

        self._hide = self._hide and not are_progress_bars_disabled()
        if self._hide:
            disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        from huggingface_hub.utils import enable_progress_bars

        if self._hide:
            enable_progress_bars()


def _watched(work: Callable[[], T]) -> T:
    """The work in a thread of its own, so that a signal ends it at once: there is nothing of it to be saved."""
    found: list[T] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, name="push", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        STOP.check()
    if failed:
        raise failed[0]
    return found[0]
