"""A trained model and new ratings -> the state that a training on these goes on from; and both made one.

New ratings alone would soon have a user wherever they want it, and what earlier ones said would be lost. A row of n new
ratings and N earlier ones should go the share n / (n + N) of that way. Its bias, which goes fastest, goes the share
1 − e^(−s n H) in a training whose step sizes add up to H, if the row takes the share s of them; so s is

    min(1, log(1 + n / N) / (n H))

which is 1 for what is new. Factors go slower than the bias; with all of the step, those of known users got worse.
"""

import zlib

import numpy as np

from distmf.factors import fetch, frozen, save, thawed
from distmf.graph import State, first_state
from distmf.langevin import SIDES
from distmf.model import Model
from distmf.stepsize import StepRule
from distmf.tasks import Training

START = "start"  # folder of the first factor blocks, where those of a training are saved


def warm_state(training: Training, model: Model, epochs: int) -> State:
    """Return the state before the first epoch: what is known has its factors and biases, what is new has first ones.

    Where factor blocks are saved, these are as well; else they are in memory. Training will take so many `epochs`.

    Raises
    ------
    RatingsError
        If ids are of another type than those trained on.
    """
    assert isinstance(training.rule, StepRule)
    unit, state, rank = model.normalisation.unit_of_scores, first_state(training), training.rank
    steps, sources = training.rule.planned(epochs), {}
    of_sides = zip(SIDES, (state.rows, state.cols), (model.users, model.items), training.shares, strict=True)
    for name, firsts, side, most in of_sides:
        table, begin, blocks = training.blocks.ids(name), 0, []
        side.cast(table["id"], name)  # an error now, not after training
        for n, first in enumerate(firsts):
            block = thawed(fetch(first, None, rank))
            there = table.slice(begin, len(block.biases))
            begin += len(there)
            positions = side.positions(there["id"], name)
            known, positions = np.flatnonzero(positions >= 0), positions[positions >= 0]
            block.factors[known, :rank] = side.factors[positions] / np.float32(unit**0.5)
            block.biases[known] = side.biases[positions] / np.float32(unit)
            shares = np.full(len(there), most)
            n_new = np.maximum(there["count"].to_numpy()[known], 1)
            shares[known] = np.minimum(most, np.log1p(n_new / side.counts[positions]) / (n_new * steps))
            block = block._replace(shares=shares.astype(np.float32))
            file = f"{START}/{name}s-{n:05d}.bin"
            blocks.append(save(block, training.folder, file, rank, keep=False) if training.folder else frozen(block))
        sources[name] = tuple(blocks)
    return state._replace(rows=sources["user"], cols=sources["item"])


def fingerprint(model: Model) -> int:
    """Return a checksum of a model's factors and biases."""
    checksum = 0
    for side in (model.users, model.items):
        for array in (side.factors, side.biases):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum


def with_new(model: Model, new: Model) -> Model:
    """Return a model with what training on new ratings gave, and all that these knew nothing of.

    Raises
    ------
    RatingsError
        If ids are of another type.
    """
    low, high = zip(model.rating_range, new.rating_range, strict=True)
    users, items = (
        old.updated(side.having(old.counts_of(side.ids)))
        for old, side in ((model.users, new.users), (model.items, new.items))
    )
    return new._replace(users=users, items=items, rating_range=(min(low), max(high)))
