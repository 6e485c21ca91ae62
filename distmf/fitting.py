"""Counts of ratings -> the grid that blocking and training fit into, and the layout of its blocks."""

import logging
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout
from distmf.counting import Settings, Values
from distmf.encoding import Encoding
from distmf.errors import RatingsError
from distmf.grid import Shape, cut, tile_shape
from distmf.memory import BALANCE, Portions, Sizes, blocking_bytes, training_fits
from distmf.sizes import format_bytes

logger = logging.getLogger(__name__)


class Fitting(NamedTuple):
    """What a grid is chosen for.

    Attributes
    ----------
    sides : tuple of int64 arrays, shapes (n_users,) and (n_items,)
        Ratings to train on of each user and item, in the order of their numbers.
    values : Values
        The ratings.
    settings : Settings
        How they are blocked.
    rank : int
        That the blocks will be trained at.
    string_bytes : int
        Of ids that are strings.
    is_weighted : bool
        Whether ratings have weights.
    """

    sides: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    values: Values
    settings: Settings
    rank: int = 1
    string_bytes: int = 0
    is_weighted: bool = False

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of users, items, and ratings, held out ones included."""
        return len(self.sides[0]), len(self.sides[1]), int(self.values.moments.n)

    def choose(self, shapes: Iterable[Shape], threads: int, limit: int, portions: Portions) -> Shape:
        """Return the first of some grids, finer and finer, on which blocking and training fit in `limit` bytes.

        If none is, it is the first on which blocking fits: the blocks may be trained elsewhere; or else the last.
        """
        blocked: Shape | None = None
        for n, shape in enumerate(shapes):
            sizes = self.sizes(shape)
            if blocking_bytes(portions.fewest_records(), sizes.n_ids, sizes.largest_ratings, threads).total <= limit:
                if training_fits(sizes, threads, limit):
                    if n:
                        logger.info(
                            "a grid of %d × %d blocks, so that training fits in %s", *shape, format_bytes(limit)
                        )
                    return shape
                blocked = blocked or shape
        return blocked or shape

    def sizes(self, shape: Shape) -> Sizes:
        """Return the sizes of what will be trained on a grid, with the largest block that the counts lead to."""
        layout, n_ratings = self.layout(shape), self.counts[2]
        n_bytes = n_ratings * sum(dtype.itemsize for dtype in layout.dtypes)
        sizes = Sizes.expected(*self.counts[:2], self.rank, shape, n_ratings, n_bytes, self.string_bytes)
        shares = (
            np.add.reduceat(counts, cuts[:-1]).max() / max(1, counts.sum())
            for counts, cuts in zip(self.sides, layout[:2], strict=True)
        )
        return sizes._replace(largest_block=int(min(1.0, BALANCE * math.prod(shares)) * n_bytes))

    def layout(self, shape: Shape) -> Layout:
        """Return how the blocks are laid out on a grid.

        Raises
        ------
        RatingsError
            If there are fewer users or items than blocks.
        """
        users, items = self.sides
        if not (1 <= shape.rows <= len(users) and 1 <= shape.cols <= len(items)):
            raise RatingsError(
                f"grid is {shape.rows} × {shape.cols}, but there are {len(users):,} users and {len(items):,} items; "
                "every block needs at least one of each"
            )
        # A mean of duplicates need not be one of the ratings.
        distinct = () if self.settings.duplicates == "mean" else self.values.distinct
        moments = self.values.moments
        return Layout(
            tuple(cut(users, shape.rows).tolist()),
            tuple(cut(items, shape.cols).tolist()),
            tile_shape(*self.counts),
            Encoding.choose(distinct, self.values.low, self.values.high, moments.std, int(moments.n)),
            self.is_weighted,
        )
