"""Connect to a dask scheduler: its address, TLS certificates, or a cluster on this machine.

with connect("tls://host:8786", tls_ca="ca.pem", tls_cert="me.pem", tls_key="me.key") as client:
    plan.run(client=client)
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from actstats.errors import ActstatsError, listed, one_line
from actstats.support import require_package

if TYPE_CHECKING:
    from distributed import Client

LOCAL: Final = "local"
"""Name of a cluster on this machine, used instead of an address."""
IN_FLIGHT: Final = 2
"""Partitions per worker: while one is computed, another reads its first images or is being written."""
PATIENCE: Final = 30.0
"""Seconds without an answer after which a worker or the scheduler is reported as silent. After twice as long without
an answer from the scheduler, the client ends. `actstats.patience` in dask's configuration sets another number."""
_FIRST: Final = 1 / 3
"""Share of `patience()` within which a scheduler has to answer first."""
_CLOSING: Final = 5
"""Seconds to say goodbye to a scheduler, which may be frozen."""
_CORES: Final = 4
"""Default number of cores per worker of a local cluster."""
_CERTIFICATES: Final = {
    "tls_ca": ("tls_ca_file", "ca-file"),
    "tls_cert": ("tls_client_cert", "client.cert"),
    "tls_key": ("tls_client_key", "client.key"),
}
"""For each file, its name as an argument of `distributed.Security`, and in dask's configuration."""
_ENCRYPTED: Final = ("tls", "wss")
"""Protocols that need certificates."""
_SILENT: Final = logging.CRITICAL + 1
"""A level above all that dask logs."""


def patience() -> float:
    """Return the seconds without an answer after which a worker or the scheduler is reported as silent.

    Raises:
        ActstatsError: `actstats.patience` in dask's configuration is not a duration.
    """
    import dask
    from dask.utils import parse_timedelta

    value = dask.config.get("actstats.patience", PATIENCE)
    try:
        seconds = float(parse_timedelta(value))
    except (ValueError, TypeError, KeyError, AttributeError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ActstatsError(
            f"actstats.patience is {value!r} in dask's configuration; it must be a duration, such as 30s"
        )
    return seconds


def address_of(client: Any) -> str:
    """Return the address of a client's scheduler, for messages."""
    return str(getattr(client.scheduler, "address", "the cluster"))


def ask(client: Any, question: str, note: Callable[[str], None]) -> Any:
    """Return the scheduler's answer to a question.

    Args:
        client: client of the scheduler.
        question: name of a function of the scheduler, such as `identity`.
        note: reports in one line that it has not answered yet.

    Raises:
        ActstatsError: the connection to the scheduler is lost, or it has not answered for twice `patience()`.
    """
    require_scheduler(client)
    seconds = patience()
    for last in (False, True):
        try:
            return client.sync(getattr(client.scheduler, question), callback_timeout=seconds)
        except TimeoutError:
            if not last:
                note(f"the dask scheduler at {address_of(client)} has not answered for {seconds:.0f} s")
        except (OSError, AttributeError):  # a client that closes drops its connection, and then its scheduler
            raise _lost(client) from None
        require_scheduler(client)
    raise ActstatsError(
        f"the dask scheduler at {address_of(client)} has not answered for {2 * seconds:.0f} s; completed partitions "
        "are kept: restart the scheduler and rerun the same command to resume"
    )


def require_scheduler(client: Any) -> None:
    """Raise `ActstatsError` if the connection to the scheduler is lost."""
    if client.status != "running":
        raise _lost(client)


def _lost(client: Any) -> ActstatsError:
    return ActstatsError(
        f"lost the connection to the dask scheduler at {address_of(client)}; completed partitions are kept: "
        "restart the scheduler and rerun the same command to resume"
    )


@contextmanager
def connect(
    scheduler: str,
    device: str = "cpu",
    *,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
) -> Iterator[Client]:
    """Yield a client of the dask scheduler at the address `scheduler`.

    "local" starts a cluster on this machine for the duration of the context, with one worker per GPU. Without GPUs,
    or if `device` is "cpu", it has one worker per four cores, or per two with "local:2".

    Args:
        scheduler: an address, such as `tcp://host:8786` or `tls://host:8786`, or "local".
        device: "cpu" for a local cluster without GPUs.
        tls_ca: PEM file of the certificate authority, for a `tls://` address. Here and below, None takes what dask's
            configuration states (`distributed.comm.tls`).
        tls_cert: PEM file of this client's certificate.
        tls_key: PEM file of its key, unless `tls_cert` contains it.

    Raises:
        ActstatsError: no scheduler answers, the address or a certificate is invalid, or `distributed` is not
            installed.
    """
    distributed = require_package("distributed", "a cluster")
    files = {
        name: str(path)
        for name, path in (("tls_ca", tls_ca), ("tls_cert", tls_cert), ("tls_key", tls_key))
        if path is not None
    }
    name, _, cores = scheduler.partition(":")
    local = name == LOCAL
    protocol = scheduler.partition("://")[0] if "://" in scheduler else "tcp"
    if files and (local or protocol not in _ENCRYPTED):
        raise ActstatsError(
            f"{listed([f'`{file}=`' for file in files])} {'needs' if len(files) == 1 else 'need'} a scheduler at "
            f"an address such as tls://host:8786, not {scheduler}"
        )
    # What goes wrong is reported in one line; dask would log a traceback beside it.
    with _silent(), ExitStack() as stack:
        if local:
            if cores and not (cores.isdecimal() and int(cores)):
                raise ActstatsError(
                    f"invalid scheduler {scheduler!r}; give local or local:CORES, such as local:4"
                )
            target = stack.enter_context(_local_cluster(distributed, int(cores or _CORES), device))
            security = None
        else:
            target = scheduler
            security = _security(distributed, scheduler, files) if protocol in _ENCRYPTED else None
            _require_answer(distributed, scheduler, security)
        # As the default client, it would also compute what is not meant for the cluster.
        try:
            client = distributed.Client(target, timeout=patience(), security=security, set_as_default=False)
        except OSError as error:  # it has gone since it answered
            raise ActstatsError(
                f"no dask scheduler answers at {scheduler}: {_reason(error, scheduler)}"
            ) from error
        stack.callback(_close, client)
        yield client


@contextmanager
def _silent() -> Iterator[None]:
    """Silence dask's logs, after an interruption for good: its threads may log until Python exits."""
    levels = {handler: handler.level for handler in logging.getLogger("distributed").handlers}
    for handler in levels:
        handler.setLevel(_SILENT)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        levels.clear()
        raise
    finally:
        for handler, level in levels.items():
            handler.setLevel(level)


def _require_answer(distributed: Any, address: str, security: Any) -> None:
    """Raise `ActstatsError` unless a scheduler answers at `address`; a client waits for ever for a silent peer."""
    arguments = (security or distributed.Security()).get_connection_args("client")
    seconds = _FIRST * patience()

    async def identity() -> Any:
        async with distributed.rpc(address, timeout=seconds, connection_args=arguments) as peer:
            return await asyncio.wait_for(peer.identity(), 1.1 * seconds)  # dask's own error says more

    try:
        kind = distributed.utils.LoopRunner().run_sync(identity).get("type")
    except Exception as error:  # of the socket, of TLS, or of a peer that speaks another protocol
        raise ActstatsError(f"no dask scheduler answers at {address}: {_reason(error, address)}") from error
    if kind != "Scheduler":
        raise ActstatsError(
            f"no dask scheduler answers at {address}: it is the address of a {str(kind).lower()}"
        )


def _reason(error: BaseException, address: str) -> str:
    """Return why there is no connection to an address, and what to do."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause.__cause__, asyncio.CancelledError):
        cause = cause.__cause__
    protocol = address.partition("://")[0]
    if protocol.startswith("ucx"):
        return "this machine has no UCX for dask; install distributed-ucxx, or use the scheduler's tcp:// address"
    reason = one_line(cause, 200)
    if isinstance(cause, TimeoutError):
        reason = f"it does not answer within {_FIRST * patience():.0f} s"
    elif isinstance(cause, MemoryError):  # of a length that is text
        reason = "what answers speaks another protocol"
    elif not isinstance(cause, ConnectionResetError) and "closed" not in reason:
        return reason
    return reason if protocol in _ENCRYPTED else f"{reason}; a scheduler with TLS has an address with tls://"


def _close(client: Any) -> None:
    with suppress(Exception):  # the connection may be gone, or the scheduler frozen
        client.close(timeout=_CLOSING)


def _security(distributed: Any, scheduler: str, files: Mapping[str, str]) -> Any:
    """Return the certificates for an encrypted address: those in `files`, else those of dask's configuration.

    Raises:
        ActstatsError: a certificate is missing or invalid.
    """
    named = {_CERTIFICATES[name][0]: path for name, path in files.items()}
    security = distributed.Security(require_encryption=True, **named)
    for name, (attribute, configured) in _CERTIFICATES.items():
        path = getattr(security, attribute)
        if path is None:
            if name != "tls_key":
                raise ActstatsError(
                    f"{scheduler} needs certificates: give `{name}=FILE`, or set distributed.comm.tls.{configured} "
                    "in dask's configuration"
                )
        elif "\n" not in path:  # dask's configuration may hold the certificate itself
            _require_readable(name, path)
    try:
        security.get_connection_args("client")
    except (ssl.SSLError, OSError, ValueError) as error:
        used = [getattr(security, attribute) or "" for attribute, _ in _CERTIFICATES.values()]
        paths = listed([path for path in dict.fromkeys(used) if path and "\n" not in path])
        raise ActstatsError(f"not certificates and a key that fit each other: {paths}: {error}") from error
    return security


def _require_readable(name: str, path: str) -> None:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ActstatsError(f"cannot read `{name}={path}`: {error.strerror}") from error
    if b"-----BEGIN" not in text:
        raise ActstatsError(f"`{name}={path}` is not a PEM file")
    if b"ENCRYPTED" in text:
        raise ActstatsError(f"the key in `{name}={path}` is encrypted; give one without a passphrase")


# A cluster on this machine.


@contextmanager
def _local_cluster(distributed: Any, cores: int, device: str) -> Iterator[Any]:
    """Yield a cluster on this machine with one process per GPU, or per `cores` CPU cores.

    Raises:
        ActstatsError: its processes cannot be started.
    """
    import dask

    # Without an address, the scheduler's HTTP server would use port 8787, and warn if another cluster has it.
    served: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    common = {**served, "memory_limit": None, "silence_logs": _SILENT}
    workers = [
        {**common, "resources": {"GPU": 1}, "nthreads": IN_FLIGHT, "env": env} for env in _gpus(device)
    ]
    environment: dict[str, int] = {}
    if not workers:
        # With one arena, the activations in a worker's threads are in the memory that `memory_reused` keeps.
        environment = {"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1}
        have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(cores, have)
        options = {**common, "nthreads": max(IN_FLIGHT, cores), "resources": {"CORES": cores}}
        workers = [options] * max(1, have // cores)
    with (
        _ended_by_signals(distributed),
        dask.config.set(environment),
        _children_without_interrupts(distributed) as loop,
    ):
        cluster = distributed.SpecCluster(
            scheduler={
                "cls": distributed.Scheduler,
                "options": {**served, "port": 0, "dashboard": False},
            },
            silence_logs=_SILENT,
            loop=loop,
        )
        try:
            # Added to a cluster that exists, so that it is closed if this is interrupted.
            cluster.worker_spec.update(
                {i: {"cls": distributed.Nanny, "options": options} for i, options in enumerate(workers)}
            )
            try:
                cluster.sync(cluster._correct_state)
            except Exception as error:
                raise ActstatsError(
                    f"cannot start a dask cluster on this machine: {one_line(error, 200)}"
                ) from error
            yield cluster
        finally:
            try:
                cluster.close()
            except Exception:
                # Interrupted while workers start: dask ends them when Python exits, and would log it.
                for name in ("distributed.process", "distributed.nanny"):
                    logging.getLogger(name).setLevel(_SILENT)


@contextmanager
def _children_without_interrupts(distributed: Any) -> Iterator[Any]:
    """Yield the event loop of a thread whose child processes, and theirs, never see Ctrl-C.

    A terminal sends it to them, too; while they import, they would print tracebacks. The client ends them.
    """
    runner = distributed.utils.LoopRunner()
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        # Otherwise started by the first child's thread, which it leaves with SIGINT unblocked.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            runner.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        runner.start()
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _ended_by_signals(distributed: Any) -> Iterator[None]:
    """End the block by an exception at Ctrl-C, SIGTERM and SIGHUP, so that processes and semaphores end, too.

    Handlers that were installed before are kept.
    """
    swallowing = distributed.gc.GCDiagnosis._gc_callback.__code__

    def end(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is swallowing:
                # Python ignores exceptions in callbacks of the garbage collector, dask's among them.
                threading.Timer(0.01, signal.raise_signal, (number,)).start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    replaced: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
        for name, default in defaults.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is default:
                replaced[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _gpus(device: str) -> list[dict[str, str]]:
    """Return, for each GPU of this machine, environment variables that hide the others."""
    if device == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[: torch.cuda.device_count()]]
