"""Ratings -> the hyperparameters that are best on their holdout, and how much better than the defaults they are."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmf.arguments import check_names, did_you_mean
from distmf.blocking import block_ratings, blocks_of
from distmf.blocks import Blocks, is_blocks
from distmf.choices import EPOCHS, HOLDOUT, RANKS, REG_FACTORS
from distmf.errors import ParameterError, RatingsError
from distmf.factorization import HYPERPARAMETERS, MatrixFactorization
from distmf.frames import is_ratings
from distmf.halving import Candidate, Halving, Reg, Settings, locked_folder
from distmf.matrix import not_nan
from distmf.normalisation import normalise
from distmf.parameters import checked
from distmf.preparing import Place
from distmf.training import reg_of

# Hyperparameters that may be given, for all candidates alike.
FIXED = "loss", "bounds", "nonnegative", "bias_reg", "l1_reg", "step_size", "step_decay", "tol", "patience"

_UNTUNED = MatrixFactorization().hyperparameters
DEFAULTS = Settings(_UNTUNED["rank"], "auto", _UNTUNED["epochs"])


@dataclass(frozen=True, slots=True, repr=False)
class Tuning:
    """What `tune` found; printed, it is a table and a sentence.

    Attributes
    ----------
    candidates : tuple of Candidate
        Each with its settings and what it came to: those trained to the end, best first, then those dropped.
    auto_reg : float
        What `reg="auto"` is for these ratings.
    fixed : dict
        Hyperparameters of all candidates alike that are not the defaults.
    measure : str
        What errors are: "RMSE", or the mean of another loss.
    checkpoint : str or None
        That of the best one, if a folder for it was given.
    """

    candidates: tuple[Candidate, ...]
    auto_reg: float
    fixed: dict[str, Any]
    measure: str = "RMSE"
    checkpoint: str | None = None

    @property
    def best(self) -> Candidate:
        """The best candidate."""
        return self.candidates[0]

    @property
    def defaults(self) -> Candidate:
        """The candidate with the default settings."""
        return next(candidate for candidate in self.candidates if candidate.settings == DEFAULTS)

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings, for `MatrixFactorization(**tuning.settings)`."""
        return {**self.best.settings._asdict(), **self.fixed}

    def verdict(self) -> str:
        """Return in a sentence how much better the best settings are than the defaults."""
        best, defaults = self.best.holdout_error, self.defaults.holdout_error
        assert best is not None
        if self.best is self.defaults:
            return f"The defaults, {DEFAULTS}, are best: holdout {self.measure} {best:.4f}."
        if defaults is None:
            return (
                f"Best is {self.best.settings}: holdout {self.measure} {best:.4f}. The defaults, {DEFAULTS}, diverge."
            )
        return (
            f"Best is {self.best.settings}: holdout {self.measure} {best:.4f}, {100 * (1 - best / defaults):.2f} % "
            f"less than the {defaults:.4f} of the defaults, {DEFAULTS}."
        )

    def __repr__(self) -> str:
        table = [("rank", "reg", "epochs", f"holdout {self.measure}", "seconds", "")]
        for each in self.candidates:
            notes = {"best": each is self.best, "defaults": each is self.defaults, "dropped": not each.is_whole}
            error = each.holdout_error
            table.append(
                (
                    str(each.settings.rank),
                    str(each.settings.reg),
                    f"{each.done} of {each.settings.epochs}",
                    "diverged" if error is None else f"{error:.4f}",
                    f"{each.seconds:.1f}",
                    ", ".join(note for note, holds in notes.items() if holds),
                )
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.rjust, row[:-1], widths)) + f"  {row[-1]}".rstrip() for row in table]
        return "\n".join([*lines, f"reg auto is {self.auto_reg:.3g} here", self.verdict()])


def tune(
    ratings: Blocks | str | Path,
    *,
    ranks: Sequence[int] = RANKS,
    regs: Sequence[Reg] | None = None,
    epochs: Sequence[int] = EPOCHS,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    client: Any = None,
    threads: int | None = None,
    memory: int | str | None = None,
    **options: Any,
) -> Tuning:
    """Find the rank, reg and number of epochs that are best on the holdout.

    Every combination is a candidate, and so are the defaults, which are trained to the end in any case. Of the others,
    those of the same number of epochs are compared after half of them, and the best third goes on. Candidates are
    trained one after the other, each on all threads or the whole cluster.

    Parameters
    ----------
    ratings : Blocks, str or Path
        Blocks with a holdout, or their path; or the path of raw ratings, which are blocked in a temporary folder first.
    ranks : sequence of int
        Ranks to try.
    regs : sequence of float or "auto", optional
        Values of `reg` to try; by default the automatic one, and 0.5, 0.7, 1.4 and 2 times as much.
    epochs : sequence of int
        Numbers of epochs to try.
    seed : int
        Of all trainings.
    checkpoint : str or Path, optional
        Folder or fsspec URL to keep checkpoints and results in, so that the same call goes on after whatever was
        killed, and ends with the same result. By default they lie in a temporary folder beside the blocks.
    client : distributed.Client, optional
        Train on the workers of its cluster instead of threads of this process.
    threads : int, optional
        Threads to use, by default all cores.
    memory : int or str, optional
        Bytes that this process may use, as in `MatrixFactorization.fit`.
    **options
        Hyperparameters of all candidates alike: `loss`, `bounds`, `nonnegative`, `bias_reg`, `l1_reg`, `step_size`,
        `step_decay`, `tol` and `patience`. For raw ratings also options of `block_ratings`, such as `user`, `item` and
        `rating`; `holdout` is 0.1 by default.

    Returns
    -------
    Tuning
        `print` shows all candidates and the verdict; `MatrixFactorization(**tuning.settings)` has the best settings.

    Raises
    ------
    RatingsError
        If there is no holdout, or the ratings do not hold what they should.
    ParameterError
        If a hyperparameter is out of its range, or there is none to try.
    DivergedError
        If all candidates diverge; if some do, they are the worst.
    StoreError
        If `checkpoint` holds something else, or the tuning of something else, or another driver works on it.
    MemoryBudgetError, ClusterError
        As in `MatrixFactorization.fit`.
    KeyboardInterrupt
        On Ctrl-C; the message says what is best so far.

    References
    ----------
    .. [1] K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
       2016.
    """
    for name, values in {"ranks": ranks, "regs": regs, "epochs": epochs}.items():
        if values is not None and not (isinstance(values, Sequence) and not isinstance(values, str) and len(values)):
            raise ParameterError(f"{name} is {values!r}; it is a list of values to try, at least one")
    parameters = _fixed(options, seed)
    _candidates(ranks, ["auto"] if regs is None else regs, epochs, parameters)  # an error now, not after blocking
    if is_ratings(ratings) and not is_blocks(ratings):
        options = {"holdout": HOLDOUT, **options}
    place = Place(client, threads, memory=memory).checked()
    with contextlib.ExitStack() as stack:
        to_block = {"client": client, "threads": threads, "memory": memory, "rank": max(ranks), "seed": seed}
        blocks = stack.enter_context(blocks_of(ratings, not_nan, to_block, options))
        if not blocks.n_holdout:
            raise RatingsError(
                f"{blocks.path}: nothing is held out to compare candidates on; block the ratings with holdout=0.1 "
                "(--holdout 0.1)"
            )
        normalisation = normalise(
            blocks, parameters["loss"], parameters["bounds"], nonnegative=parameters["nonnegative"]
        )
        size = blocks.n_ratings, blocks.n_users + blocks.n_items
        auto = reg_of({**parameters, "reg": "auto"}, normalisation, *size)[0]
        default_regs: list[Reg] = ["auto" if share == 1 else float(f"{share * auto:.3g}") for share in REG_FACTORS]
        candidates = _candidates(ranks, default_regs if regs is None else regs, epochs, parameters)
        lock = stack.enter_context(locked_folder(blocks, checkpoint))
        # A checkpoint that nobody but this process will go on from is needed where it pauses.
        every = max(epochs) if checkpoint is None and client is None else 1
        halving = Halving(blocks, lock, candidates, parameters, place._replace(checkpoint_every=every))
        try:
            halving.run()
        except KeyboardInterrupt as interrupt:
            goes_on = "" if checkpoint is None else f"; the same command goes on from {lock.folder}"
            raise KeyboardInterrupt(f"{_so_far(halving)}{goes_on}") from interrupt
        ranked = sorted(halving.candidates, key=lambda each: (not each.is_whole, each.error()))
        kept = halving.checkpoint(halving.candidates.index(ranked[0]))
    fixed = {name: parameters[name] for name in FIXED if parameters[name] != _UNTUNED[name]}
    return Tuning(tuple(ranked), auto, {**fixed, "seed": seed}, halving.measure, kept if checkpoint else None)


def _fixed(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Take the hyperparameters out of some options, and return all of them, checked."""
    given = {name: options.pop(name) for name in HYPERPARAMETERS if name in options}
    if others := [name for name in given if name not in FIXED]:
        hint = did_you_mean(others[0], ("ranks", "regs"))
        raise ParameterError(
            f"{', '.join(others)}: not for tuning, which takes of hyperparameters {', '.join(FIXED)}{hint}"
        )
    check_names(options, tune, block_ratings)
    return checked({**_UNTUNED, **given, "seed": seed})


def _candidates(
    ranks: Sequence[int], regs: Sequence[Reg], epochs: Sequence[int], parameters: dict[str, Any]
) -> list[Settings]:
    """Return all combinations, after the defaults; the largest rank first: if it does not fit, that shows at once."""
    found = [DEFAULTS]
    for n_epochs, rank, reg in itertools.product(sorted(epochs), sorted(ranks, reverse=True), regs):
        plain = checked({**parameters, "rank": rank, "reg": reg, "epochs": n_epochs})
        found.append(Settings(*(plain[name] for name in Settings._fields)))
    return list(dict.fromkeys(found))


def _so_far(halving: Halving) -> str:
    n_done = sum(each.is_whole for each in halving.candidates)
    if halving.best is None or halving.best.holdout_error is None:
        return "no candidate is trained to the end"
    best = halving.best
    return f"best of {n_done} so far is {best.settings}: holdout {halving.measure} {best.holdout_error:.4f}"
