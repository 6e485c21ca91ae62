"""One driver per folder: a file in it says whose it is, and beats as long as that process lives.

The file is created only if none is there. A driver that finds one goes on if the process that wrote it is dead, which a
process on the same machine can see; of a process elsewhere it watches the beat, without comparing clocks. It then
*claims* the succession: a second file, named after the token of the dead, again created only if none is there. So of
several that take over at once one succeeds. It writes itself into the first file, and only then removes its claim: who
comes late and claims the same succession finds that the token in the first file is another by now.
"""

import contextlib
import datetime
import hashlib
import json
import logging
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from distmf.errors import StoreError
from distmf.process import Process
from distmf.store import MISSING, TEMPORARY, Folder

logger = logging.getLogger(__name__)

NAME = "driver.json"
BEAT_SECONDS = 5.0
PATIENCE_BEATS = 6  # without one, a driver on another machine is dead


class _Holder(NamedTuple):
    process: Process
    token: str
    since: str  # for people: clocks of machines differ
    beat: int

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host}, since {self.since}"

    def to_json(self) -> bytes:
        return json.dumps({**self._asdict(), "process": self.process._asdict()}).encode()


class DriverLock:
    """A folder that belongs to this process until it is released; made by `driver_lock`."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self._mine = _Holder(Process.current(), uuid.uuid4().hex, since, 0)

    def check(self) -> None:
        """Raise an error if another driver took over, as it may while this process is suspended.

        Raises
        ------
        StoreError
            If it did, or the file was removed.
        """
        holder = self._holder()
        if holder is None:
            raise StoreError(f"{self.folder}: somebody removed {NAME}, so another driver may have begun; this one ends")
        if holder.token != self._mine.token:
            raise StoreError(
                f"{self.folder}: another driver took over, as this one was not heard of: {holder}; that one goes on, "
                "this one ends"
            )

    def _acquire(self) -> None:
        # It is read in any case, before and after it is written: some object stores do not know conditions.
        while (holder := self._holder()) is None or holder.token != self._mine.token:
            if holder is None:
                self.folder.write_new(NAME, self._mine.to_json())
            elif self._is_dead(holder):
                self._succeed(holder)

    def _is_dead(self, holder: _Holder) -> bool:
        """Return whether a holder is dead, or False if it is another one by now; refuse if it is alive."""
        state = holder.process.state()
        if state == "unknown":
            wait = PATIENCE_BEATS * BEAT_SECONDS
            logger.info("%s is locked by %s; waiting %g s for a sign of life", self.folder, holder, wait)
            for _ in range(2 * PATIENCE_BEATS):
                time.sleep(BEAT_SECONDS / 2)
                now = self._holder()
                if now is None or now.token != holder.token:
                    return False
                if now.beat != holder.beat:
                    state = "alive"
                    break
            else:
                logger.info("%s gave no sign of life; taking over", holder)
        if state == "alive":
            raise StoreError(
                f"{self.folder} is in use: {holder}; wait until it has ended, stop it, or choose another folder"
            )
        return True

    def _succeed(self, holder: _Holder) -> None:
        """Claim the succession of a dead holder; whoever has it writes itself into the file."""
        claim = _claim(holder.token)
        is_written = self.folder.write_new(claim, self._mine.to_json())
        is_mine = self.is_held()
        if is_mine:
            self.folder.write(NAME, self._mine.to_json())
        if is_mine or is_written:
            self.folder.remove(claim)

    def _holder(self) -> _Holder | None:
        """Return who holds the folder: whom the file names, or who claimed its succession, and so on."""
        holder = self._read(NAME)
        while holder and (successor := self._read(_claim(holder.token))):
            holder = successor
        return holder

    def _read(self, name: str) -> _Holder | None:
        try:
            data = self.folder.read(name)
        except StoreError as err:
            if err.errno not in MISSING:
                raise
            return None
        try:
            found = json.loads(data)
            return _Holder(Process(**found.pop("process")), **found)
        except (ValueError, TypeError, KeyError, AttributeError):
            # Its writer was killed half way, or is another version of distmf, which beats as well.
            token = hashlib.blake2s(name.encode(), digest_size=16).hexdigest()
            return _Holder(Process("an unknown host", "", 0, 0), token, "an unknown time", zlib.crc32(data))

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            try:
                if not self.is_held():
                    return  # `check` tells the driver
                self._mine = self._mine._replace(beat=self._mine.beat + 1)
                self.folder.write(NAME, self._mine.to_json())
            except StoreError as err:  # a disk or a network may come back
                logger.warning("%s", err)

    def is_held(self) -> bool:
        """Return whether the folder still belongs to this process."""
        holder = self._holder()
        return holder is not None and holder.token == self._mine.token

    def _release(self) -> None:
        try:
            if self.is_held():
                self.folder.remove(NAME)
        except StoreError as err:  # the file does not block: this process will be dead
            logger.warning("%s", err)


def holder_of(folder: Folder) -> str | None:
    """Return in words which process holds a folder, or held it when it died; None if nobody does."""
    holder = DriverLock(folder)._holder()
    return holder and f"{holder}{' (dead)' if holder.process.state() == 'dead' else ''}"


def _claim(token: str) -> str:
    return f"{TEMPORARY}/{token}"


@contextlib.contextmanager
def driver_lock(folder: Folder) -> Iterator[DriverLock]:
    """Yield the lock of a folder, which is made if it is not there; one process at a time has it.

    A thread tells the others that this process is alive, until the block ends. The lock of a process that was killed is
    taken over at once on the same machine, and elsewhere after `PATIENCE_BEATS` beats without a sign of life.

    Raises
    ------
    StoreError
        If another process has it that is alive; the message says which.
    """
    lock, stop = DriverLock(folder), threading.Event()
    thread = threading.Thread(target=lock._beat, args=(stop,), name="distmf-lock", daemon=True)
    try:
        lock._acquire()
        thread.start()
        yield lock
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()
        lock._release()
