"""One driver per folder, whatever was killed, and wherever. The processes are real, and so are their deaths."""

import contextlib
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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


def holder(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((path / NAME).read_text())
    return found


def left_by(path: Path, process: Process) -> None:
    with driver_lock(Folder.at(path)):
        content = (path / NAME).read_text()
    (path / NAME).write_text(json.dumps({**json.loads(content), "process": process._asdict()}))


def test_driver_lock__refuses_a_second_driver_until_the_first_has_ended(tmp_path: Path, start: Start) -> None:
    first = start(tmp_path)
    assert take(first) == "held"
    message = rf"{tmp_path} is in use: process {first.pid} on \S+, since 20..-.*; wait until it has ended, stop it, or"
    with pytest.raises(StoreError, match=message), driver_lock(Folder.at(tmp_path)):
        pass
    tell(first)
    assert first.wait(timeout=10) == 0
    assert not (tmp_path / NAME).exists()
    with driver_lock(Folder.at(tmp_path)) as held:
        held.check()
        assert take(start(tmp_path)).startswith("refused")
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("is_reaped", [True, False], ids=["gone", "zombie"])
def test_driver_lock__goes_on_at_once_after_a_killed_driver(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture, is_reaped: bool
) -> None:
    first = start(tmp_path)
    assert take(first) == "held"
    first.kill()
    if is_reaped:
        first.wait()
    else:
        hear(first)  # the end of its output
        time.sleep(0.1)
    assert (tmp_path / NAME).exists()
    caplog.set_level("INFO")
    with driver_lock(Folder.at(tmp_path)) as held:
        held.check()
    assert caplog.messages == []


def test_driver_lock__knows_a_pid_that_is_used_again(tmp_path: Path, start: Start) -> None:
    me = Process.current()
    left_by(tmp_path, me._replace(start=me.start - 1))
    with driver_lock(Folder.at(tmp_path)) as held:
        held.check()


def test_driver_lock__watches_a_driver_on_another_machine(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    far = start(tmp_path, NAMESPACE)
    assert take(far) == "held"
    assert holder(tmp_path)["process"]["machine"] != Process.current().machine  # type: ignore[index]
    caplog.set_level("INFO")
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


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"process": 1}'])
def test_driver_lock__takes_over_a_file_that_was_not_completed(tmp_path: Path, start: Start, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with driver_lock(Folder.at(tmp_path)) as held:
        held.check()
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("times", range(3))
def test_driver_lock__is_taken_over_by_one_of_many(tmp_path: Path, start: Start, times: int) -> None:
    me = Process.current()
    if times:
        left_by(tmp_path, me._replace(start=me.start - 1))
    if times == 2:  # the first that took over was killed before it had written itself into the file
        left_by(tmp_path / "other", me._replace(start=me.start - 2))
        claim = tmp_path / "tmp" / str(holder(tmp_path)["token"])
        claim.parent.mkdir(exist_ok=True)
        shutil.move(tmp_path / "other" / NAME, claim)
    processes = [start(tmp_path) for _ in range(4)]
    assert [hear(process) for process in processes] == ["ready"] * 4
    for process in processes:
        tell(process)
    said = [hear(process) for process in processes]
    winner = said.index("held")
    assert all(line.startswith(f"refused {tmp_path} is in use: process") for line in said if line != "held"), said
    assert said.count("held") == 1
    assert holder(tmp_path)["process"]["pid"] == processes[winner].pid  # type: ignore[index]
    tell(processes[winner])
    assert hear(processes[winner]) == ""  # its check found nothing


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


@pytest.mark.parametrize("seed", range(60))
def test_acquire__is_won_by_one_in_any_order_of_operations(seed: int, tmp_path: Path) -> None:
    me, folder, draw = Process.current(), Folder.at(tmp_path), random.Random(seed)
    if draw.random() < 0.8:
        left_by(tmp_path, me._replace(start=me.start - 1))
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


def test_check__finds_that_another_driver_took_over(tmp_path: Path, start: Start) -> None:
    with driver_lock(Folder.at(tmp_path)) as held:
        theirs = {**holder(tmp_path), "token": "f" * 32}
        (tmp_path / NAME).write_text(json.dumps(theirs))
        with pytest.raises(StoreError, match="another driver took over.*: process .*; that one goes on, this one ends"):
            held.check()
        time.sleep(0.3)
    assert holder(tmp_path) == theirs
    (tmp_path / NAME).unlink()
    with driver_lock(Folder.at(tmp_path)) as held:
        (tmp_path / NAME).unlink()
        with pytest.raises(StoreError, match="somebody removed driver.json"):
            held.check()


def test_beat__goes_on_until_the_end(start: Start) -> None:
    folder = Folder.at("memory://driver")
    with driver_lock(folder):
        beats = []
        for _ in range(2):
            time.sleep(0.3)
            beats.append(json.loads(folder.read(NAME))["beat"])
    assert 0 < beats[0] < beats[1]
    assert folder.fs.find(folder.path) == []
    folder.delete()
