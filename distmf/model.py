"""Trained factors and their ids -> predictions and recommendations; and the folder they are saved in.

model.json                    format version, hyperparameters, normalisation, observed range, history
run.json                      where, when and how fast it was trained, for reports: all that equal models differ in
users.parquet, items.parquet  by ascending id: id, bias, factors (a list of `rank` floats), count (ratings trained
                              on); of draws from the posterior also draws (of all chains, with biases), noise
"""

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.best import Panels, Rated
from distmf.blocks import PARTS, Blocks, Part
from distmf.choices import BOUNDS, Bound
from distmf.errors import NotFittedError, ParameterError, RatingsError, StoreError
from distmf.factors import FLOAT_BYTES
from distmf.graph import State, of_all_chains
from distmf.grid import BlockKey
from distmf.history import History
from distmf.langevin import SIDES
from distmf.losses import Normalisation
from distmf.normalisation import ratings_of
from distmf.numbering import IdMap
from distmf.pairs import PAIRS_AT_ONCE, scores_of_pairs
from distmf.run import Run
from distmf.sides import Float32, Side, as_ids
from distmf.sizes import counted
from distmf.store import MISSING, Folder, Kind
from distmf.tasks import Training

USERS, ITEMS = "users.parquet", "items.parquet"
RUN = "run.json"
KIND = Kind("distmf model", 4, "model.json", (USERS, ITEMS), r"run\.json")
SCORES_AT_ONCE, USERS_AT_ONCE = 1 << 24, 1 << 16
WRITTEN_BYTES = 1 << 24  # of factors at once, which are in memory until they are compressed


class Recommendations(NamedTuple):
    """Items and their predicted ratings, best first: shape (n,) for one user, (n_users, n) for several.

    A score of -inf marks a place for which no item is left; the id there means nothing.
    """

    item_ids: npt.NDArray[Any]
    scores: Float32

    def table(self, user_ids: pa.Array, schema: pa.Schema) -> pa.Table:
        """Return them as rows of user, item, score and rank (from 1), without the places for which no item is left."""
        n_users, n = self.scores.shape
        is_left = np.isfinite(self.scores).reshape(-1)
        users = user_ids.take(pa.array(np.repeat(np.arange(n_users), n)))
        ranks = np.tile(np.arange(1, n + 1, dtype=np.int32), n_users)
        columns = [users, pa.array(self.item_ids.reshape(-1)), self.scores.reshape(-1), ranks]
        return pa.table(columns, names=schema.names).cast(schema).filter(pa.array(is_left))


class Predictions(NamedTuple):
    """Predicted ratings of n pairs.

    Attributes
    ----------
    ratings : float32, shape (n,)
        The predictions.
    is_unseen : bool, shape (n,)
        Whether the user or the item was not trained on.
    stds : float32, shape (n,), or None
        Predictive standard deviations, of the noise and of the draws from the posterior, where they are asked for.
    """

    ratings: Float32
    is_unseen: npt.NDArray[np.bool_]
    stds: Float32 | None


class Catalogue(NamedTuple):
    """Items that may be recommended: their positions, ascending, and how they are searched."""

    among: npt.NDArray[np.int64]
    panels: Panels


class RatedReader:
    """Which items some users have rated, read from blocks.

    Parameters
    ----------
    blocks : Blocks
        Ratings.
    items : IdMap
        Positions of the items.
    parts : sequence of str
        Which of the ratings count.
    """

    def __init__(self, blocks: Blocks, items: IdMap, parts: Sequence[Part] = PARTS) -> None:
        self.blocks, self.parts = blocks, parts
        self.users = IdMap(blocks.ids("user")["id"].combine_chunks(), items.salt)
        self._items = items.numbers(as_ids(blocks.ids("item")["id"], items.ids.type, "item"))

    def rated(self, user_ids: pa.Array, among: npt.NDArray[np.int64]) -> Rated:
        """Return for each of some distinct users the places in `among` of the items that they rated."""
        return Rated.among(*self.pairs(user_ids), np.arange(len(user_ids)), among)

    def pairs(self, user_ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the positions of users in `user_ids`, which are distinct, and of the items that they rated."""
        numbers = self.users.numbers(user_ids)
        position = np.full(self.blocks.n_users, -1, dtype=np.int64)
        position[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
        row_blocks = np.searchsorted(self.blocks.layout.row_cuts, numbers[numbers >= 0], side="right") - 1
        found = [(position[:0], position[:0])]
        for row in np.unique(row_blocks).tolist():
            for col in range(self.blocks.shape.cols):
                for part in self.parts:
                    rows, cols = self.blocks.numbers(BlockKey(row, col), part)
                    is_wanted = (position[rows] >= 0) & (self._items[cols] >= 0)
                    found.append((position[rows[is_wanted]], self._items[cols[is_wanted]]))
        users, items = zip(*found, strict=True)
        return np.concatenate(users), np.concatenate(items)


class Model(NamedTuple):
    """Everything that training gives."""

    users: Side
    items: Side
    normalisation: Normalisation
    rating_range: tuple[float, float]
    history: History
    noise_std: float | None = None  # of the ratings, where there are draws from the posterior
    run: Run | None = None

    @classmethod
    def of_training(cls, training: Training, state: State, history: History, run: Run) -> Self:
        """Return the model of a state of a training."""
        users, items = (Side.of_training(training, name, state) for name in SIDES)
        noise_std = None
        if training.chain_rule:
            _, state = of_all_chains(training, state)
            variance = np.mean([chain.noise_variance for chain in state.chains])
            noise_std = math.sqrt(variance) * training.hyper.scale
        return cls(users, items, training.hyper.normalisation, training.blocks.rating_range, history, noise_std, run)

    @property
    def n_bytes(self) -> int:
        """Of users and items, as far as they are in memory."""
        return self.users.n_bytes + self.items.n_bytes

    @property
    def global_bias(self) -> float:
        """What is added to biases and products."""
        return self.normalisation.score_of_mean

    @property
    def is_finite(self) -> bool:
        """Whether all factors and biases are finite."""
        arrays = [array for side in (self.users, self.items) for array in (side.factors, side.biases)]
        return all(np.isfinite([array.min(), array.max()]).all() for array in arrays)

    def predict(self, user_ids: Any, item_ids: Any, *, clip: bool = True, with_stds: bool = False) -> Predictions:
        """Return the predicted rating of each pair, and what is known of how sure it is."""
        rows, cols = self.users.positions(user_ids, "user"), self.items.positions(item_ids, "item")
        if len(rows) != len(cols):
            n_users, n_items = counted(len(rows), "user id"), counted(len(cols), "item id")
            raise RatingsError(f"there are {n_users} and {n_items}; a pair needs one of each")
        return self.predict_at(rows, cols, clip=clip, with_stds=with_stds)

    def predict_at(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64], *, clip: bool = True, with_stds: bool = False
    ) -> Predictions:
        """Return the predicted rating of each pair of positions, of which -1 is what was not trained on."""
        if with_stds:
            self.last_draws()
        predicted = scores_of_pairs(self.users, self.items, rows, cols, self.global_bias)
        stds = np.empty(len(rows), dtype=np.float32) if with_stds else None
        if stds is not None:
            for begin in range(0, len(rows), PAIRS_AT_ONCE):
                some = slice(begin, begin + PAIRS_AT_ONCE)
                stds[some] = np.sqrt(self._noise(rows[some], cols[some]) + self._variance(rows[some], cols[some]))
        return Predictions(self._rated(predicted, clip=clip), (rows < 0) | (cols < 0), stds)

    def last_draws(self) -> tuple[Float32, Float32, float]:
        """Return the draws of users and items, and the standard deviation of the noise.

        Raises
        ------
        NotFittedError
            If nothing was drawn from the posterior.
        """
        if self.users.draws is None or self.items.draws is None or self.noise_std is None:
            raise NotFittedError(
                "the model has no draws from the posterior, so it cannot say how sure it is; train it with "
                "posterior_samples (--posterior-samples)"
            )
        return self.users.draws, self.items.draws, self.noise_std

    def _noise(self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> Float32:
        """Return the variance of the noise of the ratings at some positions; where one is -1, that of all ratings."""
        assert self.users.noises is not None
        assert self.items.noises is not None
        *_, noise_std = self.last_draws()
        of_all = np.float32(noise_std**2)
        of_users = np.where(rows < 0, 1, self.users.noises[rows])
        return np.asarray(of_all * of_users * np.where(cols < 0, 1, self.items.noises[cols]), dtype=np.float32)

    def _variance(self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> Float32:
        """Return the variance of the prediction over the draws, for the users and items at some positions.

        An unseen user or item, at -1, may be any: the variance is that over all users or items.
        """
        users, items, _ = self.last_draws()
        is_known = (rows >= 0) & (cols >= 0)
        p, q = users[rows], items[cols]  # of what is unseen, those of somebody else
        drawn = np.einsum("nsk,nsk->ns", p[..., :-1], q[..., :-1]) + p[..., -1] + q[..., -1]
        variance = np.square(drawn - drawn.mean(axis=1, keepdims=True)).sum(axis=1) / max(1, drawn.shape[1] - 1)
        for n in np.flatnonzero(~is_known).tolist():
            squares = [
                np.square(draw) if position >= 0 else side.squares
                for side, draw, position in ((self.users, p[n], rows[n]), (self.items, q[n], cols[n]))
            ]
            unseen = [side[:, -1] for side, position in zip(squares, (rows[n], cols[n]), strict=True) if position < 0]
            variance[n] = np.mean(sum(unseen) + (squares[0] * squares[1])[:, :-1].sum(axis=1))
        return np.asarray(variance)

    def reconstruct(self, *, clip: bool) -> Float32:
        """Return the predicted ratings of all items by all users."""
        return self._rated(self.scores(np.arange(len(self.users.ids))), clip=clip)

    def scores(self, rows: npt.NDArray[np.int64]) -> Float32:
        """Return the scores of all items for the users at some positions, -1 for an unseen one.

        They are the predicted ratings, or, within bounds, what a sigmoid makes these of.
        """
        scores = rows_at(self.users.factors, rows) @ self.items.factors.T
        scores += rows_at(self.users.biases, rows)[:, None] + self.items.biases + np.float32(self.global_bias)
        return np.asarray(scores)

    def stds(self, rows: npt.NDArray[np.int64]) -> Float32:
        """Return the standard deviations over the draws of the predictions of all items by some users; 0 for unseen."""
        users, items, _ = self.last_draws()
        sums = np.zeros((2, len(rows), len(items)), dtype=np.float32)
        for n in range(users.shape[1]):
            p, q = rows_at(users[:, n], rows), items[:, n]
            drawn = p[:, :-1] @ q[:, :-1].T + p[:, -1:] + q[:, -1]
            sums[0] += drawn
            sums[1] += np.square(drawn)
        n_draws = users.shape[1]
        mean, square = sums / np.float32(n_draws)
        variance = (square - np.square(mean)) * np.float32(n_draws / max(1, n_draws - 1))
        return np.asarray(np.sqrt(np.maximum(variance, 0)))

    def _rated(self, scores: Float32, *, clip: bool) -> Float32:
        """Return the ratings that scores stand for; they may be changed in place."""
        ratings = ratings_of(self.normalisation, scores)
        return np.clip(ratings, *self.rating_range, out=ratings) if clip else ratings

    def recommend(
        self,
        user_ids: Any,
        n: int,
        reader: RatedReader | None,
        bound: Bound,
        items: Catalogue,
    ) -> Recommendations:
        """Return the `n` best items of each user by some bound, without those that a reader finds rated."""
        encoded = as_ids(user_ids, self.users.ids.type, "user").dictionary_encode()
        ids, inverse = encoded.dictionary, encoded.indices.to_numpy()
        # Users who lie together in the blocks are served together.
        order = np.arange(len(ids)) if reader is None else np.argsort(reader.users.numbers(ids))
        n = min(n, len(items.among))
        best, scores = np.empty((len(ids), n), dtype=np.int64), np.empty((len(ids), n), dtype=np.float32)
        at_once = max(1, SCORES_AT_ONCE // len(self.items.ids)) if BOUNDS[bound] else USERS_AT_ONCE
        for begin in range(0, len(ids), at_once):
            some = order[begin : begin + at_once]
            users = ids.take(pa.array(some))
            rows = self.users.map.numbers(users)
            rated = None if reader is None else reader.rated(users, items.among)
            best[some], scores[some] = self._best(rows, n, rated, bound, items)
        return self._recommendations(best[inverse], scores[inverse], items)

    def ranked(
        self,
        rows: npt.NDArray[np.int64],
        n: int,
        rated: Rated | None,
        bound: Bound,
        items: Catalogue,
    ) -> Recommendations:
        """Return the `n` best items for the users at some positions, -1 for an unseen one."""
        return self._recommendations(*self._best(rows, min(n, len(items.among)), rated, bound, items), items)

    def _recommendations(self, best: npt.NDArray[np.int64], scores: Float32, items: Catalogue) -> Recommendations:
        is_left = np.isfinite(scores)
        scores[is_left] = self._rated(scores[is_left], clip=True)
        return Recommendations(self.items.ids.to_numpy(zero_copy_only=False)[items.among[best]], scores)

    def catalogue(self, among: npt.NDArray[np.int64]) -> Catalogue:
        """Return the items at some positions, ready to be searched."""
        return Catalogue(among, Panels(self.items.factors[among], self.items.biases[among]))

    def items_among(self, among: Any, without: Any) -> npt.NDArray[np.int64]:
        """Return the positions, ascending, of the items that may be recommended: of `among`, but not of `without`.

        Raises
        ------
        ParameterError
            If there are none.
        """
        is_among = self.items.counts > 0
        for ids, is_kept in (among, True), (without, False):
            if ids is not None:
                named = np.zeros_like(is_among)
                places = self.items.map.numbers(as_ids(ids, self.items.ids.type, "item"))
                named[places[places >= 0]] = True
                is_among &= named == is_kept
        if not is_among.any():
            raise ParameterError(
                "no item is left to recommend: look at what is given as among and without (--among, --without)"
            )
        return np.flatnonzero(is_among)

    def _best(
        self,
        rows: npt.NDArray[np.int64],
        n: int,
        rated: Rated | None,
        bound: Bound,
        items: Catalogue,
    ) -> tuple[npt.NDArray[np.int64], Float32]:
        """Return the places in the catalogue and the scores of the best items for users at some positions."""
        if BOUNDS[bound]:
            scores = self.scores(rows) + np.float32(BOUNDS[bound]) * self.stds(rows)
            scores = scores[:, items.among]
            if rated is not None:
                scores[np.repeat(np.arange(len(rows)), np.diff(rated.begins)), rated.items] = -np.inf
            return top(scores, n)
        best, scores = items.panels.best(rows_at(self.users.factors, rows), n, rated)
        scores += (rows_at(self.users.biases, rows) + np.float32(self.global_bias))[:, None]
        return best, scores

    def save(self, folder: Folder, settings: dict[str, Any]) -> None:
        """Write the model into an empty folder."""
        for name, side in zip(KIND.tables, (self.users, self.items), strict=True):
            table = side.table()
            folder.write_table(
                name, table.schema, table.to_batches(max(1, WRITTEN_BYTES // (FLOAT_BYTES * side.factors.shape[1])))
            )
        content = {
            "distmf": version("distmf"),
            "hyperparameters": settings,
            "normalisation": self.normalisation.to_json(),
            "rating_range": self.rating_range,
            "history": self.history.to_json(),
            "noise_std": self.noise_std,
        }
        if self.run is not None:
            folder.write(RUN, json.dumps(self.run.to_json()).encode())
        folder.write_manifest(KIND, content)

    @classmethod
    def load(cls, folder: Folder) -> tuple[Self, dict[str, Any]]:
        """Return the model in a folder and its hyperparameters."""
        model, manifest = cls.load_items(folder)
        settings, table = manifest["hyperparameters"], folder.read_table(USERS, manifest["checksums"][USERS])
        users = Side.from_table(table, settings["rank"])
        return model._replace(users=users, run=_read_run(folder)), settings

    @classmethod
    def load_items(cls, folder: Folder) -> tuple[Self, dict[str, Any]]:
        """Return the model in a folder without its users, and the folder's manifest."""
        manifest = folder.read_manifest(KIND)
        rank, history = manifest["hyperparameters"]["rank"], History.from_json(manifest["history"])
        items = Side.from_table(folder.read_table(ITEMS, manifest["checksums"][ITEMS]), rank)
        normalisation = Normalisation.from_json(manifest["normalisation"])
        rating_range = tuple(manifest["rating_range"])
        return cls(items.none(), items, normalisation, rating_range, history, manifest["noise_std"]), manifest


def check_users(folder: Folder, manifest: dict[str, Any]) -> None:
    """Refuse a model whose users, of which a part at a time is to be read, are not those that were written.

    Raises
    ------
    StoreError
        If their file is missing or damaged.
    """
    if folder.checksums([USERS])[USERS] != manifest["checksums"][USERS]:
        raise StoreError(f"{folder}: {USERS} does not match its checksum; restore it or train again")


def _read_run(folder: Folder) -> Run | None:
    """Return what a report tells of a training, None if that is not there."""
    try:
        saved = folder.read(RUN)
    except StoreError as err:
        if err.errno not in MISSING:
            raise
        return None
    try:
        return Run.from_json(json.loads(saved))
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise StoreError(f"{folder}: {RUN} is damaged; remove it: only reports need it") from err


def rows_at(array: Float32, positions: npt.NDArray[np.int64]) -> Float32:
    """Return the rows of an array at some positions, zeros for -1."""
    found, is_known = np.zeros((len(positions), *array.shape[1:]), dtype=array.dtype), positions >= 0
    found[is_known] = array[positions[is_known]]
    return found


def top(scores: Float32, n: int) -> tuple[npt.NDArray[np.int64], Float32]:
    """Return the positions and values of the `n` largest of each row, largest first, ties by position."""
    order = np.argpartition(-scores, n - 1, axis=1)[:, :n]
    values = np.take_along_axis(scores, order, axis=1)
    # Among equal scores at the edge, the partition took any.
    is_tied = np.count_nonzero(scores >= values.min(axis=1, keepdims=True), axis=1) > n
    order[is_tied] = np.argsort(-scores[is_tied], axis=1, kind="stable")[:, :n]
    order.sort(axis=1)
    values = np.take_along_axis(scores, order, axis=1)
    inner = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(order, inner, axis=1), np.take_along_axis(values, inner, axis=1)
