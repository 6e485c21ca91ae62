"""Which process this is, in words that other processes can check, here or on another machine. Linux."""

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Literal, NamedTuple

PROC = Path("/proc")


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
