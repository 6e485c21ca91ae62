"""Hyperparameters and blocks -> a training: its rule of the step size, its regularisation, and its formulas."""

from typing import Any

import numpy as np

from distmf.blocks import Blocks
from distmf.errors import ParameterError
from distmf.kernel import Hyperparameters, Pair
from distmf.langevin import SIDES, LangevinRule
from distmf.losses import Normalisation
from distmf.normalisation import check_ratings, normalise
from distmf.parameters import pair
from distmf.stepsize import StepRule, reg_for, share_of_step, start_for
from distmf.tasks import Training


def training_of(parameters: dict[str, Any], blocks: Blocks, normalisation: Normalisation | None = None) -> Training:
    """Return the training of a model on blocks, in memory.

    Parameters
    ----------
    parameters : dict
        Hyperparameters, checked.
    blocks : Blocks
        The ratings.
    normalisation : Normalisation, optional
        Of a model that training goes on from; by default that of these ratings.

    Raises
    ------
    RatingsError
        If the ratings are none that the loss is for, or beyond the bounds.
    ParameterError
        If there are weights, and the posterior is to be drawn from.
    """
    size, epochs = (blocks.n_ratings, blocks.n_users + blocks.n_items), parameters["epochs"]
    where = {"rank": parameters["rank"], "seed": parameters["seed"], "is_warm": normalisation is not None}
    if normalisation is None:
        kind = parameters["loss"], parameters["bounds"]
        normalisation = normalise(blocks, *kind, nonnegative=parameters["nonnegative"])
    else:
        check_ratings(blocks, normalisation)
    mean, scale, objective = normalisation
    if samples := parameters["posterior_samples"]:
        if blocks.layout.is_weighted:
            raise ParameterError("posterior_samples take no weights; block the ratings again without them")
        n_users, n_items = (int(np.count_nonzero(blocks.counts(side))) for side in SIDES)
        draws = LangevinRule(samples, epochs, parameters["rank"], parameters["seed"], size[0], (n_users, n_items))
        return Training(blocks, Hyperparameters(mean, scale), draws, **where)
    regs = reg_of(parameters, normalisation, *size), pair(parameters["bias_reg"]), pair(parameters["l1_reg"])
    hyper = Hyperparameters(mean, scale, *regs, objective, blocks.train_weight / blocks.n_ratings)
    if parameters["step_size"] == "auto":
        rule = StepRule(start_for(*size), parameters["step_decay"], epochs)
    else:
        rule = StepRule(parameters["step_size"], parameters["step_decay"])
    users, items = (share_of_step(blocks.n_ratings, n_lines) for n_lines in (blocks.n_users, blocks.n_items))
    return Training(blocks, hyper, rule, shares=(users, items), **where)


def reg_of(parameters: dict[str, Any], normalisation: Normalisation, n_ratings: int, n_lines: int) -> Pair:
    """Return λ of users and of items, for so many ratings of so many users and items together."""
    reg = parameters["reg"]
    if reg == "auto":
        reg = reg_for(n_ratings, n_lines) * normalisation.objective.noise(normalisation.scale)
    return pair(reg)
