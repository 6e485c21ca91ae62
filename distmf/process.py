"""Which process this is, in words that others can check, here or elsewhere; and what memory it may have. Linux."""

import contextlib
import functools
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


class Process(NamedTuple):
    """A process that once was; pids are used again, so a pid alone is not enough.

    Attributes
    ----------
    host : str
        Name of its machine, for people.
    machine : str
        Hash of the machine, its boot and the namespace of pids: where `pid` means this process.
    pid : int
        Its number.
    start : int
        When it was started, in clock ticks since the boot.
    """

    host: str
    machine: str
    pid: int
    start: int

    @classmethod
    def current(cls) -> "Process":
        """Return the process that calls."""
        host, boot = platform.node(), (PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (PROC / "self/ns/pid").stat().st_ino
        machine = hashlib.blake2s(f"{host} {boot} {namespace}".encode(), digest_size=8).hexdigest()
        return cls(host, machine, os.getpid(), _start("self"))

    @property
    def tag(self) -> str:
        """The process as a part of a file name; `Process.of_tag` reads it."""
        return f"{self.machine}-{self.pid}-{self.start}"

    @classmethod
    def of_tag(cls, tag: str) -> "Process":
        """Return the process that a tag stands for; its host is not in it."""
        machine, pid, start = tag.split("-")
        return cls("", machine, int(pid), int(start))

    def state(self) -> Literal["alive", "dead", "unknown"]:
        """Return whether the process is alive or certainly dead; of another machine, that is unknown from here."""
        if self.machine != Process.current().machine:
            return "unknown"
        try:
            return "alive" if _start(self.pid) == self.start else "dead"
        except OSError:
            pass
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "dead"
        except PermissionError:
            pass
        return "unknown"  # /proc does not show the processes of others (hidepid)


TAG = re.compile(r"[0-9a-f]{16}-\d+-\d+")


def _start(pid: int | str) -> int:
    """Return when a process was started; -1 if it has ended, and its parent has not asked for its exit code yet."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # a name may hold spaces and brackets
    return -1 if fields[0] in ("Z", "X") else int(fields[19])


def memory_limit() -> int:
    """Return the bytes that this process may use: those of its control group if it is limited, else of the machine."""
    limits = [_machine_memory()]
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            limits += _limits(CGROUPS / "memory", path, "memory.limit_in_bytes")
        elif not controllers:
            limits += _limits(CGROUPS, path, "memory.max")
    return min(limits)


@functools.cache
def is_limited() -> bool:
    """Return whether this process may use less memory than the machine has."""
    return memory_limit() < _machine_memory()


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits(mount: Path, path: str, name: str) -> Iterator[int]:
    """Yield the limits of a control group and of those that it is in; in a container, only the last may be visible."""
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            yield int((folder / name).read_text())
        if folder == mount:
            return
