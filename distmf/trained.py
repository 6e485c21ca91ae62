"""What a trained model answers: its factors, predictions, recommendations, and what is like what."""

from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.arguments import check_choice, check_whole, names_checked
from distmf.blocking import blocks_to_exclude
from distmf.choices import BOUNDS, Bound
from distmf.errors import NotFittedError
from distmf.estimator import Estimator
from distmf.frames import pairs_of
from distmf.history import History
from distmf.model import Model, RatedReader, Recommendations
from distmf.sides import Float32, Neighbours


class Trained(Estimator):
    """An estimator that has a model, once it is trained."""

    _model: Model | None = None
    _names: tuple[str, ...] | None = None  # of the columns of pairs that it was trained on

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there is a trained model."""
        return self._model is not None

    @property
    def model_(self) -> Model:
        """Everything that training gave."""
        if self._model is None:
            raise NotFittedError("this model has not been trained; call fit first")
        return self._model

    @property
    def user_ids_(self) -> npt.NDArray[Any]:
        """Raw user ids, ascending, those that are only in the holdout too, whose factors are 0; shape (n_users,)."""
        return _to_numpy(self.model_.users.ids)

    @property
    def item_ids_(self) -> npt.NDArray[Any]:
        """Raw item ids, ascending, those that are only in the holdout too, whose factors are 0; shape (n_items,)."""
        return _to_numpy(self.model_.items.ids)

    @property
    def user_factors_(self) -> Float32:
        """P, in the order of `user_ids_`; float32, shape (n_users, rank)."""
        return self.model_.users.factors

    @property
    def item_factors_(self) -> Float32:
        """Q, in the order of `item_ids_`; float32, shape (n_items, rank)."""
        return self.model_.items.factors

    @property
    def user_biases_(self) -> Float32:
        """b_u, in the order of `user_ids_`; float32, shape (n_users,)."""
        return self.model_.users.biases

    @property
    def item_biases_(self) -> Float32:
        """b_i, in the order of `item_ids_`; float32, shape (n_items,)."""
        return self.model_.items.biases

    @property
    def global_bias_(self) -> float:
        """μ: mean of the ratings trained on, median with robust losses; of a sigmoid, where its value is the mean."""
        return self.model_.global_bias

    @property
    def history_(self) -> History:
        """Every epoch, the exact errors at the end, and why training stopped."""
        return self.model_.history

    @overload
    def predict(
        self, user_ids: Any, item_ids: Any = ..., *, clip: bool = ..., return_std: Literal[False] = ...
    ) -> Float32: ...
    @overload
    def predict(
        self, user_ids: Any, item_ids: Any = ..., *, clip: bool = ..., return_std: Literal[True]
    ) -> tuple[Float32, Float32]: ...
    @names_checked
    def predict(
        self, user_ids: Any, item_ids: Any = None, *, clip: bool = True, return_std: bool = False
    ) -> Float32 | tuple[Float32, Float32]:
        """Return the predicted rating of each (user, item) pair.

        A user or an item that was not trained on falls back to what is known: the mean, plus the bias of the other.

        Parameters
        ----------
        user_ids, item_ids : array-like, shape (n,)
            Raw ids; two single ids are a pair. Or without `item_ids` pairs, as for `fit` with `y`.
        clip : bool
            Whether to clip to the range of the observed ratings.
        return_std : bool
            Whether to return the predictive standard deviation as well: that of the ratings' noise and of the draws
            from the posterior together. Of what is unseen, the spread of all users or items is taken.

        Returns
        -------
        float32, shape (n,), or two of them

        Raises
        ------
        NotFittedError
            Before training; if a standard deviation is asked of a model that was trained without `posterior_samples`.
        RatingsError
            If ids are null or of another type than those trained on, or there are not as many users as items.
        """
        model = self.model_
        if item_ids is None:
            user_ids, item_ids, _ = pairs_of(user_ids, known=self._names)
        found = model.predict(user_ids, item_ids, clip=clip, with_stds=return_std)
        return found.ratings if found.stds is None else (found.ratings, found.stds)

    @names_checked
    def score(self, pairs: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R², the share of the variance of ratings that predictions explain, as regressors of scikit-learn do.

        Parameters
        ----------
        pairs : table, or array of shape (n, 2)
            Users and items, as for `fit` with `y`.
        y : array-like, shape (n,)
            Their ratings. If they are all the same, R² is 1 for predictions without an error, and else 0.
        sample_weight : array-like, shape (n,), optional
            How much each counts.
        """
        ratings = np.asarray(y, dtype=np.float64)
        weights = np.ones(len(ratings)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        squares = float(weights @ np.square(ratings - self.predict(pairs)))
        spread = float(weights @ np.square(ratings - np.average(ratings, weights=weights)))
        return 1 - squares / spread if spread else float(squares == 0)

    @names_checked
    def is_unseen(self, user_ids: Any, item_ids: Any) -> npt.NDArray[np.bool_]:
        """Return for each (user, item) pair whether its user or its item was not trained on.

        Parameters
        ----------
        user_ids, item_ids : array-like, shape (n,)
            Raw ids.

        Returns
        -------
        bool, shape (n,)
        """
        return self.model_.predict(user_ids, item_ids).is_unseen

    def reconstruct(self, *, clip: bool = True) -> Float32:
        """Return the prediction of every user and item: float32, shape (n_users, n_items). For the small case."""
        return self.model_.reconstruct(clip=clip)

    @names_checked
    def recommend(
        self,
        user_ids: Any,
        n: int = 10,
        *,
        exclude: Any = None,
        among: Any = None,
        without: Any = None,
        bound: Bound = "mean",
    ) -> Recommendations:
        """Return the items with the highest predicted ratings for some users: exactly those, whatever the size.

        Parameters
        ----------
        user_ids : id or array-like of shape (n_users,)
            Raw ids; users that were not trained on get the items with the highest biases.
        n : int
            How many items; no more than there are.
        exclude : Blocks, str, Path, table or matrix, optional
            Ratings that are not recommended again, held out ones included: blocks, or what `block_ratings` takes, which
            is blocked anew in each call.
        among, without : array-like, optional
            Ids of items: recommend only some, and leave some out. Those that were not trained on do not count.
        bound : {"mean", "optimistic", "pessimistic"}
            What items are ranked by: the prediction; or the prediction plus, or less, its standard deviation over the
            draws from the posterior: what may be good, to find out, or what is surely good.

        Returns
        -------
        Recommendations
            `item_ids` and `scores`, best first: shape (n,) for one user, else (n_users, n). Where fewer than n items
            are left, one user gets these; of several, `item_ids` is then a masked array, and scores end in -inf.

        Raises
        ------
        ParameterError
            If there is no item to recommend, or `bound` is none of these.
        """
        check_choice("bound", bound, BOUNDS)
        check_whole("n", n)
        items = self.model_.catalogue(self.model_.items_among(among, without))
        with blocks_to_exclude(exclude) as blocks:
            reader = None if blocks is None else RatedReader(blocks, self.model_.items.map)
            found = self.model_.recommend(user_ids, n, reader, bound, items)
        return Recommendations(*_left(*found, _is_single(user_ids)))

    @names_checked
    def similar_items(self, item_ids: Any, n: int = 10) -> Neighbours:
        """Return the items whose factors point most nearly the same way, by the cosine of the angle between them.

        Parameters
        ----------
        item_ids : id or array-like of shape (n_items,)
            Raw ids of items that were trained on.
        n : int
            How many others.

        Returns
        -------
        Neighbours
            `ids` and `cosines`, most similar first: shape (n,) for one item, else (n_items, n); where there are fewer,
            as for `recommend`.

        Raises
        ------
        RatingsError
            If there are ids that were not trained on.
        """
        check_whole("n", n)
        return Neighbours(*_left(*self.model_.items.similar(item_ids, "item", n), _is_single(item_ids)))

    @names_checked
    def similar_users(self, user_ids: Any, n: int = 10) -> Neighbours:
        """Return the users whose factors point most nearly the same way, by the cosine of the angle between them.

        Parameters
        ----------
        user_ids : id or array-like of shape (n_users,)
            Raw ids of users that were trained on.
        n : int
            How many others.

        Returns
        -------
        Neighbours
            As those of `similar_items`.

        Raises
        ------
        RatingsError
            If there are ids that were not trained on.
        """
        check_whole("n", n)
        return Neighbours(*_left(*self.model_.users.similar(user_ids, "user", n), _is_single(user_ids)))


def _to_numpy(ids: pa.Array) -> npt.NDArray[Any]:
    return np.asarray(ids.to_numpy(zero_copy_only=False))


def _left(ids: npt.NDArray[Any], scores: Float32, is_single: bool) -> tuple[npt.NDArray[Any], Float32]:
    """Return what is left of each row: of a single one just that, of several all, with the other ids masked."""
    is_left = np.isfinite(scores)
    if is_single:
        n = np.count_nonzero(is_left[0])
        return ids[0, :n], scores[0, :n]
    return ids if is_left.all() else np.ma.masked_array(ids, ~is_left), scores


def _is_single(ids: Any) -> bool:
    return np.ndim(ids) == 0 and not isinstance(ids, pa.Array | pa.ChunkedArray)
