"""The Ray cluster: one of our own on this machine, or one that runs; and how many workers it has room for."""

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
from selfalign.generation.engines.llama_cpp import usable_cores
from selfalign.generation.settings import ExecutorSettings

_CONNECT_SECONDS = 10.0
_STORE_BYTES = 128 * 2**20
"""Requests and answers are small and pass by; only adapters' files lie in the object store."""
_PREFIX = "selfalign-ray-"
_LONGEST_FOLDER = 24
"""Characters of the folder for temporary files; Ray adds about 60, and a socket's path has room for 107."""


def check_installed() -> None:
    """Raises UserError where Ray is not installed."""
    if not find_spec("ray"):
        raise UserError("executor ray: Ray is not installed: pip install 'selfalign[ray]'")


class Cluster:
    """The connection to a cluster. At most one a process: one that is there already is used, and left as it is.

    Args:
        address: see `ExecutorSettings`.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or runs other versions.
    """

    def __init__(self, address: str | None) -> None:
        check_installed()
        self._ours = False
        self.scratch: Path | None = None
        """A folder of our own cluster for its temporary files."""
        self._prepare(address)
        import ray

        if ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.ERROR)  # importing it sets another
        options: dict[str, Any] = {"address": address} if address else self._own()
        quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with _signals_kept():
                ray.init(**options, **quiet)
            self._ours = True
            if address is None and ray.nodes()[0]["NodeManagerAddress"] != "127.0.0.1":
                raise RuntimeError("it would be open to the network, and not to 127.0.0.1 alone")
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            self.close()
            raise UserError(_explained(address, error)) from error

    def _prepare(self, address: str | None) -> None:
        """What has to be so before Ray is imported, and a look whether anybody answers there."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            # A token of this process: without one Ray would write its own into the home folder.
            os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
        elif os.environ.get("RAY_AUTH_TOKEN"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # a token that is given is meant to be shown
        if address and address != "auto":
            self._knock(address)

    @staticmethod
    def _knock(address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:  # a port, a host that none can be
            raise UserError(
                f"executor.address: no Ray cluster answers at {address} ({error}): start one there with "
                f"`ray start --head --port {port}` (docs/cluster.md)"
            ) from None

    def _own(self) -> dict[str, Any]:
        _loopback(True)
        _sweep()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_folder()))
        return {
            "num_cpus": usable_cores(),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": _STORE_BYTES,
            "_temp_dir": str(self.scratch),
        }

    def close(self) -> None:
        """Leave the cluster; end it where it is our own."""
        if self._ours:
            import ray

            with _signals_kept():
                ray.shutdown()
        self._ours = False
        if self.scratch:
            _loopback(False)
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch = None


def _loopback(alone: bool) -> None:
    """Let Ray, here and in the processes that it starts, listen on 127.0.0.1 only.

    It takes 127.0.0.1 for the machine's address in its network, and listens everywhere, unless told that there are no
    clusters of several machines (its switch for systems where that is so). Here it was read as Ray was imported.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = not alone
    if alone:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    else:
        os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)


_TOKEN = secrets.token_hex(32)


def _explained(address: str | None, error: BaseException) -> str:
    said = " ".join(str(error).split())
    where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
    if "ersion mismatch" in said:
        return f"{where} runs other versions than this command: {said[:300]}. Install the same on all machines"
    if "uthenti" in said:
        return f"{where} refuses this command ({said[:160]}): give its token in RAY_AUTH_TOKEN"
    if address == "auto":
        return f"executor.address: this machine belongs to no running Ray cluster ({said[:120]}): `ray start` makes one"
    if address and "ailed to connect" in said:
        return (
            f"somebody answers at {address}, but no Ray that lets this command in: is its token in RAY_AUTH_TOKEN, and "
            "can this machine reach the address that it has in its network?"
        )
    return f"{where} cannot be {'reached' if address else 'started'}: {said[:240]}"


def _short_folder() -> str:
    own = tempfile.gettempdir()
    return own if len(own) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108  (mkdtemp makes a folder of this user alone)


def _sweep() -> None:
    """Remove what clusters of killed commands left."""
    for folder in Path(_short_folder()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and folder.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets handlers of its own, where a signal to this command is to end it without a loss."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many workers, and what each takes of its machine."""

    workers: int
    cpus: float
    gpus: float
    machines: int


def shape(executor: ExecutorSettings, kind: str, nodes: list[dict[str, float]], tensor_parallel_size: int = 1) -> Shape:
    """What `auto` stands for on machines with these resources (Ray's names), and whether there is room for it.

    Args:
        kind: of the engine.
        tensor_parallel_size: accelerators that one engine of kind vllm takes.

    Raises:
        UserError: the cluster has less than the recipe asks for.
    """
    cpus_there, gpus_there = sum(n.get("CPU", 0) for n in nodes), sum(n.get("GPU", 0) for n in nodes)
    gpus = executor.gpus
    if gpus == "auto":
        gpus = float(tensor_parallel_size) if kind == "vllm" and gpus_there else 0.0
    elif kind == "vllm" and gpus < tensor_parallel_size > 1:
        raise UserError(
            f"executor.gpus is {gpus:g} and engine.tensor_parallel_size {tensor_parallel_size}: a worker needs "
            "as many; leave gpus at auto"
        )
    able = [n for n in nodes if n.get("CPU", 0) > 0 and (not gpus or n.get("GPU", 0) >= gpus)]
    workers = executor.workers
    if workers == "auto":
        workers = sum(_times(n.get("GPU", 0), gpus) for n in able) if gpus else len(able)
    cpus = executor.cpus
    if cpus == "auto":
        each = -(-workers // max(1, len(able)))
        cpus = 1.0 if gpus else float(max(1, min((n["CPU"] for n in able), default=0) // max(1, each)))
    room = sum(min(_times(n["CPU"], cpus), _times(n.get("GPU", 0), gpus)) for n in able)
    if not workers or room < workers:
        wanted = f"{workers or 'any'} workers of {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UserError(
            f"executor: the Ray cluster has {cpus_there:g} CPUs and {gpus_there:g} GPUs on {len(nodes)} "
            f"{'machine' if len(nodes) == 1 else 'machines'}, room for {min(room, 10**6)} of {wanted}: "
            "set executor.workers, cpus or gpus"
        )
    return Shape(workers, cpus, gpus, len(nodes))


def _times(there: float, each: float) -> int:
    """How often a share goes into what there is: ten tenths into one."""
    return int(there / each + 1e-6) if each else 10**9


def machines() -> list[dict[str, float]]:
    """The resources of each machine of the cluster that this process is connected to."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
