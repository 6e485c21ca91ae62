"""The estimator: hyperparameters and ratings -> a trained model that predicts, recommends, and can be saved."""

import logging
import math
from pathlib import Path
from typing import Any, Literal, Self

from distmf.arguments import check_names, names_checked
from distmf.blocking import block_ratings, blocks_of
from distmf.blocks import forget
from distmf.buffers import give_back_idle_memory
from distmf.diagnosis import Diagnosis, diagnose
from distmf.errors import ParameterError
from distmf.folding import fold_in
from distmf.frames import pairs_of, table_of
from distmf.history import History, Stopped
from distmf.kernel import Pair
from distmf.losses import LossName
from distmf.matrix import IsSet, not_nan
from distmf.model import KIND, Model
from distmf.parameters import checked, pair
from distmf.preparing import Place, open_trainer
from distmf.residuals import Residuals
from distmf.store import new_folder
from distmf.trained import Trained
from distmf.trainer import Trainer
from distmf.training import reg_of
from distmf.warm import with_new

logger = logging.getLogger(__name__)

EPOCHS, EPOCHS_OF_CHAIN = 15, 200


class MatrixFactorization(Trained):
    """Biased matrix factorization, trained by stratified SGD.

    The prediction is r̂(u, i) = μ + b_u + b_i + p_u·q_i, and training minimises::

        Σ_{(u,i) set} [ ((r − r̂) / σ)² + λ (‖p_u‖² + ‖q_i‖²) / σ + λ_b (b_u² + b_i²) / σ² ]

    where σ is the standard deviation of the ratings, so that one λ does for ratings of any scale.

    Parameters
    ----------
    rank : int
        Number of latent factors, from 1 to 512.
    loss : str
        What is minimised in place of the squared error: "absolute" or "huber" for ratings with outliers, "poisson" for
        counts and other amounts from 0 on, and for two values, as 0 and 1 or -1 and 1, "logistic", "hinge" or
        "squared_hinge". With "logistic", a rating is predicted as its expectation: of 0 and 1, the probability of 1.
    bounds : pair of float, optional
        Predict low + (high − low) / (1 + e^−(μ + b_u + b_i + p_u·q_i)): always between the two. Factors, biases and
        `global_bias_` are then the sigmoid's. For the losses "squared", "absolute" and "huber".
    nonnegative : bool
        Whether factors are kept from falling below zero: they are then parts that add up. Biases are free.
    reg : float, pair of float or "auto"
        λ, per rating; "auto" is 0.04 for 100 ratings per user and item, more for fewer, less for more. A pair is for
        users and for items.
    bias_reg : float or pair of float
        λ_b, per rating.
    l1_reg : float or pair of float
        The same for ``Σ |p_uk|`` and ``Σ |q_ik|``: from some size on it makes factors zero.
    epochs : int, optional
        Passes over the ratings, at most: by default 15; with `posterior_samples` as many for each, by default 200.
    step_size : float or "auto"
        η on ratings of unit standard deviation; "auto" is 0.04 at first for 100 ratings per user and item, more for
        fewer, less for more, and adapts to the cost.
    step_decay : float
        Factor on the step size from epoch to epoch.
    tol : float
        Stop when the cost falls by less than this share per epoch; 0 never stops.
    target_cost : float, optional
        Stop when the mean squared error over the ratings, in their units squared, or the mean of another loss, is below
        this.
    patience : int
        Where there is a holdout, stop when its error has not got better for so many epochs, and take the model of the
        best epoch, trained for as many more with steps that go to zero if that makes it better; 0 does all epochs and
        takes the model of the last.
    max_seconds : float, optional
        Stop after so many seconds of training.
    posterior_samples : int
        If not 0, the factors are drawn from their posterior instead, by as many chains, and predictions are the means
        over all of them. `reg`, `bias_reg`, the step size and all stop rules but `max_seconds` then have no effect:
        there is nothing to choose. The ratings' noise and the spread of the factors are learned.
    seed : int
        Of the first factors and of all orders.

    Attributes
    ----------
    user_factors_, item_factors_ : float32, shape (n_users, rank), (n_items, rank)
        P and Q, in the order of `user_ids_` and `item_ids_`.
    user_biases_, item_biases_ : float32, shape (n_users,), (n_items,)
        b_u and b_i.
    user_ids_, item_ids_ : array, shape (n_users,), (n_items,)
        Raw ids, ascending.
    global_bias_ : float
        μ; with `bounds` or the loss "logistic" that of the sigmoid, whose value at μ is the mean.
    history_ : History
        Every epoch, the exact errors at the end, and why training stopped.

    References
    ----------
    .. [1] R. Gemulla, E. Nijkamp, P. Haas, Y. Sismanis, "Large-Scale Matrix Factorization with Distributed Stochastic
       Gradient Descent", KDD 2011.
    .. [2] Y. Koren, R. Bell, C. Volinsky, "Matrix Factorization Techniques for Recommender Systems", Computer, 2009.

    Examples
    --------
    >>> import numpy as np, distmf
    >>> matrix = np.array([[3, 1, 1, 3, 1], [1, 2, 4, 1, 3], [3, 1, 1, 3, -1], [4, 3, 5, 4, 4]])
    >>> mf = distmf.MatrixFactorization(rank=2, reg=0, bias_reg=0, epochs=5000, target_cost=1e-2)
    >>> mf.fit(matrix, is_set=distmf.non_negative).history_.stopped
    'target'
    """

    @names_checked
    def __init__(
        self,
        rank: int = 64,
        *,
        loss: LossName = "squared",
        bounds: Pair | None = None,
        nonnegative: bool = False,
        reg: float | Pair | Literal["auto"] = "auto",
        bias_reg: float | Pair = 0.02,
        l1_reg: float | Pair = 0.0,
        epochs: int | None = None,
        step_size: float | Literal["auto"] = "auto",
        step_decay: float = 1.0,
        tol: float = 1e-5,
        target_cost: float | None = None,
        patience: int = 5,
        max_seconds: float | None = None,
        posterior_samples: int = 0,
        seed: int = 0,
    ) -> None:
        self.rank = rank
        self.loss = loss
        self.bounds = bounds
        self.nonnegative = nonnegative
        self.reg = reg
        self.bias_reg = bias_reg
        self.l1_reg = l1_reg
        self.epochs = epochs
        self.step_size = step_size
        self.step_decay = step_decay
        self.tol = tol
        self.target_cost = target_cost
        self.patience = patience
        self.max_seconds = max_seconds
        self.posterior_samples = posterior_samples
        self.seed = seed

    def fit(
        self,
        ratings: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        start: Self | None = None,
        is_set: IsSet = not_nan,
        client: Any = None,
        threads: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        memory: int | str | None = None,
        **options: Any,
    ) -> Self:
        """Train on ratings.

        The trained model does not depend on where it is trained, nor on what was interrupted and resumed on the way.

        Parameters
        ----------
        ratings : Blocks, str, Path, table or matrix
            Blocks, or the path of blocks; or ratings as `block_ratings` takes them, which are blocked in a temporary
            folder first; or a dense matrix of shape (n_users, n_items), whose row and column indices are the ids.
        y : array-like, shape (n,), optional
            For scikit-learn's manners: the ratings of pairs, which `ratings` then holds: a table with a column of users
            and one of items, or an array of shape (n, 2).
        sample_weight : array-like, shape (n,), optional
            With `y`: how much each rating counts. Of other ratings, `weight` names the column of weights.
        start : MatrixFactorization, optional
            A trained model to go on from: its users and items keep their factors and biases, those that it did not know
            begin as usual, and μ and σ stay as they were. In the end this model has all that either knows of.
        is_set : callable
            For a matrix: takes an array of values and returns which are set, as `not_nan` (the default), `non_negative`
            or `always`.
        client : distributed.Client, optional
            Train on the workers of its cluster instead of threads of this process. They must see the folders of blocks
            and checkpoint.
        threads : int, optional
            Threads to use, by default all cores.
        checkpoint : str or Path, optional
            Folder or fsspec URL to save factors and history to while training, so that it can be resumed. On a cluster,
            factors are saved in any case; by default in a temporary folder beside the blocks.
        checkpoint_every : int
            Epochs from one checkpoint to the next.
        resume : bool
            Go on from `checkpoint`, if there is one already; only `epochs` may have grown since, and `max_seconds` may
            be another.
        memory : int or str, optional
            Bytes that this process may use, as 2**31 or "2 GiB"; by default seven eighths of its limit, or of the
            machine. The ratings are read again in each epoch as far as they do not fit, and the user factors lie on
            disk if they do not: in the checkpoint, or in a temporary folder beside the blocks.
        **options
            For raw ratings: options of `block_ratings`, such as `user`, `item`, `rating` and `holdout`.

        Returns
        -------
        MatrixFactorization
            Itself.

        Raises
        ------
        ParameterError
            If a hyperparameter is out of its range, or arguments contradict one another.
        RatingsError
            If the ratings do not hold what they should.
        MemoryBudgetError
            If training does not fit in `memory`; the message says what would.
        StoreError
            If blocks or checkpoint are missing, damaged, of another training, or not seen by all workers; if another
            driver works on the checkpoint.
        ClusterError
            If the cluster is lost, or a task keeps killing its workers.
        DivergedError
            If no step size keeps the cost finite.
        KeyboardInterrupt
            On Ctrl-C; the model is then that of the last good epoch.
        """
        if misplaced := [name for name in options if name in HYPERPARAMETERS and name not in ("rank", "seed")]:
            raise ParameterError(f"{', '.join(misplaced)}: not for fit, but for MatrixFactorization(…)")
        check_names(options, MatrixFactorization.fit, block_ratings)
        parameters = checked(self.hyperparameters)
        ratings = self._with_ratings(ratings, y, sample_weight, options)
        warm = None if start is None else self._fitting(start)
        place = Place(client, threads, checkpoint, checkpoint_every, resume, memory).checked()
        with open_trainer(parameters, ratings, place, is_set, options, warm) as trainer:
            self._run(trainer, warm)
        return self

    def _with_ratings(self, pairs: Any, y: Any, sample_weight: Any, options: dict[str, Any]) -> Any:
        """Return pairs with their ratings as a table, with `options` for it; without `y`, ratings as they are."""
        if y is None:
            if sample_weight is not None:
                raise ParameterError("sample_weight goes with y; without, name the column of weights by weight=")
            return pairs
        if given := [name for name in ("rating", "weight") if name in options]:
            raise ParameterError(f"{', '.join(given)}: not with y; ratings are in y, and weights in sample_weight")
        found = pairs_of(pairs, *(options.pop(name, None) for name in ("user", "item")))
        self._names = found.names
        if sample_weight is not None:
            options["weight"] = "weight"
        return table_of(found, y, sample_weight)

    def _fitting(self, start: "MatrixFactorization") -> Model:
        """Return the model to go on from, if this estimator can."""
        if not isinstance(start, MatrixFactorization):
            raise ParameterError(f"start is {start!r}; it is a trained model, as distmf.load(…) returns it")
        for name in ("rank", "loss", "bounds", "nonnegative", "posterior_samples"):
            here, there = getattr(self, name), getattr(start, name)
            if here != there:
                raise ParameterError(f"{name} is {here!r}, but {there!r} in the model to start from; take the same")
        if self.posterior_samples:
            raise ParameterError(
                "draws from the posterior cannot go on from a model; train anew on all ratings, or fold in new users"
            )
        return start.model_

    def _run(self, trainer: Trainer, warm: Model | None) -> None:
        """Train, and take the model of the last good state, whatever ends the training."""
        training = trainer.training
        stopped: Stopped = "interrupted"
        exact: tuple[float | None, float | None] = None, None
        residuals: Residuals | None = None
        try:
            stopped, cost = trainer.run()
            exact = trainer.error(cost.train), trainer.error(cost.holdout)
            residuals = trainer.residuals()
        finally:
            progress = trainer.progress  # without states to go back to
            trainer.progress = progress = progress._replace(before=progress.state, anchor=progress.state)
            forget(training.blocks.path)  # the model needs the memory
            give_back_idle_memory()
            measure = training.hyper.objective.details.measure
            if progress.state.epoch:
                history = History(
                    progress.epochs,
                    stopped,
                    *exact,
                    rollbacks=progress.rollbacks,
                    best_epoch=trainer.best_epoch,
                    cooled=trainer.cooled,
                    baselines=trainer.baselines,
                    noise=training.blocks.settings["noise"] if measure == "RMSE" else None,
                    measure=measure,
                    ratings_per_second=trainer.ratings_per_second,
                )
                model = Model.of_training(training, progress.state, history, trainer.told(residuals))
                if model.is_finite:
                    self._model = model if warm is None else with_new(warm, model)

    def partial_fit(self, ratings: Any, y: Any = None, **options: Any) -> Self:
        """Train on more ratings, from where training ended: `fit` with `start` at this model itself.

        Users and items of these ratings that are known go on from their factors; those that are not are added; all
        others stay as they are.

        Parameters
        ----------
        ratings, y
            New ones only; as for `fit`. A model that is not trained yet begins with them.
        **options
            Those of `fit`.

        Returns
        -------
        MatrixFactorization
            Itself; its `history_` is of the new ratings.

        Raises
        ------
        RatingsError
            As `fit`, or if ids are of another type than those trained on.
        """
        return self.fit(ratings, y, start=None if self._model is None else self, **options)

    def fold_in(self, ratings: Any, y: Any = None, *, is_set: IsSet = not_nan, **options: Any) -> Self:
        """Add users by their ratings, without training: the items stay as they are, and each user is solved for.

        A user that was trained on is solved for anew, from these ratings only; so give all that the user has.

        Parameters
        ----------
        ratings, y
            As for `fit`. Those of items that were not trained on do not count.
        is_set : callable
            As for `fit`.
        **options
            For raw ratings: options of `block_ratings`, such as `user`, `item` and `rating`.

        Returns
        -------
        MatrixFactorization
            Itself.

        Raises
        ------
        NotFittedError
            Before training.
        ParameterError
            If the loss is not that of squared errors, factors have bounds, or an L1 penalty.
        RatingsError
            If the ratings do not hold what they should, or ids are of another type than those trained on.

        References
        ----------
        .. [1] Y. Zhou, D. Wilkinson, R. Schreiber, R. Pan, "Large-Scale Parallel Collaborative Filtering for the
           Netflix Prize", AAIM 2008: the regression, as half a step of ALS.
        """
        check_names(options, MatrixFactorization.fold_in, block_ratings)
        ratings = self._with_ratings(ratings, y, None, options)
        model = self.model_
        if not model.normalisation.objective.is_plain or any(pair(self.l1_reg)):
            raise ParameterError(
                "fold_in solves for squared errors of free factors without an L1 penalty; train on with partial_fit "
                "(distmf train --start) instead"
            )
        n_lines = len(model.users.ids) + len(model.items.ids)
        reg, _ = reg_of(self.hyperparameters, model.normalisation, int(model.users.counts.sum()), n_lines)
        place = {"rank": self.rank, "seed": self.seed, "client": None}
        with blocks_of(ratings, is_set, place, options) as blocks:
            self._model = fold_in(model, blocks, reg, pair(self.bias_reg)[0], self.seed)
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the constructor was given, by name, with the number of epochs where none was."""
        default = EPOCHS_OF_CHAIN if self.posterior_samples else EPOCHS
        epochs = default if self.epochs is None else self.epochs
        return {**self.get_params(), "epochs": epochs}

    def diagnose(self) -> Diagnosis:
        """Return in words how training went, and what to change: `print(mf.diagnose())`.

        Returns
        -------
        Diagnosis
            `findings`, each with a `code` and a `text`; and how the mean alone and biases alone do.

        Raises
        ------
        NotFittedError
            Before training.
        """
        users, items, normalisation = self.model_.users, self.model_.items, self.model_.normalisation
        size = int(users.counts.sum()), len(users.ids) + len(items.ids)
        regs, autos = (reg_of({"reg": reg}, normalisation, *size) for reg in (self.reg, "auto"))
        return diagnose(
            self.history_,
            adapts_step=self.step_size == "auto",
            chain=self.hyperparameters["epochs"] if self.posterior_samples else 0,
            over_auto=math.sqrt(math.prod(regs) / math.prod(autos)),
            target=self.target_cost,
        )

    def save(self, path: str | Path) -> None:
        """Write the model to a folder or fsspec URL, whole or not at all; a model that is there is replaced.

        Raises
        ------
        NotFittedError
            Before training.
        StoreError
            If there is something else at `path`.
        """
        model = self.model_
        with new_folder(path, KIND) as folder:
            model.save(folder, checked(self.hyperparameters))


HYPERPARAMETERS = MatrixFactorization.parameter_names()
