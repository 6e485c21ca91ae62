"""The command `tune`: its options -> a tuning, shown as a table, a verdict, and a command to train with."""

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

import distmf
from distmf.choices import EPOCHS, HOLDOUT, MAX_RANK, RANKS, REG_FACTORS
from distmf.clock import STARTED
from distmf.options import (
    NumberOrAuto,
    Whole,
    block_options,
    client_for,
    cluster_options,
    complete_file,
    complete_folder,
    given_options,
    in_words,
    memory_option,
    objective_options,
    output_options,
    reporting,
    seed_option,
    threads_option,
)

if TYPE_CHECKING:
    from distmf.halving import Candidate
    from distmf.tuning import Tuning

SECONDS_BETWEEN_EPOCHS = 5.0
BLOCKING = "user", "item", "rating", "weight", "holdout", "grid", "memory_per_task", "duplicates"


class Several(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Values of a kind, with commas between them."""

    def __init__(self, kind: click.ParamType) -> None:  # type: ignore[type-arg]
        self.kind = kind
        self.name = f"{kind.name},…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Return the values."""
        return [self.kind.convert(part.strip(), param, ctx) for part in str(value).split(",")]


def _listed(values: Any) -> str:
    return ",".join(f"{value:g}" for value in values)


@click.command()
@click.argument("ratings_or_blocks", shell_complete=complete_file)
@click.option(
    "--rank",
    "ranks",
    metavar="N,N,…",
    type=Several(Whole(1, MAX_RANK)),
    help=f"Ranks to try.  [default: {_listed(RANKS)}]",
)
@click.option(
    "--reg",
    "regs",
    metavar="X,X,…",
    type=Several(NumberOrAuto(0)),
    help="Regularisations to try, numbers or auto.  [default: auto, and "
    f"{_listed(factor for factor in REG_FACTORS if factor != 1)} times as much]",
)
@click.option(
    "--epochs",
    metavar="N,N,…",
    type=Several(Whole(1, 2**31)),
    help=f"Numbers of epochs to try.  [default: {_listed(EPOCHS)}]",
)
@objective_options
@seed_option
@click.option(
    "--checkpoint",
    metavar="FOLDER",
    shell_complete=complete_folder,
    help="Keep results and checkpoints here; the same command goes on from them.",
)
@threads_option
@memory_option
@cluster_options
@block_options
@output_options
def tune(ratings_or_blocks: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Find the rank, reg and epochs that are best on the holdout.

    RATINGS_OR_BLOCKS are blocks with a holdout (distmf block … --holdout 0.1), or Parquet, which is blocked in a
    temporary folder first, with a holdout of 0.1; the options from --user to --duplicates are for that.

    Every combination is a candidate. After half of its epochs the best third goes on. The defaults are trained as well:
    the last line but one says how much better the best is, the last how to train with it.

    \b
    distmf tune blocks
    distmf tune blocks --rank 32,64,128 --reg auto,0.03,0.1 --checkpoint tuning
    """  # noqa: D301 (click reads the \b)
    from distmf.blocks import is_blocks

    given = given_options(given)
    if given.get("checkpoint") == "":
        raise click.UsageError("--checkpoint is ''; give a folder or a URL")
    with reporting(as_json=as_json, quiet=quiet) as report, _few_lines():
        blocking = {name: given[name] for name in BLOCKING if name in given}
        if has_blocks := is_blocks(ratings_or_blocks):
            if blocking:
                flags = ", ".join("--" + name.replace("_", "-") for name in blocking)
                raise click.UsageError(f"{flags}: only for raw ratings, and these are blocks: {ratings_or_blocks}")
        else:
            blocking = {"holdout": HOLDOUT, **blocking}
        with client_for(given) as client:
            tuning = distmf.tune(ratings_or_blocks, client=client, **given)
        command = _command(ratings_or_blocks, tuning, blocking, resumes=has_blocks)
        found = {
            "best": tuning.settings,
            "measure": tuning.measure,
            "holdout_error": tuning.best.holdout_error,
            "defaults_holdout_error": tuning.defaults.holdout_error,
            "defaults_are_best": tuning.best is tuning.defaults,
            "auto_reg": tuning.auto_reg,
            "candidates": [_in_numbers(candidate) for candidate in tuning.candidates],
            "command": command,
            "seconds": time.perf_counter() - STARTED,
        }
        report(found, f"{tuning}\n{command}")


def _in_numbers(candidate: "Candidate") -> dict[str, Any]:
    return {
        **candidate.settings._asdict(),
        "epochs_done": candidate.done,
        "holdout_error": candidate.holdout_error,
        "rung": len(candidate.results),
        "dropped": not candidate.is_whole,
        "seconds": candidate.seconds,
    }


def _command(source: str, tuning: "Tuning", blocking: dict[str, Any], *, resumes: bool) -> str:
    """Return the command that trains with the best settings; from their checkpoint if it `resumes` and there is one."""
    untuned = distmf.MatrixFactorization().hyperparameters
    options = {name: value for name, value in tuning.settings.items() if value != untuned[name]} | blocking
    words = ["distmf", "train", source, "model"]
    for name, value in options.items():
        words += in_words(name, value)
    if resumes and tuning.checkpoint:
        words += ["--checkpoint", tuning.checkpoint, "--resume"]
    return shlex.join(words)


class _Seldom(logging.Filter):
    """Lets lines about epochs through where they are seconds apart, as of long trainings, and each warning once."""

    def __init__(self) -> None:
        super().__init__()
        self.said = time.monotonic()
        self.warnings: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            is_new = record.getMessage() not in self.warnings
            self.warnings.add(record.getMessage())
            return is_new
        if record.name != "distmf.halving" and time.monotonic() - self.said < SECONDS_BETWEEN_EPOCHS:
            return False
        self.said = time.monotonic()
        return True


@contextlib.contextmanager
def _few_lines() -> Iterator[None]:
    """Say less about each of many trainings."""
    seldom, loggers = _Seldom(), [logging.getLogger(f"distmf.{name}") for name in ("trainer", "engines", "halving")]
    for logger in loggers:
        logger.addFilter(seldom)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(seldom)
