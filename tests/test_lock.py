"""One driver per folder, whatever was killed, and wherever. The processes are real, and so are their deaths."""

import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distmf import lock
from distmf.errors import StoreError
from distmf.lock import NAME, DriverLock, driver_lock
from distmf.process import Process
from distmf.store import Folder
from tests.helpers import files

HOLD = """
import sys
from distmf import lock
from distmf.errors import StoreError
from distmf.store import Folder
lock.BEAT_SECONDS = 0.1
folder = Folder.at(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock.driver_lock(folder) as held:
        print("held", flush=True)
        sys.stdin.readline()
        held.check()
except StoreError as err:
    print("refused", err, flush=True)
"""
NAMESPACE = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Give a function that starts processes; a line makes each take the lock of a folder, and another release it."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    started: list[subprocess.Popen[str]] = []

    def start(url: object, before: list[str] | None = None) -> subprocess.Popen[str]:
        command = [*(before or []), sys.executable, "-c", HOLD, str(url)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Give a folder on a disk and one on an object store."""
    return Folder.at(tmp_path if request.param == "local" else f"{request.getfixturevalue('s3')}/checkpoint")


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def take(process: subprocess.Popen[str]) -> str:
    assert hear(process) == "ready"
    tell(process)
    return hear(process)


def content(folder: Folder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.read(NAME))
    return found


def names(folder: Folder) -> list[str]:
    return [path[len(folder.path) + 1 :] for path in folder.fs.find(folder.path)]


def leave(folder: Folder, process: Process) -> str:
    """Write the lock that a process left which was killed; return its token."""
    with driver_lock(folder):
        left = {**content(folder), "process": process._asdict()}
    folder.write(NAME, json.dumps(left).encode())
    return str(left["token"])


def test_driver_lock__refuses_a_second_driver_until_the_first_has_ended(folder: Folder, start: Start) -> None:
    first = start(folder)
    assert take(first) == "held"
    message = rf"{folder} is in use: process {first.pid} on \S+, since 20..-.*; wait until it has ended, stop it, or"
    with pytest.raises(StoreError, match=message), driver_lock(folder):
        pass
    tell(first)
    assert first.wait(timeout=10) == 0
    assert names(folder) == []
    with driver_lock(folder) as held:
        held.check()
        assert take(start(folder)).startswith("refused")
    assert names(folder) == []


@pytest.mark.parametrize("is_reaped", [True, False], ids=["gone", "zombie"])
def test_driver_lock__goes_on_at_once_after_a_killed_driver(
    folder: Folder, start: Start, caplog: pytest.LogCaptureFixture, is_reaped: bool
) -> None:
    first = start(folder)
    assert take(first) == "held"
    first.kill()
    if is_reaped:
        first.wait()
    else:
        hear(first)  # the end of its output
        time.sleep(0.1)
    assert NAME in names(folder)
    caplog.set_level("INFO", "distmf")
    with driver_lock(folder) as held:
        held.check()
    assert caplog.messages == []


def test_driver_lock__knows_a_pid_that_is_used_again(folder: Folder) -> None:
    me = Process.current()
    leave(folder, me._replace(start=me.start - 1))
    with driver_lock(folder) as held:
        held.check()


def test_driver_lock__watches_a_driver_on_another_machine(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    far = start(tmp_path, NAMESPACE)
    assert take(far) == "held"
    assert content(Folder.at(tmp_path))["process"]["machine"] != Process.current().machine
    caplog.set_level("INFO", "distmf")
    with pytest.raises(StoreError, match="is in use"), driver_lock(Folder.at(tmp_path)):
        pass
    far.kill()  # and all in its namespace
    far.wait()
    caplog.clear()
    with driver_lock(Folder.at(tmp_path)) as held:
        held.check()
    waits, gives_up = caplog.messages
    assert re.fullmatch(r".* is locked by process 1 on .*; waiting 0.6 s for a sign of life", waits)
    assert gives_up.endswith("gave no sign of life; taking over")


@pytest.mark.parametrize("written", ["", "{}", "[1]", '{"process": 1}'])
@pytest.mark.usefixtures("start")
def test_driver_lock__takes_over_a_file_that_was_not_completed(tmp_path: Path, written: str) -> None:
    (tmp_path / NAME).write_text(written)
    with driver_lock(Folder.at(tmp_path)) as held:
        held.check()
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("n_dead", [0, 2])
def test_driver_lock__is_taken_over_by_one_of_many(folder: Folder, start: Start, n_dead: int) -> None:
    me = Process.current()
    dead = me._replace(start=me.start - 1)
    if n_dead == 2:  # the second was killed when it had claimed the succession of the first
        claim = json.dumps({"process": dead._asdict(), "token": "f" * 32, "since": "", "beat": 0})
        folder.write(f"tmp/{leave(folder, dead)}", claim.encode())
    processes = [start(folder) for _ in range(3)]
    assert [hear(process) for process in processes] == ["ready"] * 3
    for process in processes:
        tell(process)
    said = [hear(process) for process in processes]
    assert said.count("held") == 1
    assert all(line.startswith(f"refused {folder} is in use: process") for line in said if line != "held"), said
    winner = processes[said.index("held")]
    assert content(folder)["process"]["pid"] == winner.pid
    tell(winner)
    assert hear(winner) == ""  # its check found nothing


class Stepped:
    """A folder whose operations wait for their turn."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.turn, self.done = folder, threading.Semaphore(0), threading.Semaphore(0)

    def __getattr__(self, name: str) -> object:
        def step(*args: object) -> object:
            self.turn.acquire()
            try:
                return getattr(self.folder, name)(*args)
            finally:
                self.done.release()

        return step


@pytest.mark.parametrize("seed", range(120))
def test_acquire__is_won_by_one_in_any_order_of_operations(seed: int, tmp_path: Path) -> None:
    me, folder, draw = Process.current(), Folder.at(tmp_path), random.Random(seed)
    if draw.random() < 0.8:
        leave(folder, me._replace(start=me.start - 1))
    won: list[DriverLock] = []
    steps, threads = [Stepped(folder) for _ in range(3)], []

    def acquire(stepped: Stepped) -> None:
        taker = DriverLock(stepped)  # type: ignore[arg-type]
        with contextlib.suppress(StoreError):
            taker._acquire()
            won.append(taker)

    threads = [threading.Thread(target=acquire, args=(stepped,)) for stepped in steps]
    for thread in threads:
        thread.start()
    while running := [n for n, thread in enumerate(threads) if thread.is_alive()]:
        stepped = steps[draw.choice(running)]
        stepped.turn.release()
        stepped.done.acquire(timeout=0.05)  # none comes from one that has just ended
    (winner,) = won
    winner.folder = folder
    winner.check()
    winner._release()
    assert files(tmp_path) == {}


def test_driver_lock__refuses_a_second_driver_where_the_store_ignores_conditions(tmp_path: Path) -> None:
    class Unconditional(Folder):
        def write_new(self, name: str, data: bytes) -> bool:
            self.write(name, data)
            return True

    folder = Unconditional.at(tmp_path)
    with driver_lock(folder) as held:
        with pytest.raises(StoreError, match="is in use"), driver_lock(folder):
            pass
        held.check()


@pytest.mark.usefixtures("start")
def test_check__finds_that_another_driver_took_over(folder: Folder) -> None:
    with driver_lock(folder) as held:
        theirs = {**content(folder), "token": "f" * 32}
        folder.write(NAME, json.dumps(theirs).encode())
        with pytest.raises(StoreError, match="another driver took over.*: process .*; that one goes on, this one ends"):
            held.check()
        time.sleep(0.3)
    assert content(folder) == theirs
    folder.remove(NAME)
    with driver_lock(folder) as held:
        folder.remove(NAME)
        with pytest.raises(StoreError, match="somebody removed driver.json"):
            held.check()


@pytest.mark.usefixtures("start")
def test_beat__goes_on_until_the_end() -> None:
    folder = Folder.at("memory://driver")
    with driver_lock(folder):
        beats = []
        for _ in range(2):
            time.sleep(0.3)
            beats.append(json.loads(folder.read(NAME))["beat"])
    assert 0 < beats[0] < beats[1]
    assert folder.fs.find(folder.path) == []
    folder.delete()
