"""The commands on a cluster that somebody else started: TLS, storage that not all see, a scheduler that is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import dask.config
import pytest
from distributed import Client

import distmf
from distmf import MatrixFactorization, block_ratings
from distmf.cluster import Tls, connect
from distmf.errors import ClusterError, StoreError
from tests.clusters import processes, start, start_scheduler, start_worker, wait_for
from tests.helpers import blocks_in, files, saved

TRAIN = ["--rank", "12", "--epochs", "60", "--tol", "0", "--patience", "0"]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> distmf.Blocks:
    return blocks_in(tmp_path_factory.mktemp("blocks"), 20_000, 600, 300)


@pytest.fixture(scope="module")
def expected(blocks: distmf.Blocks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return saved(MatrixFactorization(12, epochs=60, tol=0, patience=0).fit(blocks), tmp_path_factory.mktemp("expected"))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of a cluster write."""
    return tmp_path_factory.mktemp("cluster")


def test_scheduler__is_given_by_address_or_file(
    blocks: distmf.Blocks, expected: dict[str, bytes], folder: Path, tmp_path: Path
) -> None:
    with processes() as started:
        file = start_scheduler(started, folder)
        for name in "ab":
            start_worker(started, folder, name)
        for scheduler in str(file), json.loads(file.read_text())["address"]:
            process = start("train", blocks.path, tmp_path / "m", *TRAIN, "--scheduler", scheduler, "--json")
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            assert json.loads(output)["epochs"] == 60
            assert errors.count("\nepoch ") >= 59
            assert files(tmp_path / "m") == expected
        source = Path(blocks.path).parent / "r.parquet"
        process = start("block", source, tmp_path / "b", "--grid", "4x4", "--holdout", "0.1", "--scheduler", file)
        process.communicate(timeout=120)
        assert files(tmp_path / "b") == files(Path(blocks.path))


def test_scheduler__that_is_lost_loses_nothing(
    blocks: distmf.Blocks, expected: dict[str, bytes], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "2s")
    command = ["train", blocks.path, tmp_path / "m", *TRAIN, "--checkpoint", tmp_path / "c"]
    with processes() as started:
        file = start_scheduler(started, folder)
        for name in "ab":
            start_worker(started, folder, name, "--death-timeout", "5")
        process = start(*command, "--scheduler", file)
        wait_for(process, "epoch  9/60")
        started[0].kill()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "the connection to the scheduler is lost" in errors, errors
        assert f"epochs safe in {tmp_path / 'c'}; go on from there with --resume" in errors
        assert "Traceback" not in errors
    process = start(*command, "--resume", "--threads", "2")
    assert "going on after epoch" in process.communicate(timeout=60)[1]
    assert files(tmp_path / "m") == expected


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:9", "nonsense://x", "no-such-file.json", "tls://127.0.0.1:9"])
def test_scheduler__that_is_not_there(scheduler: str) -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=f"no scheduler answers at {scheduler}"),
        connect(scheduler),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process a file system of its own")
def test_storage__that_a_worker_does_not_see_is_named(blocks: distmf.Blocks, folder: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(blocks.path, shared / "b")
    with processes() as started:
        file = start_scheduler(started, folder)
        start_worker(started, folder, "sees")
        start_worker(started, folder, "blind", before=f"mount -t tmpfs none {shared}")
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            with pytest.raises(StoreError, match=r"1 of 2 do not; worker blind \(tcp://127.*No such file") as raised:
                MatrixFactorization(4).fit(shared / "b", client=client)
            assert "sees" not in str(raised.value)
            with pytest.raises(StoreError, match=r"not every worker shares the storage of this job, .* worker blind"):
                block_ratings(Path(blocks.path).parent / "r.parquet", shared / "b2", client=client)
    assert sorted(path.name for path in shared.iterdir()) == ["b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process a file system of its own")
def test_storage__that_a_worker_reads_but_whose_writes_do_not_arrive_is_named(
    blocks: distmf.Blocks, folder: Path, tmp_path: Path
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    layers = f"lowerdir={shared},upperdir={own}/upper,workdir={own}/work"
    mount = f"mount -t tmpfs none {own} && mkdir {own}/upper {own}/work && mount -t overlay none -o {layers} {shared}"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this system has no overlay file system")
    with processes() as started:
        file = start_scheduler(started, folder)
        start_worker(started, folder, "mute", before=mount)
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(StoreError, match=r"worker mute \(tcp://127.*what it writes does not arrive here"):
                MatrixFactorization(4).fit(blocks, client=client, checkpoint=shared / "c")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_scheduler__whose_port_is_that_of_a_dashboard(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(said)
                ended.wait(60)

        ended = threading.Event()
        threading.Thread(target=answer, daemon=True).start()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(ClusterError, match="what answers there does not speak as a scheduler does"),
            connect(address),
        ):
            pass
        ended.set()


def make_certificates(folder: Path) -> Path:
    script = Path(__file__).parents[1] / "deploy" / "compose" / "make-certificates.sh"
    subprocess.run([script, folder, "1"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_certificates(tmp_path_factory.mktemp("tls"))


def test_tls__from_end_to_end(
    certificates: Path,
    blocks: distmf.Blocks,
    expected: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files_of = {name: certificates / f"{name}.pem" for name in ("ca", "cert", "key")}
    options = ["--tls-ca-file", files_of["ca"], "--tls-cert", files_of["cert"], "--tls-key", files_of["key"]]
    with processes() as started:
        file = start_scheduler(started, folder, "--protocol", "tls", *options)
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://")
        for name in "ab":
            start_worker(started, folder, name, *options)
        process = start("train", blocks.path, tmp_path / "m", *TRAIN, "--scheduler", address, *options)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert files(tmp_path / "m") == expected
        # Without a certificate, or with one of another authority, a client gets nowhere.
        monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "3s")
        for at in address, address.replace("tls://", "tcp://"):
            process = start("train", blocks.path, tmp_path / "m2", "--scheduler", at)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 1
            assert errors.startswith(f"distmf: no scheduler answers at {at}")
            assert errors.count("\n") == 1
        strangers = make_certificates(tmp_path / "strangers")
        tls = Tls(*(str(strangers / f"{name}.pem") for name in ("ca", "cert", "key")))
        timeout = dask.config.set({"distributed.comm.timeouts.connect": "3s"})
        with timeout, pytest.raises(ClusterError, match="no scheduler answers at"), connect(address, tls):
            pass
    assert not (tmp_path / "m2").exists()


def test_tls__of_workers_of_our_own(
    certificates: Path, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path
) -> None:
    options = ["--tls-ca-file", certificates / "ca.pem", "--tls-cert", certificates / "cert.pem"]
    command = ["train", blocks.path, tmp_path / "m", *TRAIN, "--workers", "2", *options]
    process = start(*command, "--tls-key", certificates / "key.pem")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert files(tmp_path / "m") == expected
    process = start(*command, "--tls-key", certificates / "ca.pem")  # which is no key
    _, errors = process.communicate(timeout=60)
    assert errors.startswith(f"distmf: {certificates / 'ca.pem'}, {certificates / 'cert.pem'} and ")
    assert "are not a certificate of an authority, one's own, and its key, in PEM" in errors
    assert errors.count("\n") == 1
    process = start(*command)
    assert "TLS needs all three files; --tls-key missing" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def listening(pid: int) -> set[str]:
    """Return the addresses that a process and those below it listen on."""
    import psutil

    parent = psutil.Process(pid)
    sockets = [one for process in (parent, *parent.children(recursive=True)) for one in process.net_connections()]
    return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


def test_workers__of_our_own_listen_on_loopback_only(blocks: distmf.Blocks, tmp_path: Path) -> None:
    process = start("train", blocks.path, tmp_path / "m", *TRAIN, "--epochs", "200", "--workers", "2")
    wait_for(process, "epoch   5/200")
    assert listening(process.pid) == {"127.0.0.1"}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
