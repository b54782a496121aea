"""What a cluster keeps waiting for: every silence is reported in one line, and every wait ends."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from actstats.errors import ActstatsError
from actstats.sweeping.scheduler import connect
from actstats.sweeping.settings import Execution
from actstats.sweeping.workers import Workers
from tests.cli.conftest import COMMAND
from tests.cluster import SWEEP, command, live_cluster, make_images, start_command
from tests.conftest import files_of

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve photographs, and the store of one process on one thread."""
    folder = tmp_path_factory.mktemp("waiting")
    make_images(folder / "photographs", 12)
    assert command(f"{SWEEP} --data photographs --out whole.zarr", folder) == 0
    return folder


def lines(folder: Path) -> list[str]:
    return (folder / "err").read_text().splitlines()


def sweep_of(folder: Path, address: str) -> str:
    return f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler {address}"


def wait_for_partitions(store: Path, number: int, process) -> None:
    while len(list((store / "completed").glob("c.*"))) < number:
        assert process.exitcode is None
        time.sleep(0.02)


def test_the_metadata_of_a_store_does_not_show_that_a_cluster_wrote_it(folder, tmp_path):
    line = f"{SWEEP} --data {folder / 'photographs'} --limit 4 --out".replace("--device cpu ", "")
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    assert command(f"{line} {tmp_path / 'process.zarr'}", tmp_path, **no_gpu) == 0
    with live_cluster(folder) as cluster:
        cluster.add(1)
        cluster.wait()
        assert command(f"{line} {tmp_path / 'cluster.zarr'} --scheduler {cluster.address}", tmp_path) == 0
    documents = []
    for name in ("process", "cluster"):
        document = json.loads((tmp_path / f"{name}.zarr" / "zarr.json").read_text())
        for entry in ("created", "machine", "checksum"):
            del document["attributes"][entry]
        assert document["attributes"]["request"]["device"] == "auto"
        documents.append(json.dumps(document))
    assert documents[0] == documents[1]


@pytest.mark.parametrize(
    ("fate", "options", "advice"),
    [
        (
            {"BORN_TO_DIE": "1"},
            {"memory_limit": 2**40},
            "dask ends a worker at 95% of its memory limit, here ",
        ),
        ({"FLEETING": "1"}, {}, "find the cause in their logs"),
    ],
    ids=["while opening the network", "before the first task"],
)
def test_workers_that_die_again_and_again_end_the_command(folder, tmp_path, fate, options, advice):
    with live_cluster(folder) as cluster:
        process = start_command(sweep_of(folder, cluster.address), tmp_path)
        while process.exitcode is None:
            if not cluster.workers:
                cluster.add(1, options=options, **fate)
            process.join(0.05)
            cluster.workers = [worker for worker in cluster.workers if worker.is_alive()]
    assert process.exitcode == 1
    *_, last = lines(tmp_path)
    assert last.startswith("actstats: error: 5 workers died one after another without completing a partition")
    assert advice in last
    assert not (tmp_path / "s.zarr").exists()


def test_workers_that_leave_together_are_one_death(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(6, SLOWLY="0.3")
        cluster.wait()
        process = start_command(sweep_of(folder, cluster.address), tmp_path)
        wait_for_partitions(tmp_path / "s.zarr", 1, process)
        while cluster.workers:
            cluster.kill(0)
        cluster.add(1)
        process.join()
    assert process.exitcode == 0
    assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")


def frozen_at_work(cluster, process):
    """Stop a worker while it has a task; return its process."""
    with distributed.Client(cluster.address, set_as_default=False) as client:
        pids = client.run(os.getpid)
        while process.exitcode is None:
            for worker in cluster.workers:
                os.kill(worker.pid, signal.SIGSTOP)
                time.sleep(0.1)  # for what it had sent
                if any(
                    client.processing([address])[address] for address in pids if pids[address] == worker.pid
                ):
                    return worker
                os.kill(worker.pid, signal.SIGCONT)
    raise AssertionError("the sweep ended")


def test_the_partitions_of_a_frozen_worker_are_computed_elsewhere(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(2, SLOWLY="0.3")
        cluster.wait()
        process = start_command(sweep_of(folder, cluster.address), tmp_path, patience=4)
        wait_for_partitions(tmp_path / "s.zarr", 1, process)
        frozen = cluster.workers[0]
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            process.join()
            assert process.exitcode == 0
            said = [line for line in lines(tmp_path) if "has not answered" in line]
            silent = r"worker tcp://127\.0\.0\.1:\d+ has not answered for 4 s; doing without it"
            # None, if its partition had taken too long before; on a busy machine also about the other worker.
            assert all(re.search(silent, line) for line in said)
            assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        # It finishes what it had begun, which is complete already.
        with distributed.Client(cluster.address, set_as_default=False) as client:
            client.run(time.sleep, 0)
            while any(client.processing().values()):
                time.sleep(0.05)
        assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")


def test_the_last_partition_of_a_slow_worker_is_computed_elsewhere(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(1)
        cluster.add(1, SLOWLY="60")
        cluster.wait()
        assert command(sweep_of(folder, cluster.address), tmp_path, patience=4) == 0
    assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")


def test_a_frozen_scheduler_ends_the_command_within_twice_the_patience(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(1, SLOWLY="0.2")
        process = start_command(sweep_of(folder, cluster.address), tmp_path, patience=4)
        wait_for_partitions(tmp_path / "s.zarr", 1, process)
        os.kill(cluster.scheduler.pid, signal.SIGSTOP)
        try:
            process.join(60)
            assert process.exitcode == 1
            *_, note, last = lines(tmp_path)
            assert note.endswith(f"the dask scheduler at {cluster.address} has not answered for 4 s")
            assert f"the dask scheduler at {cluster.address} has not answered for 8 s; completed" in last
            assert last.endswith("restart the scheduler and rerun the same command to resume")
            # Nor does one that freezes before the command begins keep it waiting.
            assert command(sweep_of(folder, cluster.address), tmp_path, patience=4) == 1
            (said,) = lines(tmp_path)
            assert f"no dask scheduler answers at {cluster.address}: it does not answer within 1 s" in said
        finally:
            os.kill(cluster.scheduler.pid, signal.SIGCONT)
        assert command(sweep_of(folder, cluster.address), tmp_path) == 0
    assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")


def test_workers_without_actstats_are_named(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(1, WITHOUT_ACTSTATS="1")
        cluster.wait()
        assert command(sweep_of(folder, cluster.address), tmp_path) == 1
    (said,) = lines(tmp_path)
    assert "cannot run this sweep: ModuleNotFoundError: No module named 'actstats" in said
    assert "install the same packages on the workers as on the client" in said


# Addresses and certificates.


def certificate(folder: Path, name: str) -> dict[str, str]:
    """Make a certificate that is its own authority, and return the files as options of `connect`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    (folder / f"{name}.locked").write_bytes(
        key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret"))
    )
    public, private = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    return {"tls_ca": public, "tls_cert": public, "tls_key": private}


def flags(files: dict[str, str]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {path}" for name, path in files.items())


@pytest.fixture(scope="module")
def encrypted(folder):
    """A cluster with TLS, and the certificates that it accepts."""
    files = certificate(folder, "ours")
    pairs = {
        f"tls_{role}_{kind}": files[f"tls_{kind}"]
        for role in ("scheduler", "worker", "client")
        for kind in ("cert", "key")
    }
    security = distributed.Security(tls_ca_file=files["tls_ca"], require_encryption=True, **pairs)
    with live_cluster(folder, security) as cluster:
        cluster.add(1)
        cluster.wait()
        yield cluster, files


def test_a_cluster_with_tls_is_reached_with_certificates(folder, encrypted, tmp_path):
    cluster, files = encrypted
    assert command(f"{sweep_of(folder, cluster.address)} {flags(files)}", tmp_path) == 0
    assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")
    analysis = f"analyze noise s.zarr s.zarr --scheduler {cluster.address} {flags(files)}"
    assert command(analysis, tmp_path) == 0
    configured = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": files["tls_ca"]}
    for kind in ("cert", "key"):
        configured[f"DASK_DISTRIBUTED__COMM__TLS__CLIENT__{kind.upper()}"] = files[f"tls_{kind}"]
    assert command(sweep_of(folder, cluster.address), tmp_path, **configured) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "needs certificates: give `tls_ca=FILE`, or set distributed.comm.tls.ca-file"),
        ({"tls_cert": None, "tls_key": None}, "needs certificates: give `tls_cert=FILE`"),
        ({"tls_ca": "theirs.pem"}, "certificate verify failed"),
        (
            {"tls_cert": "theirs.pem", "tls_key": "theirs.key"},
            "unknown ca|EOF occurred in violation of protocol",
        ),
        ({"tls_key": "theirs.key"}, "not certificates and a key that fit each other: "),
        ({"tls_key": "ours.locked"}, "is encrypted; give one without a passphrase"),
        ({"tls_key": "missing.key"}, "missing.key`: No such file or directory"),
        ({"tls_ca": "photographs"}, "photographs`: Is a directory"),
        ({"tls_ca": "out"}, "out` is not a PEM file"),
    ],
)
def test_certificates_that_do_not_fit_are_one_line(folder, encrypted, change, reason):
    cluster, files = encrypted
    certificate(folder, "theirs")
    (folder / "out").write_text("nothing")
    changed = {name: path and str(folder / path) for name, path in (change or {}).items()}
    given = {} if change is None else {**files, **changed}
    with pytest.raises(ActstatsError) as raised, connect(cluster.address, **given):
        pass
    assert re.search(reason, str(raised.value))
    assert "\n" not in str(raised.value)


def test_certificates_need_an_address_with_tls(folder, encrypted, tmp_path):
    cluster, files = encrypted
    for line, said in (
        (
            f"{sweep_of(folder, 'local')} {flags(files)}",
            "--tls-ca, --tls-cert and --tls-key need a scheduler at",
        ),
        (f"{SWEEP} --data photographs {flags(files)}", "--tls-ca requires --scheduler tls://HOST:PORT"),
        (
            sweep_of(folder, cluster.address.replace("tls:", "tcp:")),
            "a scheduler with TLS has an address with tls://",
        ),
        (sweep_of(folder, "ucx://127.0.0.1:1"), "this machine has no UCX for dask"),
    ):
        assert command(line, tmp_path) != 0
        assert said in lines(tmp_path)[-1]
        assert "Traceback" not in (tmp_path / "err").read_text()


@contextlib.contextmanager
def something_else(kind: str):
    """The port of a server that is no scheduler."""
    if kind == "a web server":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
            server.RequestHandlerClass.log_message = lambda *_: None
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_port
            server.shutdown()
        return
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        if kind == "a server that speaks first":
            threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["a web server", "a server that speaks first", "a server that says nothing"])
def test_what_is_no_scheduler_is_one_line(kind):
    with (
        something_else(kind) as port,
        dask.config.set({"actstats.patience": "3s"}),
        pytest.raises(
            ActstatsError, match=f"^no dask scheduler answers at tcp://127.0.0.1:{port}: .*tls://$"
        ),
        connect(f"tcp://127.0.0.1:{port}"),
    ):
        pass


def test_a_client_that_has_closed_is_a_lost_connection():
    scheduler = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with distributed.Client(**scheduler, set_as_default=False) as client:
        workers = Workers(Execution(client=client))
        assert workers.look() == set()
    with pytest.raises(ActstatsError, match=r"^lost the connection to the dask scheduler"):
        workers.look()


def test_the_address_of_a_worker_and_of_a_dashboard_are_one_line(folder):
    with live_cluster(folder, dashboard=True, dashboard_address="127.0.0.1:0") as cluster:
        cluster.add(1)
        cluster.wait()
        with distributed.Client(cluster.address, set_as_default=False) as client:
            (worker,) = client.nthreads()
            port = client.scheduler_info()["services"]["dashboard"]
        with pytest.raises(ActstatsError, match="it is the address of a worker"), connect(worker):
            pass
        with (
            dask.config.set({"actstats.patience": "3s"}),
            pytest.raises(ActstatsError, match="no dask scheduler answers"),
            connect(f"tcp://127.0.0.1:{port}"),
        ):
            pass


# Signals.


@pytest.mark.once
@pytest.mark.parametrize(
    ("number", "seconds", "status"),
    [(signal.SIGINT, 1.5, 130), (signal.SIGINT, 3, 130), (signal.SIGTERM, 4, 143)],
)
def test_a_signal_in_the_first_seconds_leaves_one_line(folder, tmp_path, number, seconds, status):
    process = subprocess.Popen(
        [*COMMAND, *sweep_of(folder, "local:1").split()],
        cwd=tmp_path,
        env={**os.environ, "SLOWLY": "5", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # also a new process group, which a terminal would send the signal to
    )
    time.sleep(seconds)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert "leaked" not in said
    assert " - distributed." not in said
    assert process.returncode in (status, -number)


def test_only_an_interruption_leaves_the_logs_of_dask_silent(folder):
    program = """
import logging, sys
import distributed
from actstats.errors import ActstatsError
from actstats.sweeping.scheduler import connect

for error in (ActstatsError("none"), KeyboardInterrupt()):
    try:
        with connect(sys.argv[1]):
            logging.getLogger("distributed.core").critical("within")
            raise error
    except type(error):
        logging.getLogger("distributed.core").critical("after %r", error)
"""
    with live_cluster(folder) as cluster:
        ran = subprocess.run(
            [sys.executable, "-c", program, cluster.address], stderr=subprocess.PIPE, text=True, check=True
        )
    (said,) = ran.stderr.splitlines()
    assert said.endswith("CRITICAL - after ActstatsError('none')")
