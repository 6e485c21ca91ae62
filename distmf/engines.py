"""Opens the engine of a job, and checks that its workers see the storage that the job is about to use."""

import contextlib
import logging
import uuid
import zlib
from collections.abc import Sequence
from typing import Any

from distmf.engine import Engine
from distmf.errors import ParameterError, StoreError
from distmf.filesystem import explained
from distmf.grid import Shape
from distmf.store import Folder
from distmf.threads import ThreadEngine

logger = logging.getLogger(__name__)

BLOCKS_PER_SLOT = 2
MAX_NAMED = 5  # workers in a message
FINGERPRINT_BYTES = 1 << 16


def open_engine(client: Any = None, threads: int | None = None) -> Engine:
    """Return the engine for a `distributed.Client`, or without one for threads of this process."""
    if client is None:
        return ThreadEngine(threads)
    if threads is not None:
        raise ParameterError(f"threads is {threads}, but the client's workers have threads of their own; leave one out")
    if not hasattr(client, "submit"):  # a cluster is no client
        raise ParameterError(f"client is {client!r}; it is a distributed.Client, as Client('tcp://host:8786') makes it")
    if getattr(client, "status", "running") in ("closing", "closed"):
        raise ParameterError("client is closed; connect again, as by Client('tcp://host:8786')")
    from distmf.cluster import ClusterEngine  # noqa: PLC0415 (imports distributed, which takes a second)

    return ClusterEngine(client)


def check_grid(engine: Engine, shape: Shape) -> None:
    """Warn if the grid is too coarse to keep all workers busy: each needs two row blocks, one to wait for a column."""
    least, n_slots = min(shape), engine.n_slots
    if engine.shares_memory or least >= BLOCKS_PER_SLOT * n_slots:
        return
    logger.warning(
        "the grid of %d × %d blocks keeps the %d threads of the cluster busy %s; block again with a grid of at least "
        "%d × %d (--grid), or use %s",
        *shape,
        n_slots,
        f"only {least} at a time" if least < n_slots else "with waits in between",
        *[BLOCKS_PER_SLOT * n_slots] * 2,
        f"{max(1, least // BLOCKS_PER_SLOT)} workers of one thread",
    )


def check_storage(engine: Engine, writable: Folder, readable: dict[str, Folder]) -> None:
    """Check that all workers read what this process wrote, and the reverse.

    Parameters
    ----------
    engine : Engine
        Whose processes to ask; nothing is checked if all tasks run in this one.
    writable : Folder
        Where tasks will write.
    readable : dict
        Names of files to the folders that tasks will read them from.

    Raises
    ------
    StoreError
        With the workers that do not see a folder, or may not write to it.
    """
    if engine.shares_memory:
        return
    token = uuid.uuid4().hex
    probes = f"tmp/probe-{token}"
    try:
        writable.write(f"{probes}/driver", token.encode())
        files = [*((folder, name) for name, folder in readable.items()), (writable, f"{probes}/driver")]
        seen = [(folder, name, _fingerprint(folder, name)) for folder, name in files]
        answers = engine.everywhere(_look, seen, writable, f"{probes}/worker")
        problems = [
            f"worker {worker}: {'what it writes does not arrive here' if isinstance(answer, str) else answer}"
            for worker, answer in answers.items()
            if not (isinstance(answer, str) and writable.fs.isfile(writable.child(answer)))
        ]
    finally:
        with contextlib.suppress(OSError):
            writable.remove(probes)
    if problems:
        raise StoreError(
            f"not every worker shares the storage of this job, {len(problems)} of {len(answers)} do not; "
            f"{'; '.join(problems[:MAX_NAMED])}{'; …' if len(problems) > MAX_NAMED else ''}; use a folder on a file "
            "system that all machines mount, or a URL such as s3://…"
        )


def _fingerprint(folder: Folder, name: str) -> tuple[int, int]:
    """Return the size of a file and the checksum of its beginning."""
    with explained(f"{folder}: {name} cannot be read"):
        size = folder.fs.size(folder.child(name))
    return size, zlib.crc32(folder.read(name, 0, min(size, FINGERPRINT_BYTES)))


def _look(seen: Sequence[tuple[Folder, str, tuple[int, int]]], writable: Folder, probe: str) -> str | StoreError:
    """Return the name of a file that was written here, or what is wrong."""
    for folder, name, fingerprint in seen:
        try:
            if _fingerprint(folder, name) != fingerprint:
                return StoreError(f"{folder}: {name} is not the one that the driver sees")
        except StoreError as err:
            return err
    mine = f"{probe}-{uuid.uuid4().hex}"
    try:
        writable.write(mine, b"seen")
    except OSError as err:
        return StoreError(f"{writable} cannot be written: {err}")
    return mine
