"""Hyperparameters and ratings -> a trainer, with everything open that it works on: engine, blocks, checkpoint."""

import contextlib
import logging
import numbers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy.typing as npt

from distmf.blocking import blocks_of
from distmf.blocks import Blocks, limit_cache
from distmf.checkpoint import checkpoint_of
from distmf.engines import check_grid, open_engine
from distmf.errors import ClusterError, ParameterError
from distmf.matrix import IsSet, not_nan
from distmf.memory import Sizes, plan_memory, usable_memory
from distmf.model import Model
from distmf.sizes import format_bytes
from distmf.trainer import StopRules, Trainer, let_go
from distmf.training import training_of
from distmf.warm import fingerprint, warm_state

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where to train, and where progress is kept; see `MatrixFactorization.fit`."""

    client: Any = None
    threads: int | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1
    resume: bool = False
    memory: int | str | None = None

    def checked(self) -> Self:
        """Return the same, if arguments go together.

        Raises
        ------
        ParameterError
            If they do not.
        """
        if self.resume and self.checkpoint is None:
            raise ParameterError("resume needs a checkpoint: give the folder that the training to go on with was given")
        if self.checkpoint is not None and not str(self.checkpoint):
            raise ParameterError("checkpoint is ''; give a folder or a URL")
        if not isinstance(self.checkpoint_every, numbers.Integral) or self.checkpoint_every < 1:
            raise ParameterError(f"checkpoint_every is {self.checkpoint_every!r}; it is a number of epochs, at least 1")
        if self.checkpoint_every > 1 and self.checkpoint is None and self.client is None:
            raise ParameterError("checkpoint_every needs a checkpoint: give a folder to save factors and history to")
        if self.memory is not None and self.client is not None:
            raise ParameterError(
                "memory is for threads of this process; the workers of a cluster have limits of their own"
            )
        return self


@contextlib.contextmanager
def open_trainer(
    parameters: dict[str, Any],
    ratings: Blocks | str | Path | npt.NDArray[Any],
    place: Place,
    is_set: IsSet = not_nan,
    options: Mapping[str, Any] | None = None,
    warm: Model | None = None,
) -> Iterator[Trainer]:
    """Yield a trainer, and let go of everything afterwards.

    Parameters
    ----------
    parameters : dict
        Hyperparameters, checked.
    ratings : Blocks, str, Path or array of shape (n_users, n_items)
        As for `MatrixFactorization.fit`, as are `is_set` and `options`, and what is raised.
    place : Place
        Where to train, checked.
    warm : Model, optional
        To go on from.
    """
    rank, samples = parameters["rank"], parameters["posterior_samples"]
    limit = usable_memory(place.memory)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_engine(place.client, place.threads))
        where = {name: getattr(place, name) for name in ("client", "threads", "memory")}
        to_block = {"rank": rank, "seed": parameters["seed"], **where}
        blocks = stack.enter_context(blocks_of(ratings, is_set, to_block, options or {}))
        check_grid(engine, blocks.shape)
        on_disk = False
        if engine.shares_memory:
            sizes = Sizes.of(blocks, rank, samples)
            sizes = sizes._replace(start=warm.n_bytes if warm else 0)
            if blocks.n_holdout and parameters["patience"] and place.checkpoint is None:
                sizes = sizes._replace(states=3)  # the best epoch may be some time ago
            plan = plan_memory(sizes, engine.n_slots, limit)
            on_disk = plan.rows_on_disk
            stack.callback(limit_cache)
            limit_cache(plan.cached)
        settings = {**parameters, "start": warm and fingerprint(warm)}
        checkpoint = stack.enter_context(
            checkpoint_of(blocks, engine, place.checkpoint, settings, resume=place.resume, needed=on_disk)
        )
        if on_disk and checkpoint:
            logger.info(
                "the user factors lie in %s: with all of them, training would need more than %s",
                checkpoint.folder,
                format_bytes(limit),
            )
        training = training_of(parameters, blocks, warm.normalisation if warm else None)
        training = training._replace(folder=checkpoint.folder if checkpoint else None, rows_on_disk=on_disk)
        stopping = {name: parameters[name] for name in ("tol", "target_cost", "patience", "max_seconds")}
        rules = StopRules(parameters["epochs"] * max(1, samples), **stopping)
        state = None if warm is None else warm_state(training, warm, parameters["epochs"])
        try:
            yield Trainer(
                training, rules, engine, checkpoint, int(place.checkpoint_every), state, has_baselines=warm is None
            )
        finally:
            with contextlib.suppress(ClusterError):
                engine.everywhere(let_go, blocks.path, training.folder)
