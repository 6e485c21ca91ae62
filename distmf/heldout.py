"""Ratings that a model has not been trained on, from blocks or from any source -> batches by position in the model."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.blocks import Blocks, is_blocks, open_blocks
from distmf.errors import ParameterError, RatingsError
from distmf.grid import BlockKey
from distmf.model import Model
from distmf.ratings import Piece, open_ratings, read_piece
from distmf.sides import as_ids
from distmf.sources import as_parquet

Numbers = npt.NDArray[np.int64]


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


class HeldOut(NamedTuple):
    """Ratings to test a model with.

    Attributes
    ----------
    n : int
        How many.
    parts : sequence
        Of which each is read by itself, in any thread.
    read : callable
        A part → its batches.
    """

    n: int
    parts: Sequence[Any]
    read: Callable[[Any], Iterator[Batch]]


@contextlib.contextmanager
def open_heldout(model: Model, source: Any, names: dict[str, str | None]) -> Iterator[HeldOut]:
    """Yield ratings to test a model with.

    Parameters
    ----------
    model : Model
        Whose positions are wanted.
    source : Blocks, str, Path, table or matrix
        Blocks, of which the held out ratings are taken, or ratings as for `block_ratings`.
    names : dict
        Names of the columns, for ratings.

    Raises
    ------
    ParameterError
        If names of columns are given for blocks.
    RatingsError
        If the ratings do not hold what they should, blocks hold none out, or ids are of another type than the model's.
    """
    if is_blocks(source):
        if given := [name for name, value in names.items() if value is not None]:
            raise ParameterError(f"{', '.join(given)}: only for raw ratings, and {source} are blocks")
        yield _of_blocks(model, open_blocks(source))
        return
    with as_parquet(source, Path(tempfile.gettempdir()) / "distmf-ratings", names) as (parquet, columns):
        ratings = open_ratings(parquet, columns)

        def read(piece: Piece) -> Iterator[Batch]:
            for batch in read_piece(ratings, piece):
                rows, cols = model.users.positions(batch.user, "user"), model.items.positions(batch.item, "item")
                yield Batch(rows, cols, batch.rating, batch.item.filter(pa.array(cols < 0)))

        yield HeldOut(ratings.n_rows, ratings.pieces, read)


def _of_blocks(model: Model, blocks: Blocks) -> HeldOut:
    if not blocks.n_holdout:
        raise RatingsError(f"{blocks.path}: no ratings are held out; block them with holdout=0.1, or give others")
    items = as_ids(blocks.ids("item")["id"], model.items.ids.type, "item")
    of_users, of_items = model.users.positions(blocks.ids("user")["id"], "user"), model.items.positions(items, "item")

    def read(key: BlockKey) -> Iterator[Batch]:
        rows, cols = blocks.numbers(key, "holdout")
        ratings = blocks.read(key, "holdout")
        values, places = ratings.encoding.decode(ratings.values), of_items[cols]
        yield Batch(of_users[rows], places, values, items.take(pa.array(cols[places < 0])))

    return HeldOut(blocks.n_holdout, [key for key in sorted(blocks.entries) if blocks.entries[key].n_holdout], read)
