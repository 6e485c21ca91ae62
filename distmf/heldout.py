"""Ratings that a model has not been trained on, from blocks or from any source -> what is found in them, on any engine.

A model is one in memory, or the folder that one was saved in, which each process that needs it reads by itself.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask._task_spec import DataNode, Task, TaskRef

from distmf.blocks import Blocks, is_blocks, open_blocks
from distmf.engine import Engine, Graph, new_token, run_through_losses
from distmf.errors import ParameterError, RatingsError
from distmf.grid import BlockKey
from distmf.model import Model
from distmf.progress import progress_of_tasks
from distmf.ratings import Ratings, open_ratings, read_piece
from distmf.sides import as_ids
from distmf.sources import as_parquet
from distmf.store import Folder

Numbers = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Some ratings.

    Attributes
    ----------
    rows, cols : int64, shape (n,)
        Positions of user and item in the model; -1 for those that were not trained on.
    ratings : float32, shape (n,)
        The ratings.
    unseen_items : pa.Array
        Raw ids of the items at -1.
    """

    rows: Numbers
    cols: Numbers
    ratings: npt.NDArray[np.float32]
    unseen_items: pa.Array


class Places(NamedTuple):
    """Positions in a model of the users and the items of blocks, and the ids of these items."""

    of_users: Numbers
    of_items: Numbers
    items: pa.Array


class HeldOut(NamedTuple):
    """Ratings to test a model with, and the parts of which each is read by itself."""

    source: Ratings | Blocks
    parts: tuple[Any, ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers of ratings of the parts."""
        source = self.source
        if isinstance(source, Blocks):
            return [source.entries[key].n_holdout for key in self.parts]
        return [piece.n_rows for piece in self.parts]


@contextlib.contextmanager
def open_heldout(source: Any, names: dict[str, str | None], client: Any = None) -> Iterator[HeldOut]:
    """Yield ratings to test a model with.

    Parameters
    ----------
    source : Blocks, str, Path, table or matrix
        Blocks, of which the held out ratings are taken, or ratings as for `block_ratings`.
    names : dict
        Names of the columns, for ratings.
    client : distributed.Client, optional
        Whose workers write a Dask DataFrame.

    Raises
    ------
    ParameterError
        If names of columns are given for blocks.
    RatingsError
        If the ratings do not hold what they should, or blocks hold none out.
    """
    if is_blocks(source):
        if given := [name for name, value in names.items() if value is not None]:
            raise ParameterError(f"{', '.join(given)} can only be given with raw ratings; these are blocks")
        blocks = open_blocks(source)
        if not blocks.n_holdout:
            raise RatingsError(
                f"{blocks.path}: no ratings are held out; block them with holdout=0.1 (--holdout 0.1), or give others"
            )
        yield HeldOut(blocks, tuple(key for key in sorted(blocks.entries) if blocks.entries[key].n_holdout))
        return
    with as_parquet(source, None, names, client=client) as (parquet, columns):
        ratings = open_ratings(parquet, columns)
        yield HeldOut(ratings, ratings.pieces)


def known_items(model: Model | Folder) -> Model:
    """Return a model, of one in a folder without its users."""
    return model if isinstance(model, Model) else Model.load_items(model)[0]


def on_engine(
    engine: Engine,
    model: Model | Folder,
    verb: str,
    prepare: Callable[[Model], Any],
    function: Callable[..., Any],
    calls: list[tuple[Any, ...]],
    sizes: list[int],
    what: str = "ratings",
) -> list[Any]:
    """Return what a function returns for each of some arguments, after a model and what is prepared of it once."""
    token = new_token()
    of_model, prepared, name = f"model-{token}", f"prepared-{token}", f"{verb}-{token}"
    tasks: dict[Any, Any] = {
        of_model: Task(of_model, _load, model) if isinstance(model, Folder) else DataNode(of_model, model),
        prepared: Task(prepared, prepare, TaskRef(of_model)),
        **{
            (name, n): Task((name, n), function, TaskRef(of_model), TaskRef(prepared), *call)
            for n, call in enumerate(calls)
        },
    }
    keys = [(name, n) for n in range(len(calls))]
    on_done = progress_of_tasks(logger, verb, dict(enumerate(sizes)), what)
    return run_through_losses(engine, Graph(tasks), keys, on_done)


def _load(folder: Folder) -> Model:
    return Model.load(folder)[0]


def places_of(source: Ratings | Blocks, model: Model) -> Places | None:
    """Return where a model has the users and items of blocks; ratings have ids of their own."""
    if not isinstance(source, Blocks):
        return None
    items = as_ids(source.ids("item")["id"], model.items.ids.type, "item")
    users = source.ids("user")["id"]
    return Places(model.users.positions(users, "user"), model.items.positions(items, "item"), items)


def read(model: Model, places: Places | None, source: Ratings | Blocks, part: Any) -> Iterator[Batch]:
    """Yield the ratings of a part."""
    if places is not None:
        assert isinstance(source, Blocks)
        yield _of_block(places, source, part)
        return
    assert isinstance(source, Ratings)
    for batch in read_piece(source, part):
        rows, cols = model.users.positions(batch.user, "user"), model.items.positions(batch.item, "item")
        yield Batch(rows, cols, batch.rating, batch.item.filter(pa.array(cols < 0)))


def _of_block(places: Places, blocks: Blocks, key: BlockKey) -> Batch:
    rows, cols = blocks.numbers(key, "holdout")
    ratings, found = blocks.read(key, "holdout"), places.of_items[cols]
    unseen = places.items.take(pa.array(cols[found < 0]))
    return Batch(places.of_users[rows], found, ratings.encoding.decode(ratings.values), unseen)
