"""Errors on unseen ratings: distmf beside LIBMF, Surprise and cmfrec, each with the best settings of a small grid.

    export CFLAGS="-O3 -march=native -DUSEAVX -DUSEOMP -fopenmp" LDFLAGS=-fopenmp; export CXXFLAGS="$CFLAGS"
    pip install --no-cache-dir --no-binary libmf libmf  # as for benchmarks/peers.py
    unset CFLAGS CXXFLAGS LDFLAGS; pip install scikit-surprise
    pip install cmfrec threadpoolctl                    # it needs a C compiler, and imports the other without saying so
    python benchmarks/quality.py --data ml-1m.parquet ml-100k.parquet --folds 0 5
    python benchmarks/quality.py --generated 1e7

Each `--data` is Parquet with the columns `user_id`, `item_id` and `rating`, small enough for memory. It is split at
random `--seeds` times, `--test-share` of it for the test; or, with `--folds`, into so many parts of one permutation, of
which each is the test once. Generated ratings are those of benchmarks/peers.py, split once; their errors are given in
multiples of the noise, below which none can be.

Settings are chosen once for each data: `HOLDOUT_SHARE` of what the first split trains on is kept apart, each of the
program's `SETTINGS` is trained on the rest, and the one with the least error on that holdout is taken. With it, the
program is trained on all of the training part of every split. Nothing is chosen by the error on a test part.

- *distmf, defaults* and *distmf, posterior_samples=10*: there is nothing to choose.
- *distmf, tuned*: its SGD.
- *LIBMF*: without L1 penalty, on the ratings as they are: it has no biases, and gets better when its factors do the
  work of the mean as well than when that is taken off. It knows no seed.
- *Surprise SVD*, on one thread; and with `--svdpp` *SVD++*, whose trainings take many times as long.
- *cmfrec*: explicit feedback with biases, by alternating least squares; the penalty grows with the ratings of a line.
  With its implicit features (which items a user has rated) or without.

The predictions of all programs are clipped to the range of the ratings that they were trained on. For users and items
that it has not seen, each falls back to what it knows: LIBMF to the mean, the others to mean and biases. Programs that
would take hours are left out of data with many ratings (`MOST_RATINGS`).

The table has the test RMSE, mean (least to largest), and the seconds from Parquet to a model, a median; the blocking of
distmf is part of them.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path[0] = str(Path(__file__).parents[1])  # so that `benchmarks` is found

from benchmarks.common import count, machine, markdown  # noqa: E402
from benchmarks.peers import NOISE, TEST_SHARE, noted, planted, say  # noqa: E402
from benchmarks.trainings import COLUMNS, PEERS, TRAIN, Run, Settings, missing, versions  # noqa: E402

HOLDOUT_SHARE = 0.1


def grid(**values: tuple[float, ...]) -> list[Settings]:
    """Return all combinations of the values."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


SETTINGS: dict[str, list[Settings]] = {
    "distmf": [{}],
    "distmf-tuned": grid(rank=(64, 128, 256), reg=(0.035, 0.045, 0.055, 0.07), epochs=(12, 15)),
    "distmf-posterior": [{"posterior_samples": 10}],
    "libmf": grid(rank=(32, 64, 128), reg=(0.05, 0.07, 0.1), step_size=(0.03, 0.05), epochs=(20, 40)),
    "surprise": grid(rank=(50, 100), reg=(0.05, 0.07, 0.1), step_size=(0.01,), epochs=(20, 40)),
    "svdpp": grid(rank=(20,), reg=(0.02, 0.05, 0.1), step_size=(0.007,), epochs=(20,)),
    "cmfrec": grid(rank=(32, 64, 128), reg=(0.05, 0.07, 0.1, 0.125), bias_reg=(0.05,), epochs=(30,), implicit=(0, 1)),
}
NAMES = {
    "distmf": "distmf, defaults",
    "distmf-tuned": "distmf, tuned",
    "distmf-posterior": "distmf, posterior_samples=10",
    "libmf": "LIBMF",
    "surprise": "Surprise SVD",
    "svdpp": "Surprise SVD++",
    "cmfrec": "cmfrec",
}
MOST_RATINGS = {"surprise": 2_000_000, "svdpp": 200_000, "cmfrec": 2_000_000}


class Data(NamedTuple):
    """Ratings, split: a folder with `train` and `test` for each split."""

    name: str
    how: str  # they are split, in words
    n_ratings: int
    splits: list[Path]
    unit: float = 1  # that errors are given in


class Found(NamedTuple):
    """The settings that were chosen, and a run on each split."""

    settings: Settings
    runs: list[Run]


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="two settings each, two splits: to see that it runs")
    parser.add_argument("--data", type=Path, nargs="+", action="extend", default=[], metavar="PATH")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="of all or of each --data; 0: random splits")
    parser.add_argument("--test-share", type=float, default=0.1, help="of random splits")
    parser.add_argument("--seeds", type=int, default=5, help="number of random splits")
    parser.add_argument("--generated", type=count, default=0, metavar="RATINGS", help="to generate; 0: none")
    parser.add_argument("--users", type=count, help="of those generated  [default: a hundredth of the ratings]")
    parser.add_argument("--items", type=count, help="of those generated  [default: a thousandth]")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="[default: all that are installed]")
    parser.add_argument("--svdpp", action="store_true", help="Surprise's SVD++ as well, which is slow")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.toy:
        args.seeds, args.generated = 2, args.generated or 20_000
        SETTINGS.update({program: settings[:2] for program, settings in SETTINGS.items()})
        SETTINGS["distmf-posterior"] = [{"posterior_samples": 2, "epochs": 3}]
    if not args.data and not args.generated:
        parser.error("give --data, --generated, or both")
    if len(args.folds) not in {1, len(args.data)}:
        parser.error(f"--folds has {len(args.folds)} values for {len(args.data)} --data")
    asked = PEERS if args.peers is None else args.peers
    problems = {peer: problem for peer in asked if (problem := missing(peer))}
    programs = [program for program in SETTINGS if wanted(program, set(asked) - set(problems), args.svdpp)]
    print(f"{machine()}{versions(programs)}; {args.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="distmf-bench-") as name:
        table(list(datasets(args, Path(name))), programs, problems, args.threads)


def wanted(program: str, peers: set[str], svdpp: bool) -> bool:
    """Return whether a program is to run, if these peers are asked for and installed."""
    if program == "svdpp":
        return svdpp and "surprise" in peers
    return program.startswith("distmf") or program in peers


def datasets(args: argparse.Namespace, folder: Path) -> Iterator[Data]:
    """Yield all data that is asked for, split below `folder`."""
    for number, path in enumerate(args.data):
        n_folds = args.folds[number % len(args.folds)]
        ratings = numbered(path)
        parts = folds(ratings, n_folds) if n_folds else shares(ratings, args.test_share, args.seeds)
        seeds = f"{args.test_share:.0%} for the test, seeds 0 to {args.seeds - 1}"
        splits = [write_split(folder / f"{number}-{seed}", *part) for seed, part in enumerate(parts)]
        yield Data(path.stem, f"{n_folds} folds" if n_folds else seeds, len(ratings), splits)
    if args.generated:
        n_users = args.users or max(1_000, args.generated // 100)
        n_items = args.items or max(500, args.generated // 1000)
        path = planted(folder, args.generated, n_users, n_items)
        yield Data("generated", f"{TEST_SHARE:.0%} for the test", args.generated, [path], NOISE)


def folds(ratings: pa.Table, n_folds: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield what to train on and what to test on, for each of so many parts of one permutation."""
    part = np.random.default_rng(0).permutation(len(ratings)) % n_folds
    for fold in range(n_folds):
        yield ratings.filter(part != fold), ratings.filter(part == fold)


def shares(ratings: pa.Table, share: float, n_seeds: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield what to train on and a share to test on, for each of so many seeds."""
    for seed in range(n_seeds):
        is_test = np.random.default_rng(seed).random(len(ratings)) < share
        yield ratings.filter(~is_test), ratings.filter(is_test)


def write_split(folder: Path, train: pa.Table, test: pa.Table) -> Path:
    """Write the two parts of a split to `train` and `test`; return the folder."""
    for part, ratings in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True)
        pq.write_table(ratings, folder / part / "ratings.parquet")
    return folder


def numbered(path: Path) -> pa.Table:
    """Return ratings with ids as LIBMF needs them, small integers."""
    ratings = pq.read_table(path, columns=COLUMNS)
    ids = [np.unique(ratings[column].to_numpy(), return_inverse=True)[1] for column in COLUMNS[:2]]
    return pa.table([*(numbers.astype(np.int32) for numbers in ids), ratings["rating"].cast(pa.float32())], COLUMNS)


def table(data: list[Data], programs: list[str], problems: dict[str, str], threads: int) -> None:
    """Choose settings, run all programs on all splits, and print errors, seconds and settings."""
    found = [compare(one, programs, problems, threads) for one in data]
    header, rows = [""], [[NAMES[program]] for program in programs]
    for one, of_program in zip(data, found, strict=True):
        header += [one.name if one.unit == 1 else f"{one.name}, RMSE / noise", "seconds"]
        for program, row in zip(programs, rows, strict=True):
            row.extend(cells(of_program.get(program), one.unit))
    print(markdown(header, rows))
    print(f"\nSettings chosen on {HOLDOUT_SHARE:.0%} of what the first split trains on:\n")
    for one, of_program in zip(data, found, strict=True):
        print(f"- {one.name}: {one.n_ratings:,} ratings, {one.how}")
        for program, its in of_program.items():
            if len(SETTINGS[program]) > 1:
                print(f"  - {NAMES[program]}: {in_words(its.settings)}")
    for program, problem in problems.items():
        print(f"- {NAMES[program]} is left out: {problem}")


def cells(found: Found | None, unit: float) -> tuple[str, str]:
    """Return what the table says of a program on one set of data."""
    if found is None:
        return "", ""
    errors = [run.test_rmse / unit for run in found.runs]
    spread = f" ({min(errors):.4f} to {max(errors):.4f})" if len(errors) > 1 else ""
    return f"{mean(errors):.4f}{spread}", f"{median(run.seconds for run in found.runs):.1f}"


def compare(data: Data, programs: list[str], problems: dict[str, str], threads: int) -> dict[str, Found]:
    """Return what was found of each program; those that fail are added to the problems."""
    found: dict[str, Found] = {}
    tuning = write_split(data.splits[0] / "tuning", *held_out(data.splits[0] / "train"))
    for program in programs:
        if program not in problems and data.n_ratings <= MOST_RATINGS.get(program, math.inf):
            with noted(problems, program):
                found[program] = Found(choose(program, tuning, threads, data.name), [])
    for seed, split in enumerate(data.splits):
        for program in [program for program in found if program not in problems]:
            with noted(problems, program):
                run = TRAIN[program](split, found[program].settings, seed, threads)
                found[program].runs.append(run)
                say(f"{data.name}, split {seed + 1} of {len(data.splits)}: {NAMES[program]}: test {told(run)}")
    return {program: one for program, one in found.items() if program not in problems}


def held_out(train: Path) -> tuple[pa.Table, pa.Table]:
    """Return ratings without a share, and that share."""
    return next(shares(pq.read_table(train), HOLDOUT_SHARE, 1))


def choose(program: str, tuning: Path, threads: int, name: str) -> Settings:
    """Return the settings with the least error on the holdout."""
    choices = SETTINGS[program]
    if len(choices) == 1:
        return choices[0]
    errors = []
    for number, settings in enumerate(choices):
        run = TRAIN[program](tuning, settings, 0, threads)
        errors.append(run.test_rmse)
        what = f"{NAMES[program]}, {in_words(settings)}"
        say(f"{name}, settings {number + 1} of {len(choices)}: {what}: holdout {told(run)}")
    return choices[int(np.argmin(errors))]


def in_words(settings: Settings) -> str:
    """Return settings as text."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def told(run: Run) -> str:
    """Return a run as text."""
    return f"RMSE {run.test_rmse:.4f}, {run.seconds:.1f} s"


if __name__ == "__main__":
    main()
