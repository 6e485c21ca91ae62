"""Where a training stands <-> a folder, from which it goes on after any process was killed.

    checkpoint.json                     what is trained on what; the last two states, the newer one last
    factors/000012-1f3a…/rows-00003.bin  a factor block after 12 epochs
    driver.json                         the driver at work, while there is one

The manifest is replaced at once, and files that it names are removed only after it names others: whatever is killed,
one of the two states is whole. Files that nothing names any more are swept up when no task is under way.
"""

import contextlib
import itertools
import json
import logging
import math
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distmf.blocks import KIND as BLOCKS
from distmf.blocks import Blocks
from distmf.engine import Engine
from distmf.engines import check_storage
from distmf.errors import StoreError
from distmf.factors import Saved
from distmf.filesystem import explained
from distmf.graph import Chain, State
from distmf.history import Epoch, Stopped, best_on_holdout
from distmf.lock import DriverLock, driver_lock
from distmf.sizes import counted
from distmf.store import TEMPORARY, Folder, Kind, free_folder, refuse_nested, temporary_folder
from distmf.tasks import Cost

logger = logging.getLogger(__name__)

KIND = Kind(
    "distmf checkpoint",
    4,
    "checkpoint.json",
    (),
    r"factors/\d+-[0-9a-f]+/(rows|cols)-\d+\.bin|start/(user|item)s-\d+\.bin",
)
FACTORS = "factors"


class Progress(NamedTuple):
    """How far a training is.

    Attributes
    ----------
    state : State
        The last good one.
    before : State
        An earlier one on the way to it, to go back to.
    anchor : State
        The last one that is not after the epoch that is best on the holdout.
    epochs : tuple of Epoch
        History up to `state`.
    costs : tuple of float
        Mean squared error seen in each of these epochs, in units of the ratings' scale squared.
    rollbacks, rollbacks_in_a_row : int
        So far, and since the last good epoch.
    event : str or None
        What stops the training in this state, if something does.
    """

    state: State
    before: State
    anchor: State
    epochs: tuple[Epoch, ...] = ()
    costs: tuple[float, ...] = ()
    rollbacks: int = 0
    rollbacks_in_a_row: int = 0
    event: Stopped | None = None

    @property
    def best_epoch(self) -> int:
        """The epoch that is best on the holdout, 0 without one."""
        best = best_on_holdout(self.epochs)
        return best.epoch if best else 0


STATES = "state", "before", "anchor"  # of progress


@dataclass
class Checkpoint:
    """The folder of one training, locked for this driver.

    Attributes
    ----------
    folder : Folder
        Where it lies.
    lock : DriverLock
        Held as long as the checkpoint is open.
    settings : dict
        What is trained on what, by name.
    records : list of dict
        What the manifest holds of each of the last two states.
    """

    folder: Folder
    lock: DriverLock
    settings: dict[str, Any]
    records: list[dict[str, Any]]

    def restore(self, first: State, is_whole: Callable[[State], bool]) -> Progress | None:
        """Return the newest progress whose files are whole, None if nothing was saved yet.

        Parameters
        ----------
        first : State
            Before the first epoch.
        is_whole : callable
            Says whether all files of a state can be read.

        Raises
        ------
        StoreError
            If states were saved and none of them is whole.
        """
        for record in reversed(self.records):
            progress = _progress(record, first)
            if is_whole(progress.state):
                return progress
            logger.warning("%s: the state after epoch %d is damaged", self.folder, progress.state.epoch)
        if self.records:
            raise StoreError(f"{self.folder}: neither of the two states can be read; remove the folder and start again")
        return None

    def commit(self, progress: Progress, in_use: State) -> None:
        """Make `progress` what a resumed training goes on from; keep the files of the state `in_use` by tasks."""
        self.lock.check()
        records = [*self.records[-1:], _record(progress)]
        self._write(records)
        outdated = _directories(self.records) - _directories(records) - _directories_of(in_use)
        self.records = records
        for directory in outdated:
            self._remove(directory)

    def sweep(self) -> None:
        """Remove the files that nothing names, if the folder is still ours; only when no task is under way."""
        if not self.lock.is_held():
            return
        place = self.folder.child(FACTORS)
        with explained(f"{self.folder} cannot be listed"):
            there = self.folder.fs.ls(place, detail=False) if self.folder.fs.isdir(place) else []
        directories = {f"{FACTORS}/{posixpath.basename(path.rstrip('/'))}" for path in there}
        for directory in {*directories, TEMPORARY} - _directories(self.records):
            self._remove(directory)

    def _write(self, records: list[dict[str, Any]]) -> None:
        self.folder.write_manifest(KIND, {"settings": self.settings, "states": records})

    def _remove(self, directory: str) -> None:
        with contextlib.suppress(OSError):  # it may be gone, and a file too many does no harm
            self.folder.remove(directory)


@contextlib.contextmanager
def checkpoint_of(
    blocks: Blocks,
    engine: Engine,
    path: str | Path | None,
    hyperparameters: dict[str, Any],
    *,
    resume: bool,
    needed: bool,
) -> Iterator[Checkpoint | None]:
    """Yield the checkpoint of a training at `path`, or a temporary one where factors need a place on disk.

    They do if it is `needed`, or if processes must share them.

    Raises
    ------
    StoreError
        As `open_checkpoint`, or if the folder is in that of the blocks, or the reverse; if a worker does not see one of
        the two.
    """
    if path is None and engine.shares_memory and not needed:
        yield None
        return
    if path is not None:
        refuse_nested(blocks.folder, Folder.at(path))
    settings = json.loads(json.dumps({**blocks.identity(), **hyperparameters}))  # as they are read again
    with contextlib.ExitStack() as stack:
        folder = Folder.at(path) if path else stack.enter_context(temporary_folder(f"{blocks.path}.training"))
        try:
            checkpoint = stack.enter_context(open_checkpoint(folder, settings, resume=resume))
        except StoreError as err:
            if path is None:
                raise StoreError(
                    f"{err}; factors that processes share, or that do not fit in memory, are saved beside the blocks "
                    "or in a checkpoint: give a folder that can be written to, by all workers (--checkpoint)"
                ) from err
            raise
        check_storage(engine, checkpoint.folder, {BLOCKS.manifest: blocks.folder})
        yield checkpoint


@contextlib.contextmanager
def open_checkpoint(folder: Folder, settings: dict[str, Any], *, resume: bool) -> Iterator[Checkpoint]:
    """Lock the folder of a checkpoint, make it if it is not there, and yield it.

    Parameters
    ----------
    folder : Folder
        Where it lies.
    settings : dict
        What is trained on what; must be the same when it is resumed, but for more "epochs".
    resume : bool
        Whether to go on from what is there.

    Raises
    ------
    StoreError
        If another driver is at work on it; if there is a checkpoint and `resume` is false, or of another training; if
        something else is there.
    """
    folder = free_folder(str(folder), KIND)
    folder.fs.makedirs(folder.path, exist_ok=True)
    with driver_lock(folder) as lock:
        records: list[dict[str, Any]] = []
        if folder.is_a(KIND):
            manifest = folder.read_manifest(KIND)
            if not resume:
                done = max((record["state"]["epoch"] for record in manifest["states"]), default=0)
                raise StoreError(
                    f"{folder} holds the checkpoint of a training that has done {counted(done, 'epoch')}; go on "
                    "from it with resume=True (--resume), or choose another folder or remove this one to start again"
                )
            _refuse_differences(folder, manifest["settings"], settings)
            records = manifest["states"]
        checkpoint = Checkpoint(folder, lock, settings, records)
        checkpoint._write(records)
        checkpoint.sweep()
        try:
            yield checkpoint
        except StoreError:
            lock.check()  # another driver that took over has removed what this one needs
            raise
        finally:
            checkpoint.sweep()


def read_checkpoint(folder: Folder) -> tuple[dict[str, Any], list[tuple[Epoch, ...]]]:
    """Return what is trained on what, and the history up to each of the states from which it can go on."""
    manifest = folder.read_manifest(KIND)
    return manifest["settings"], [tuple(Epoch(*epoch) for epoch in state["epochs"]) for state in manifest["states"]]


def _refuse_differences(folder: Folder, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on with something else; only "epochs" may grow, and time may be given anew."""
    for name in {**there, **here}:
        old, new = there.get(name), here.get(name)
        if name == "max_seconds" or (name == "epochs" and old is not None and new >= old):
            continue
        if old != new:
            raise StoreError(
                f"{folder} is the checkpoint of another training: {name} was {_shown(old)} there and is "
                f"{_shown(new)} here; use what it was begun with, or another folder"
            )


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _record(progress: Progress) -> dict[str, Any]:
    """Return progress as it stands in the manifest."""
    fields = progress._asdict()
    states = {name: _state_record(fields.pop(name)) for name in STATES}
    return {**states, **fields}


def _state_record(state: State) -> dict[str, Any]:
    cost, spread = state.cost, state.cost and state.cost.spread
    return {
        "epoch": state.epoch,
        "step": state.step,
        "cost": cost and [cost.train, None if math.isnan(cost.holdout) else cost.holdout],
        "spread": None if spread is None else spread.tolist(),
        **{name: list(getattr(state, name)) if state.epoch else None for name in ("rows", "cols")},
        "chains": state.chains,
    }


def _progress(record: dict[str, Any], first: State) -> Progress:
    """Return what `_record` wrote; blocks before the first epoch are not in files."""
    states = {name: _state(record[name], first) for name in STATES}
    epochs = tuple(Epoch(*epoch) for epoch in record["epochs"])
    return Progress(**{**record, **states, "epochs": epochs, "costs": tuple(record["costs"])})


def _state(record: dict[str, Any], first: State) -> State:
    cost = None
    if record["cost"]:
        train, holdout = record["cost"]
        spread = None if record["spread"] is None else np.array(record["spread"])
        cost = Cost(train, math.nan if holdout is None else holdout, spread)
    sides = _sides(record["rows"], record["cols"]) if record["epoch"] else (first.rows, first.cols)
    chains = tuple(Chain(*_sides(rows, cols), precision) for rows, cols, precision in record["chains"])
    return State(record["epoch"], *sides, type(first.step)(*record["step"]), cost, chains)


def _sides(rows: list[Any], cols: list[Any]) -> tuple[tuple[Saved, ...], tuple[Saved, ...]]:
    return tuple(Saved(*saved) for saved in rows), tuple(Saved(*saved) for saved in cols)


def _directories(records: list[dict[str, Any]]) -> set[str]:
    """Return the sub-folders with the files that records name."""
    states = [record[name] for record in records for name in STATES]
    rows = [rows for state in states for rows in (state["rows"] or (), *[chain[0] for chain in state["chains"]])]
    return {posixpath.dirname(saved[0]) for saved in itertools.chain(*rows)}


def _directories_of(state: State) -> set[str]:
    sources = itertools.chain(state.rows, *[chain.rows for chain in state.chains])
    return {posixpath.dirname(source.name) for source in sources if isinstance(source, Saved)}
