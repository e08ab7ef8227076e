"""The Hugging Face hub: who asks, what stands in a repository, one commit with an export's files.

Everything that the hub, the network or the library answers becomes one line, and the token is in none of them.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selfalign.errors import Resumable, SelfAlignError, UserError
from selfalign.export.record import RECORD
from selfalign.system.console import plain

_NAME = re.compile(r"\w(?:[\w.-]*\w)?/(?=.{1,96}$)\w(?:[\w.-]*\w)?", re.ASCII)
_SECONDS = (15, 300, 300, 15)
"""To connect, read, write, and wait for a connection: the library waits for ever."""
OF_THE_HUB = {".gitattributes"}
"""Files of a repository that is still empty."""
_AGAIN = "the same command goes on, and what was uploaded is not sent again"
OURS = "self-align"
"""The tag that our cards have."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What stands in a repository."""

    exists: bool
    private: bool = True
    files: tuple[str, ...] = ()
    commit: str | None = None
    """Of the revision that would be written to; None where there is none yet."""
    branch: bool = True
    """Whether that revision is there."""
    ours: bool = False
    """Whether it was pushed by selfalign; so is an empty one."""


def check_name(repo: str) -> None:
    """Raises UserError where that is no name of a repository."""
    if not _NAME.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise UserError(
            f"--to {plain(repo)[:120]!r} is no name of a repository: it is OWNER/NAME, of letters, digits and - _ . "
            "(not at an end, no -- or ..), NAME of at most 96"
        )


class Hub:
    """A session with the hub under the user's token, from HF_TOKEN or `hf auth login`; HF_ENDPOINT says where.

    Args:
        repo: OWNER/NAME.
        kind: model or dataset.
        revision: the branch to write to; main unless given.
        say: takes what the library has to tell meanwhile.

    Raises:
        UserError: the library or a token is missing, or the hub is switched off.
    """

    def __init__(self, repo: str, kind: str, revision: str | None, say: Callable[[str], None]) -> None:
        check_name(repo)
        try:
            from huggingface_hub import HfApi, constants, get_token
        except ImportError:
            raise UserError("a push needs huggingface_hub: pip install 'selfalign[hub]'") from None
        if constants.HF_HUB_OFFLINE:
            raise UserError("HF_HUB_OFFLINE is set: nothing is pushed without network. Unset it for this command")
        self.repo, self.kind, self._say = repo, kind, say
        self.revision = revision if revision != "main" else None
        self._token = ""
        self.host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
        with self._explained():
            self._token = get_token() or ""
        if not self._token:
            raise UserError("there is no token for the hub: `hf auth login`, or set HF_TOKEN (never as an argument)")
        if not re.fullmatch(r"[\x21-\x7e]+", self._token):
            raise UserError("the token for the hub has characters that no token has: set HF_TOKEN to it alone")
        self._api = HfApi(endpoint=constants.ENDPOINT, token=self._token, library_name="selfalign")

    @property
    def url(self) -> str:
        """Where the repository is for people."""
        return f"{self._api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def user(self) -> str:
        """Who the token belongs to.

        Raises:
            UserError: the hub does not know it, or it may only read.
            Resumable: the hub cannot be reached.
        """
        with self._explained():
            said = self._api.whoami()
        role = ((said.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise UserError("the token for the hub may only read: make one with the role write, in its settings")
        return plain(str(said.get("name", "")))

    def look(self) -> Remote:
        """What stands in the repository; one request, two with a revision. Raises as `user`."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with self._explained():
            try:
                found = self._api.repo_info(self.repo, repo_type=self.kind)
            except RepositoryNotFoundError:
                return Remote(False)
            branch = True
            if self.revision:
                try:
                    found = self._api.repo_info(self.repo, repo_type=self.kind, revision=self.revision)
                except RevisionNotFoundError:
                    branch = False
        files = tuple(sorted(file.rfilename for file in found.siblings or []))
        ours = set(files) <= OF_THE_HUB or (RECORD in files and OURS in (found.tags or []))
        return Remote(True, bool(found.private), files, found.sha if branch else None, branch, ours)

    def send(self, remote: Remote, folder: Path, files: list[str], message: str, private: bool) -> str:
        """Make the repository if it is not there, upload, commit once; returns the commit.

        Raises:
            UserError: the hub refuses it.
            Resumable: network or hub failed; nothing is seen of it there before the commit.
        """
        from huggingface_hub import CommitOperationAdd

        with self._explained(), self._heard():
            if not remote.exists:
                self._api.create_repo(self.repo, repo_type=self.kind, private=private)
            if self.revision and not (remote.exists and remote.branch):
                self._api.create_branch(self.repo, branch=self.revision, repo_type=self.kind, exist_ok=True)
            done = self._api.create_commit(
                self.repo,
                [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files],
                commit_message=message,
                repo_type=self.kind,
                revision=self.revision,
                parent_commit=remote.commit,
            )
        return str(done.oid)

    # -- what goes wrong -----------------------------------------------------------------------------------------

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """What the library logs and warns of meanwhile, as lines of ours: its own may hold signed addresses."""
        log = logging.getLogger("huggingface_hub")
        before, propagated = log.handlers[:], log.propagate
        log.handlers, log.propagate = [_Lines(lambda text: self._say(self._clean(text)))], False
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                yield
            for warning in warned:
                if warning.category is UserWarning:  # what the hub says of the card; others are for programmers
                    self._say(self._clean(str(warning.message)))
        finally:
            log.handlers, log.propagate = before, propagated

    def _clean(self, text: object) -> str:
        """One line without the token and without what stands behind an address's question mark."""
        line = " ".join(plain(str(text)).split())
        line = line.replace(self._token, "(token)") if self._token else line
        line = re.sub(r"\s*\(Request ID: [^)]*\)|(?<=//)[^/\s@]+@|(?<=\S)\?[^\s'\"]*", "", line)
        return line[:300]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            from huggingface_hub.utils import get_session

            get_session().timeout = _SECONDS
            yield
        except SelfAlignError:
            raise
        except Exception as error:
            known = self._known(error)
            if known is None:
                raise
            raise known from None

    def _known(self, error: BaseException) -> SelfAlignError | None:
        """The line for an error of the hub, the network or the library; None for one that is neither."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        chain = []
        link: BaseException | None = error
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        if any("xet-write-token" in str(e) and "404" in str(e) for e in chain):
            return UserError(f"the hub at {self.host} has no xet: with HF_HUB_DISABLE_XET=1 files go by LFS")
        answer = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
        if answer is not None and not str(error).startswith("Invalid metadata"):
            return self._refused(answer.response.status_code, answer.server_message or "")
        names = {type(e).__name__ for e in chain}
        if names & {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"}:
            return UserError(f"HF_ENDPOINT is no address of a hub ({self.host}): it is like https://huggingface.co")
        if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
            return UserError("HF_HUB_OFFLINE is set: nothing is pushed without network")
        if any(isinstance(e, HTTPError | ConnectionError | TimeoutError) for e in chain):
            return Resumable(f"the hub at {self.host} cannot be reached ({self._clean(chain[-1])}): {_AGAIN}")
        if "XetAuthenticationError" in names:
            return self._refused(403, "")
        if isinstance(error, RuntimeError):  # of the transfer library
            return Resumable(f"the upload to {self.host} failed ({self._clean(error)}): {_AGAIN}")
        if isinstance(error, ValueError):  # metadata of the card, or an answer that is no hub's
            return UserError(f"the hub at {self.host} does not take it: {self._clean(error)}")
        return None

    def _refused(self, status: int, said: str) -> SelfAlignError:
        """The line for a status."""
        why = f" ({status}: {self._clean(said)})" if said else f" ({status})"
        owner = self.repo.partition("/")[0]
        if status == 401:
            return UserError(f"the hub does not take the token{why}: `hf auth login`, or set HF_TOKEN to one of yours")
        if status == 403:
            return UserError(
                f"the token may not write to {self.repo}{why}: it needs the role write, and {owner} must be you or an "
                "organisation of yours"
            )
        if status == 404:
            return UserError(
                f"{self.repo} is not there, or not for this token{why}: look at OWNER, NAME and --revision"
            )
        if status in (409, 412):
            return Resumable(f"{self.repo} was made or changed by somebody meanwhile{why}: the same command looks anew")
        if status == 429:
            return Resumable(f"the hub asks to wait{why}: some minutes later {_AGAIN}")
        if status >= 500:
            return Resumable(f"the hub at {self.host} has a fault of its own{why}: {_AGAIN}")
        return UserError(f"the hub at {self.host} refuses it{why}")


class _Lines(logging.Handler):
    """Gives messages to a function."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        super().__init__(logging.WARNING)
        self._give = say

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith("No files have been modified"):  # which we say ourselves
            self._give(text)
