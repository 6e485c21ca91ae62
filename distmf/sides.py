"""Users or items of a model: from trained factor blocks, and to and from tables; two of them made one."""

import functools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distmf.best import Panels, Rated
from distmf.buffers import give_back_idle_memory
from distmf.errors import RatingsError
from distmf.factors import FLOAT_BYTES, Source, fetch
from distmf.filesystem import is_local, one_line
from distmf.frames import column_of, gathered, plain
from distmf.graph import State, of_all_chains
from distmf.ids import salt
from distmf.memory import GATHERED_BYTES
from distmf.numbering import IdMap
from distmf.tasks import Training
from distmf.vectors import Line

ROWS_AT_ONCE = 1 << 12  # of factors that are put in order

Float32 = npt.NDArray[np.float32]


class Neighbours(NamedTuple):
    """Users or items that are similar to some, most similar first: shape (n,) for one, (n_some, n) for several.

    A cosine of -inf marks a place for which none is left; the id there means nothing.
    """

    ids: npt.NDArray[Any]
    cosines: Float32


@dataclass(frozen=True)
class Side:
    """Users or items of a model.

    Attributes
    ----------
    ids : pa.Array, shape (n,)
        Raw ids, ascending.
    factors : float32, shape (n, rank)
        P or Q.
    biases : float32, shape (n,)
        b_u or b_i.
    counts : int64, shape (n,)
        Ratings trained on.
    draws : float32, shape (n, samples, rank + 1), or None
        Draws from the posterior, of the factors and of the bias.
    noises : float32, shape (n,), or None
        There, the variance of the ratings of each, as a multiple of that of all.
    """

    ids: pa.Array
    factors: Float32
    biases: Float32
    counts: npt.NDArray[np.int64]
    draws: Float32 | None = None
    noises: Float32 | None = None

    @classmethod
    def of_training(cls, training: Training, name: Literal["user", "item"], state: State) -> Self:
        """Return the side of trained factor blocks, in units of the ratings, of which one at a time is in memory.

        Where the row blocks lie on disk, so do the factors of the users: in files that are gone when nobody uses them.
        """
        table = training.blocks.ids(name)
        order = pc.sort_indices(table["id"]).to_numpy()
        positions = np.empty(len(order), dtype=np.min_scalar_type(len(order)))
        positions[order] = np.arange(len(order), dtype=positions.dtype)
        ids, counts = table["id"].take(pa.array(order)).combine_chunks(), table["count"].to_numpy()[order]
        del table, order
        scale = training.hyper.normalisation.unit_of_scores
        if training.chain_rule is None:
            return cls(ids, *_gathered(training, name, state, positions, math.sqrt(scale))[:2], counts)
        averaging, averaged = of_all_chains(training, state)
        factors, biases, noises = _gathered(averaging, name, averaged, positions, math.sqrt(scale))
        drawing, drawn = of_all_chains(training, state, draws=True)
        units = np.full((len(drawn.chains), training.rank + 1), math.sqrt(scale), dtype=np.float32)
        units[:, -1] = scale  # biases
        draws, *_ = _gathered(drawing, name, drawn, positions, units.ravel())
        return cls(ids, factors, biases, counts, draws.reshape(len(ids), *units.shape), noises)

    @functools.cached_property
    def map(self) -> IdMap:
        """Positions of ids."""
        return IdMap(self.ids, salt(0, "model"))

    def counts_of(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """Return the number of ratings that each id was trained on, 0 for others."""
        found = self.map.numbers(as_ids(ids, self.ids.type, "known"))
        return np.where(found >= 0, self.counts[found], 0) if len(self.ids) else found + 1

    def having(self, counts: npt.NDArray[np.int64]) -> Self:
        """Return the same, trained on so many more ratings each."""
        return replace(self, counts=self.counts + counts)

    def updated(self, other: Self) -> Self:
        """Return these and others, which may be in any order, by ascending id; of ids that both have, the others.

        Raises
        ------
        RatingsError
            If ids of the others are of another type.
        """
        ids = self.cast(other.ids, "known")
        old = np.flatnonzero(replace(other, ids=ids).map.numbers(self.ids) < 0)
        both = pa.concat_arrays([self.ids.take(pa.array(old)), ids])
        order = pc.sort_indices(both)
        place = np.argsort(order.to_numpy())  # of the old ones, then of the others

        def merged(own: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[Any]:
            found = np.empty((len(both), *own.shape[1:]), dtype=own.dtype)
            for begin in range(0, len(old), ROWS_AT_ONCE):
                some = slice(begin, begin + ROWS_AT_ONCE)
                found[place[: len(old)][some]] = own[old[some]]
            found[place[len(old) :]] = others
            return found

        sides = zip(self._arrays(), other._arrays(), strict=True)
        return type(self)(both.take(order), *(merged(*arrays) for arrays in sides))

    @property
    def n_bytes(self) -> int:
        """Of its arrays, as far as they are in memory."""
        return sum(array.nbytes for array in self._arrays() if not isinstance(array.base, np.memmap))

    def _arrays(self) -> list[npt.NDArray[Any]]:
        drawn = [array for array in (self.draws, self.noises) if array is not None]
        return [self.factors, self.biases, self.counts, *drawn]

    def cast(self, ids: Any, name: str) -> pa.Array:
        """Return ids as ids of this side are.

        Raises
        ------
        RatingsError
            If they are of another type, or do not fit.
        """
        try:
            return as_ids(ids, self.ids.type, name).cast(self.ids.type)
        except pa.ArrowInvalid as err:
            raise RatingsError(
                f"there are {name} ids that do not fit {self.ids.type}, the type of the model's"
            ) from err

    def positions(self, ids: Any, name: str) -> npt.NDArray[np.int64]:
        """Return the position of each id, -1 for those that were not trained on."""
        found = self.map.numbers(as_ids(ids, self.ids.type, name))
        return np.where(self.counts[found] > 0, found, -1) if len(self.ids) else found

    def table(self) -> pa.Table:
        """Return the side as a table, for a file."""
        rank = self.factors.shape[1]
        factors = pa.FixedSizeListArray.from_arrays(pa.array(self.factors.reshape(-1)), rank)
        columns = {"id": self.ids, "bias": self.biases, "factors": factors, "count": self.counts}
        if self.draws is not None:
            flat = pa.array(self.draws.reshape(-1))
            columns["draws"] = pa.FixedSizeListArray.from_arrays(flat, math.prod(self.draws.shape[1:]))
            columns["noise"] = self.noises
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, rank: int) -> Self:
        """Return the side that `table` made; `rank` is that of a draw, if there are any."""
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        n, factors = len(table), columns["factors"].flatten().to_numpy(zero_copy_only=False)
        draws = columns["draws"].flatten().to_numpy(zero_copy_only=False) if "draws" in columns else None
        return cls(
            columns["id"],
            factors.reshape(n, -1) if n else factors.reshape(0, rank),
            columns["bias"].to_numpy(),
            columns["count"].to_numpy(),
            None if draws is None else draws.reshape(n, -1, rank + 1),
            None if draws is None else columns["noise"].to_numpy(),
        )

    def none(self) -> Self:
        """Return none of these."""
        return type(self)(self.ids[:0], *(array[:0] for array in self._arrays()))

    def similar(self, ids: Any, name: str, n: int) -> "Neighbours":
        """Return for some of these those others whose factors have the smallest angles with theirs.

        Raises
        ------
        RatingsError
            If there are ids that were not trained on.
        """
        places = self.positions(ids, name)
        if (places < 0).any():
            unseen = as_ids(ids, self.ids.type, name)[int(np.argmax(places < 0))]
            raise RatingsError(f"{name} {unseen.as_py()!r} was not trained on, so nothing is known to be similar to it")
        lengths = np.linalg.norm(self.factors, axis=1, keepdims=True)
        directions = self.factors / np.maximum(lengths, np.finfo(np.float32).tiny)
        not_found = np.where((self.counts > 0) & (lengths[:, 0] > 0), np.float32(0), np.float32(-np.inf))
        own = Rated(np.arange(len(places) + 1), places)
        best, cosines = Panels(directions, not_found).best(directions[places], min(n, len(self.ids)), own)
        return Neighbours(self.ids.to_numpy(zero_copy_only=False)[best], cosines)

    @functools.cached_property
    def squares(self) -> Float32:
        """Mean squares of the draws over all that were trained on: float32, shape (samples, rank + 1)."""
        assert self.draws is not None
        known = self.draws[self.counts > 0]
        return np.asarray(np.einsum("nsk,nsk->sk", known, known) / np.float32(len(known)))


def _gathered(
    training: Training, name: Literal["user", "item"], state: State, positions: npt.NDArray[Any], units: Any
) -> tuple[Float32, Float32, Float32]:
    """Return the factors, in some units of ratings, biases, and, of draws, noises of a side at their positions."""
    sources, n, rank = state.rows if name == "user" else state.cols, len(positions), training.rank
    biases = np.empty(n, dtype=np.float32)
    noises = np.empty_like(biases) if training.chain_rule else biases[:0]
    if name == "item" or not training.rows_on_disk:
        factors = np.empty((n, rank), dtype=np.float32)
        _gather(training, sources, positions, 0, units, factors, (biases, noises))
        return factors, biases, noises
    part = np.empty((max(1, GATHERED_BYTES // (FLOAT_BYTES * rank)), rank), dtype=np.float32)
    with tempfile.TemporaryFile(dir=_local_folder(training)) as file:
        for begin in range(0, n, len(part)):
            part = part[: n - begin]
            _gather(training, sources, positions, begin, units, part, (biases, noises))
            file.write(part.data)
        file.flush()
        return np.asarray(np.memmap(file, np.float32, "r", shape=(n, rank))), biases, noises


def _gather(
    training: Training,
    sources: Sequence[Source],
    positions: npt.NDArray[Any],
    begin: int,
    units: Any,
    factors: Float32,
    singles: tuple[Float32, Float32],
) -> None:
    """Put the rows of factor blocks at their positions from `begin` on, as far as `factors` goes, and all `singles`.

    These are biases and, of draws, noises.
    """
    biases, noises = singles
    scale, rank, first = np.float32(training.hyper.normalisation.unit_of_scores), training.rank, 0
    units = np.asarray(units, dtype=np.float32)
    for source in sources:
        block = fetch(source, training.folder, rank)
        there = positions[first : first + len(block.biases)].astype(np.int64)
        first += len(there)
        biases[there] = block.biases * scale
        if block.lines is not None:
            noises[there] = Line(*block.lines.T).noise
        rows = np.flatnonzero((there >= begin) & (there < begin + len(factors)))
        for some in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
            factors[there[some] - begin] = block.factors[some, :rank] * units
        give_back_idle_memory()


def _local_folder(training: Training) -> str | None:
    """Return a folder on a local disk with space for factors; None for where temporary files go."""
    folder = training.folder
    return folder.path if folder and is_local(folder.fs) else None


def as_ids(ids: Any, id_type: pa.DataType, name: str) -> pa.Array:
    """Return ids as an Arrow array of the kind that a model knows.

    Raises
    ------
    RatingsError
        If they are strings where the model has integers, or the reverse, or something else, or null.
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    ids = gathered(ids)
    if hasattr(ids, "columns"):  # of a table
        ids = column_of(ids, name)
    if isinstance(ids, set | frozenset):
        ids = list(ids)
    if isinstance(ids, pa.Array):
        array = ids
    else:
        ids = [ids] if np.ndim(ids) == 0 else ids
        try:
            try:
                array = pa.array(ids)
            except OverflowError:
                array = pa.array(ids, type=pa.uint64())
        except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as err:
            raise RatingsError(f"{name} ids are neither integers of 64 bits nor strings: {one_line(err)}") from err
    array = plain(array)
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if len(array) == 0:
        return array.cast(id_type)
    if array.null_count or is_text == pa.types.is_integer(id_type) or not (is_text or pa.types.is_integer(array.type)):
        if array.null_count:
            raise RatingsError(f"of the {name} ids, {array.null_count:,} of {len(array):,} are null; leave these out")
        raise RatingsError(
            f"{name} ids are of type {'string' if is_text else array.type}, but in the model of type "
            f"{id_type if pa.types.is_integer(id_type) else 'string'}; give them as they were trained on"
        )
    return pc.cast(array, pa.large_string()) if is_text else array
