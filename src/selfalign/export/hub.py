"""Read and write a repository on the Hugging Face hub through `HfApi`, and turn every error into one line.

No message contains the token or a signed address.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selfalign.errors import Resumable, SelfAlignError, UserError
from selfalign.export.record import RECORD
from selfalign.system.console import plain

_NAME = re.compile(r"\w(?:[\w.-]*\w)?/(?=.{1,96}$)\w(?:[\w.-]*\w)?", re.ASCII)
_TIMEOUTS = (15, 300, 300, 15)
"""Seconds to connect, to read, to write, and to wait for a connection. The library's default is no limit."""
CREATED_BY_HUB = {".gitattributes"}
"""Files that a new repository contains."""
_RETRY = "run the same command again; files that were uploaded are not sent again"
TAG = "self-align"
"""The tag on the cards of all exports."""


@dataclass(frozen=True, slots=True)
class Repository:
    """The state of a repository before a push."""

    exists: bool
    private: bool = True
    files: tuple[str, ...] = ()
    commit: str | None = None
    """The head of the branch to write to; None if the branch does not exist."""
    from_selfalign: bool = False
    """Whether it is empty or contains an earlier push."""


def check_name(repo: str) -> None:
    """Raise UserError if this is not a valid repository name."""
    if not _NAME.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise UserError(
            f"--to {plain(repo)[:120]!r} is not a repository name: use OWNER/NAME with letters, digits and - _ . (not "
            "at the start or the end, and no -- or ..); NAME has at most 96 characters"
        )


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Hide the library's log messages and warnings, which may contain signed addresses."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


class Hub:
    """A repository on the hub, with the user's token from HF_TOKEN or `hf auth login`; HF_ENDPOINT sets the hub.

    Args:
        repo: OWNER/NAME.
        repo_type: model or dataset.
        revision: the branch to write to; main if None.

    Raises:
        UserError: the library or a token is missing, or HF_HUB_OFFLINE is set.
    """

    def __init__(self, repo: str, repo_type: str, revision: str | None) -> None:
        check_name(repo)
        try:
            from huggingface_hub import HfApi, constants, get_token
        except ImportError:
            raise UserError("a push needs huggingface_hub: pip install 'selfalign[hub]'") from None
        if constants.HF_HUB_OFFLINE:
            raise UserError("HF_HUB_OFFLINE is set: unset it to push")
        self.repo = repo
        self._target = {"repo_id": repo, "repo_type": repo_type}
        self._branch = revision if revision != "main" else None
        self._host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
        self._token = ""
        with self._explained():
            self._token = get_token() or ""
        if not self._token:
            raise UserError("no token for the hub: run `hf auth login`, or set HF_TOKEN")
        if not re.fullmatch(r"[\x21-\x7e]+", self._token):
            raise UserError("the token for the hub contains invalid characters: set HF_TOKEN to the token only")
        self._api: Any = HfApi(endpoint=constants.ENDPOINT, token=self._token, library_name="selfalign")
        self.url = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"

    def user(self) -> str:
        """Return the name of the token's owner.

        Raises:
            UserError: the hub rejects the token, or it is read-only.
            Resumable: the hub cannot be reached.
        """
        with self._explained():
            user = self._api.whoami()
        if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise UserError("the token for the hub is read-only: create one with the role write in the hub's settings")
        return plain(str(user.get("name", "")))

    def repository(self) -> Repository:
        """Return the state of the repository. Raises the errors of `user`."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with self._explained():
            try:
                info = self._api.repo_info(**self._target)
            except RepositoryNotFoundError:
                return Repository(False)
            commit = info.sha
            if self._branch:
                try:
                    info = self._api.repo_info(**self._target, revision=self._branch)
                    commit = info.sha
                except RevisionNotFoundError:
                    commit = None
        files = tuple(sorted(file.rfilename for file in info.siblings or []))
        from_selfalign = set(files) <= CREATED_BY_HUB or (RECORD in files and TAG in (info.tags or []))
        return Repository(True, bool(info.private), files, commit, from_selfalign)

    def commit(self, before: Repository, folder: Path, files: list[str], message: str, private: bool) -> str:
        """Create the repository and the branch if needed, upload the files, and return the new commit.

        Raises:
            UserError: the hub refuses the upload.
            Resumable: the network or the hub failed; the repository is unchanged.
        """
        from huggingface_hub import CommitOperationAdd

        with self._explained(), _quiet_library():
            if not before.exists:
                self._api.create_repo(**self._target, private=private)
            if self._branch and before.commit is None:
                self._api.create_branch(**self._target, branch=self._branch, exist_ok=True)
            done = self._api.create_commit(
                **self._target,
                operations=[CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files],
                commit_message=message,
                revision=self._branch,
                parent_commit=before.commit,
            )
        return str(done.oid)

    # -- errors --------------------------------------------------------------------------------------------------

    def _clean(self, text: object) -> str:
        """Return the text on one line, without the token and without passwords and query strings in addresses."""
        line = " ".join(plain(str(text)).split())
        line = line.replace(self._token, "(token)") if self._token else line
        return re.sub(r"\s*\(Request ID: [^)]*\)|(?<=//)[^/\s@]+@|(?<=\S)\?[^\s'\"]*", "", line)[:300]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the hub, the network and the library into one-line errors."""
        from huggingface_hub.utils import get_session

        try:
            get_session().timeout = _TIMEOUTS
            yield
        except SelfAlignError:
            raise
        except Exception as error:
            if (explained := self._explain(error)) is None:
                raise
            raise explained from None

    def _explain(self, error: BaseException) -> SelfAlignError | None:
        """Return the error to raise instead; None for an unexpected error."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        causes = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
            causes.append(cause)
        names = {type(e).__name__ for e in causes}
        if any("xet-write-token" in str(e) and "404" in str(e) for e in causes):
            return UserError(f"the hub at {self._host} does not support xet: set HF_HUB_DISABLE_XET=1 to use LFS")
        answer = next((e for e in causes if isinstance(e, HfHubHTTPError)), None)
        if answer is not None and not str(error).startswith("Invalid metadata"):
            return self._explain_status(answer.response.status_code, answer.server_message or "")
        if "XetAuthenticationError" in names:
            return self._explain_status(403, "")
        if names & {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"}:
            return UserError(f"HF_ENDPOINT is not a valid address ({self._host}): use one like https://huggingface.co")
        if any(isinstance(e, HTTPError | ConnectionError | TimeoutError) for e in causes):
            return Resumable(f"the hub at {self._host} cannot be reached ({self._clean(causes[-1])}): {_RETRY}")
        if isinstance(error, RuntimeError):  # raised by hf_xet
            return Resumable(f"the upload to {self._host} failed ({self._clean(error)}): {_RETRY}")
        if isinstance(error, ValueError):  # invalid metadata on the card, or a response that does not come from a hub
            return UserError(f"the hub at {self._host} rejects the upload: {self._clean(error)}")
        return None

    def _explain_status(self, status: int, message: str) -> SelfAlignError:
        why = f" ({status}: {self._clean(message)})" if message else f" ({status})"
        owner = self.repo.partition("/")[0]
        if status == 401:
            return UserError(f"the hub rejects the token{why}: run `hf auth login`, or set HF_TOKEN")
        if status == 403:
            return UserError(
                f"the token may not write to {self.repo}{why}: it needs the role write, and {owner} must be you or an "
                "organisation that you belong to"
            )
        if status == 404:
            return UserError(
                f"{self.repo} does not exist or is not visible to this token{why}: check OWNER, NAME and --revision"
            )
        if status in (409, 412):
            return Resumable(f"{self.repo} was changed by someone else during the push{why}: run the command again")
        if status == 429:
            return Resumable(f"too many requests to the hub{why}: wait a few minutes and {_RETRY}")
        if status >= 500:
            return Resumable(f"the hub at {self._host} failed{why}: {_RETRY}")
        return UserError(f"the hub at {self._host} refuses the upload{why}")
