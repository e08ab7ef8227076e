"""Connect to a Ray cluster, or start one on this machine; decide how many workers it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.generation.settings import ExecutorSettings
from selfalign.system.environment import usable_cores

_CONNECT_SECONDS = 10.0
_STORE_BYTES = 128 * 2**20
"""Size of the object store, which holds only the adapters' files, no requests or responses."""
_PREFIX = "selfalign-ray-"
_LONGEST_FOLDER = 24
"""Characters of the folder for temporary files: Ray appends about 60, and a socket's path may have 107."""


def check_installed() -> None:
    """Raise UserError if Ray is not installed."""
    if not find_spec("ray"):
        raise UserError("executor ray: Ray is not installed: pip install 'selfalign[ray]'")


class Cluster:
    """The connection to a cluster. A process has at most one: an existing connection is reused and left open.

    Args:
        address: see `ExecutorSettings`.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached or runs other versions.
    """

    def __init__(self, address: str | None) -> None:
        check_installed()
        self._ours = False
        self.scratch: Path | None = None
        """The folder for temporary files of our own cluster."""
        self._prepare(address)
        import ray

        if ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.ERROR)  # the import of Ray sets another
        options: dict[str, Any] = {"address": address} if address else self._own_options()
        quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with _signal_handlers_restored():
                ray.init(**options, **quiet)
            self._ours = True
            if address is None and ray.nodes()[0]["NodeManagerAddress"] != "127.0.0.1":
                raise RuntimeError("it would listen on the network instead of 127.0.0.1")
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            self.close()
            raise UserError(explain_error(address, error)) from error

    def _prepare(self, address: str | None) -> None:
        """Set the environment before Ray is imported, and check that the address answers."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            # Without a token Ray would write its own into the home folder.
            os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
        elif os.environ.get("RAY_AUTH_TOKEN"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray ignores the token without this mode
        if address and address != "auto":
            self._check_address(address)

    @staticmethod
    def _check_address(address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:  # also an impossible port or host name
            raise UserError(
                f"executor.address: no Ray cluster answers at {address} ({error}): start one there with "
                f"`ray start --head --port {port}` (docs/cluster.md)"
            ) from None

    def _own_options(self) -> dict[str, Any]:
        _listen_on_loopback_only(True)
        _remove_old_folders()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_folder()))
        return {
            "num_cpus": usable_cores(),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": _STORE_BYTES,
            "_temp_dir": str(self.scratch),
        }

    def close(self) -> None:
        """Disconnect from the cluster; end it if it is our own."""
        if self._ours:
            import ray

            with _signal_handlers_restored():
                ray.shutdown()
        self._ours = False
        if self.scratch:
            _listen_on_loopback_only(False)
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch = None


def _listen_on_loopback_only(enabled: bool) -> None:
    """Make Ray, in this process and those that it starts, listen on 127.0.0.1 only.

    Ray listens on all addresses even when its own is 127.0.0.1, unless this variable tells it that the system supports
    no clusters of several machines. It reads the variable when it is imported, so the constant is set as well.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = not enabled
    if enabled:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    else:
        os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)


_TOKEN = secrets.token_hex(32)


def explain_error(address: str | None, error: BaseException) -> str:
    """Return one line with the cause that Ray reports and what to do about it."""
    text = " ".join(str(error).split())
    where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
    if "ersion mismatch" in text:
        return f"{where} runs other versions than this command: {text[:300]}. Install the same on all machines"
    if "uthenti" in text:
        return f"{where} refuses this command ({text[:160]}): give its token in RAY_AUTH_TOKEN"
    if address == "auto":
        return f"executor.address: this machine belongs to no Ray cluster ({text[:120]}): start one with `ray start`"
    if address and "ailed to connect" in text:
        return (
            f"{address} answers, but the Ray cluster there does not accept this command: check that RAY_AUTH_TOKEN "
            "holds its token, and that this machine can reach the address that the cluster has in its network"
        )
    return f"{where} cannot be {'reached' if address else 'started'}: {text[:240]}"


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108  (mkdtemp's folders are private)


def _remove_old_folders() -> None:
    """Remove the temporary folders of commands that were killed."""
    for folder in Path(_short_folder()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and folder.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    """Restore this process's signal handlers, which stop a run without loss; Ray replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Allocation:
    """The number of workers, and the resources of each."""

    workers: int
    cpus: float
    gpus: float
    machines: int


def allocate(
    executor: ExecutorSettings, kind: str, nodes: list[dict[str, float]], tensor_parallel_size: int = 1
) -> Allocation:
    """Resolve `auto` in the settings on machines with these resources (named as in Ray).

    Args:
        kind: the engine's kind.
        tensor_parallel_size: number of accelerators of one engine of kind vllm.

    Raises:
        UserError: the cluster has fewer resources than the recipe needs.
    """
    cluster_cpus, cluster_gpus = sum(n.get("CPU", 0) for n in nodes), sum(n.get("GPU", 0) for n in nodes)
    gpus = executor.gpus
    if gpus == "auto":
        gpus = float(tensor_parallel_size) if kind == "vllm" and cluster_gpus else 0.0
    elif kind == "vllm" and gpus < tensor_parallel_size > 1:
        raise UserError(
            f"executor.gpus is {gpus:g} and engine.tensor_parallel_size {tensor_parallel_size}: a worker needs "
            "as many; leave gpus at auto"
        )
    usable = [n for n in nodes if n.get("CPU", 0) > 0 and (not gpus or n.get("GPU", 0) >= gpus)]
    workers = executor.workers
    if workers == "auto":
        workers = sum(_times(n.get("GPU", 0), gpus) for n in usable) if gpus else len(usable)
    cpus = executor.cpus
    if cpus == "auto":
        per_machine = -(-workers // max(1, len(usable)))
        cpus = 1.0 if gpus else float(max(1, min((n["CPU"] for n in usable), default=0) // max(1, per_machine)))
    room = sum(min(_times(n["CPU"], cpus), _times(n.get("GPU", 0), gpus)) for n in usable)
    if not workers or room < workers:
        request = f"{workers or 'any'} workers of {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UserError(
            f"executor: the Ray cluster has {cluster_cpus:g} CPUs and {cluster_gpus:g} GPUs on {len(nodes)} "
            f"{'machine' if len(nodes) == 1 else 'machines'}, room for {min(room, 10**6)} of {request}: "
            "set executor.workers, cpus or gpus"
        )
    return Allocation(workers, cpus, gpus, len(nodes))


def _times(total: float, share: float) -> int:
    """Return how many shares fit into a total; ten shares of 0.1 fit into 1."""
    return int(total / share + 1e-6) if share else 10**9


def machines() -> list[dict[str, float]]:
    """Return the resources of each machine of the connected cluster."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
