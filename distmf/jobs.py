"""Long jobs whose folder keeps what is done, so that a job that was killed goes on where it was.

blocks.job/            the folder of a job that makes `blocks`, which it becomes at the end
blocks.job/job.json    what the job is: another one starts from the beginning
blocks.job/done/       what each step found, written when all that the step had to write is complete
"""

import contextlib
import json
import logging
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dask._task_spec import Task
from dask.typing import Key

from distmf.buffers import give_back_idle_memory
from distmf.engine import Engine, Graph, new_token, run_through_losses
from distmf.errors import MemoryBudgetError, RatingsError, StoreError
from distmf.filesystem import explained
from distmf.lock import NAME as LOCK
from distmf.lock import driver_lock
from distmf.progress import progress_of_tasks
from distmf.store import MISSING, Folder, Kind, clean_up, free_folder, put_in_place

logger = logging.getLogger(__name__)

SUFFIX = ".job"
WHAT = "job.json"
DONE = "done"
DECISION = "decided-"  # which takes no time to make again


@contextlib.contextmanager
def job_folder(url: str | Path, kind: Kind, what: dict[str, Any], transient: Sequence[str]) -> Iterator[Folder]:
    """Yield the folder of a job, locked, with all that an earlier process did of it; it appears at `url` at the end.

    A folder of the same `kind` that is at `url` is replaced. If the job fails for a reason that lies in what it works
    on, nothing is left; if it is interrupted, or a disk or a cluster fails, what is done is kept.

    Parameters
    ----------
    url : str or Path
        What the job makes.
    kind : Kind
        What that is.
    what : dict
        What the job is, as JSON: if what is there is of another job, it is removed.
    transient : sequence of str
        Names in the folder, besides those of this module, that are removed at the end.

    Raises
    ------
    StoreError
        If there is something else at `url`, it cannot be written, or another process is at work on the job.
    """
    target = free_folder(url, kind)
    clean_up(target)
    folder = target._replace(path=f"{target.path}{SUFFIX}")
    with explained(f"{target} cannot be written"):
        folder.fs.makedirs(folder.path, exist_ok=True)
    is_of_use = True
    try:
        with driver_lock(folder):
            if (before := _what(folder)) != what:
                if isinstance(before, dict) and _has_results(folder):
                    other = ", ".join(name for name in what if before.get(name) != what[name])
                    logger.warning("%s is begun anew: what was done of it is for another choice of %s", target, other)
                _empty(folder)
                folder.write(WHAT, json.dumps(what).encode())
            folder.remove_temporary_files()
            try:
                yield folder
            except BaseException as err:
                is_of_use = _has_results(folder) and not isinstance(err, RatingsError | MemoryBudgetError)
                if is_of_use and isinstance(err, KeyboardInterrupt):
                    kept = f"what is done is kept in {folder}; the same command goes on from there"
                    raise KeyboardInterrupt(kept) from err
                raise
            for name in (WHAT, DONE, *transient):  # killed in between, it would begin anew, and not go on with a part
                folder.remove(name)
            folder.remove_temporary_files()
    except BaseException:
        if not is_of_use:  # now that nobody writes that the lock is held
            with contextlib.suppress(StoreError):
                folder.delete()
        raise
    put_in_place(folder, target, kind)


def _has_results(folder: Folder) -> bool:
    with contextlib.suppress(StoreError):
        return not all(name.startswith(DECISION) for name in _files_done(folder))
    return True  # who knows


def _what(folder: Folder) -> Any:
    try:
        return json.loads(folder.read(WHAT))
    except ValueError:
        return None
    except StoreError as err:
        if err.errno not in MISSING:
            raise
        return None


def _empty(folder: Folder) -> None:
    """Remove everything but the lock."""
    with explained(f"{folder} cannot be listed"):
        names = [posixpath.basename(path.rstrip("/")) for path in folder.fs.ls(folder.path, detail=False)]
    for name in names:
        if name != LOCK:
            folder.remove(name)


def run_stage(
    engine: Engine,
    folder: Folder,
    verb: str,
    calls: Sequence[tuple[Any, ...]],
    sizes: Sequence[int],
    shared: Mapping[Key, Any] | None = None,
    what: str = "ratings",
) -> list[Any]:
    """Run calls, each once in the life of a job, and return what they returned, in their order.

    Parameters
    ----------
    engine : Engine
        Runs them.
    folder : Folder
        Of the job.
    verb : str
        What they do, such as "counting"; unique in the job.
    calls : sequence of tuple
        A function and its arguments, which may refer to tasks in `shared`. The function returns something that JSON can
        hold, and it is returned as JSON gives it back.
    sizes : sequence of int, shape (len(calls),)
        How large each is, for the progress.
    shared : mapping, optional
        Tasks whose values several calls need.
    what : str
        That sizes are numbers of.
    """
    name, kept = f"{verb}-{new_token()}", _kept(folder, verb)
    if kept:
        logger.info("%s: %d of %d parts are done already", verb, len(kept), len(calls))
    tasks: dict[Key, Any] = dict(shared or {})
    left = [n for n in range(len(calls)) if n not in kept]
    for n in left:
        tasks[name, n] = Task((name, n), _call, folder, _file(verb, n), *calls[n])
    on_done = progress_of_tasks(logger, verb, {n: sizes[n] for n in left}, what)
    keys = [(name, n) for n in left]
    found = dict(zip(left, run_through_losses(engine, Graph(tasks), keys, on_done) if keys else [], strict=True))
    engine.everywhere(give_back_idle_memory)
    return [found[n] if n in found else json.loads(folder.read(_file(verb, n))) for n in range(len(calls))]


def decide(folder: Folder, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return what a call returns, as JSON gives it back, or what it returned when the job first came to it.

    What later steps write and read must not depend on the process that goes on with the job.
    """
    file = f"{DONE}/{DECISION}{name}.json"
    if folder.fs.isfile(folder.child(file)):
        return json.loads(folder.read(file))
    return _call(folder, file, function, *args)


def _call(folder: Folder, file: str, function: Callable[..., Any], *args: Any) -> Any:
    data = json.dumps(function(*args), allow_nan=False)
    folder.write(file, data.encode())
    return json.loads(data)


def _kept(folder: Folder, verb: str) -> set[int]:
    """Return the numbers of the calls whose results are there."""
    parts = [name.removesuffix(".json").rpartition("-") for name in _files_done(folder)]
    return {int(number) for other, _, number in parts if other == verb}


def _files_done(folder: Folder) -> list[str]:
    place = folder.child(DONE)
    with explained(f"{folder} cannot be listed"):
        paths = folder.fs.ls(place, detail=False) if folder.fs.isdir(place) else []
    return [posixpath.basename(path) for path in paths]


def _file(verb: str, n: int) -> str:
    return f"{DONE}/{verb}-{n:06d}.json"
