"""distmf beside LIBMF and Spark ALS on the same ratings: time to the same error, memory, and updates per second.

    export CFLAGS="-O3 -march=native -DUSEAVX -DUSEOMP -fopenmp" LDFLAGS=-fopenmp; export CXXFLAGS="$CFLAGS"
    pip install --no-cache-dir --no-binary libmf libmf   # for this CPU; its default build is several times slower
    pip install pyspark                                  # and Java 17: Debian's default-jre-headless
    python benchmarks/peers.py --ratings 1e7

(Which of the two variables counts depends on the version of setuptools, and pip would reuse a wheel built without.)

Ratings are planted: power laws, and normal noise below whose standard deviation no test RMSE can be. The target is
`--target` times that, on a twentieth of the ratings that is kept apart. Each run is a fresh process, from Parquet files
to a saved model, and all get `--threads` threads:

- *distmf*: `distmf train`. It alone numbers the ids itself and trains biases.
- *LIBMF*: its C functions, called directly on its array of ratings. No L1 penalty; its default number of bins.
- *LIBMF on disk*: the same with `mf_train_on_disk`, which reads text; Arrow writes it.
- *Spark ALS*: `local[threads]`, as many blocks as threads, Java's vectors allowed. Its heap may grow to
  `--spark-memory`, and tends to.

LIBMF and Spark know no mean: that of the ratings is taken off for them. They get ids as they need them, small integers.

*Training* is the epochs alone: as distmf counts it; from LIBMF's line about its first epoch to that about its last, and
one more; in Spark from when ALS has its blocks. The other seconds are starting, reading, preparing, compiling, saving.
*Peak memory* is what was all processes' own (RssAnon), sampled. The error is computed afterwards and does not count.

The settings are chosen first, which is not timed. On a tenth of the ratings (`--tuning`), as many per user and item,
each program tries each of its settings (`SETTINGS`) with more and more epochs (`EPOCHS`) until it passes the target by
half a percent (LIBMF's runs differ by as much), or its error no longer falls. Those with the fewest epochs are taken,
and the epochs they need are found again on all ratings. LIBMF on disk has those of LIBMF. Then come `--rounds` rounds
in which the programs take turns, and the table has the medians.

The second table has the updates per second, in training, of LIBMF and distmf on one thread and on all.
"""

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

sys.path[0] = str(Path(__file__).parents[1])  # so that `benchmarks` is found

import distmf  # noqa: E402
from benchmarks.common import PROGRAM, count, in_turn, machine, markdown, sampled_memory  # noqa: E402
from benchmarks.peer_libmf import has_avx  # noqa: E402
from distmf.sizes import format_bytes  # noqa: E402

TEST_SHARE = 0.05
NOISE = 0.7
EPOCHS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30)
SPARE = 0.005  # the share by which the target is to be passed when epochs are chosen: LIBMF's runs differ by as much
EPOCHS_OF_SPEED = 12  # in the second table
ATTEMPTS = 3
TIMED_OUT = 124  # what `timeout` returns
NAMES = {"distmf": "distmf", "libmf": "LIBMF", "libmf-disk": "LIBMF on disk", "spark": "Spark ALS"}
Settings = dict[str, float]
SETTINGS: dict[str, list[Settings]] = {
    "distmf": [{"reg": reg} for reg in (0.02, 0.05, 0.01, 0.1)],
    "libmf": [{"reg": reg, "step_size": step} for step in (0.2, 0.1, 0.3) for reg in (0.02, 0.05, 0.01, 0.1)],
    "spark": [{"reg": reg} for reg in (0.05, 0.1, 0.02)],
}
HEADER = ["", "settings", "epochs", "test RMSE", "seconds", "before and after training", "training"]
HEADER += [
    "ratings/s in training",
    "peak memory",
    "seconds / distmf's",
    "distmf's ratings/s / its",
    "memory / distmf's",
]


class Run(NamedTuple):
    """What a run took, in seconds and bytes, what its epochs took of that, and what it reached."""

    seconds: float
    training_seconds: float
    ratings_per_second: float  # in training
    peak: float
    test_rmse: float


class FailedError(Exception):
    """A program ended with an error; the message says which."""


class StuckError(FailedError):
    """A program did not end in time."""


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small data, few settings, one round: to see that it runs")
    parser.add_argument("--programs", nargs="+", choices=NAMES, help="[default: all that are installed]")
    parser.add_argument("--ratings", type=count, default=10_000_000)
    parser.add_argument("--users", type=count, help="[default: a hundredth of the ratings]")
    parser.add_argument("--items", type=count, help="[default: a thousandth of the ratings]")
    parser.add_argument("--tuning", type=count, help="ratings to choose settings on [default: a tenth, or a million]")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="*", default=[64], help="of the second table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", type=float, default=1.1, help="test RMSE, in multiples of the noise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spark-memory", default="8g", help="that its heap may grow to")
    parser.add_argument("--folder", type=Path, default=Path("peers"), help="with space for 80 bytes a rating")
    args = parser.parse_args()
    if args.toy:
        args.ratings, args.tuning, args.users, args.items = 50_000, 50_000, 700, 300
        args.rank, args.ranks, args.target, args.rounds, args.spark_memory = 8, [8], 1.6, 1, "1g"
        SETTINGS.update({program: settings[:1] for program, settings in SETTINGS.items()})
    problems = {program: problem for program in args.programs or NAMES if (problem := missing(program))}
    if args.programs and problems:
        sys.exit("\n".join(f"{NAMES[program]} is {problem}" for program, problem in problems.items()))
    with (
        tempfile.TemporaryDirectory(prefix="distmf-bench-") if args.toy else contextlib.nullcontext(args.folder) as name
    ):
        time_to_target(args, Path(name), problems)
        if args.ranks and {"distmf", "libmf"} <= set(args.programs or NAMES) - set(problems):
            updates_per_second(args, Path(name))


def time_to_target(args: argparse.Namespace, folder: Path, problems: dict[str, str]) -> None:
    """Choose settings, run all programs that have no problem, and print the first table."""
    n_users, n_items = args.users or args.ratings // 100, args.items or args.ratings // 1000
    n_tuning = min(args.ratings, args.tuning or max(1_000_000, args.ratings // 10))
    programs = [program for program in NAMES if program in (args.programs or NAMES) and program not in problems]
    target = args.target * NOISE
    enough = (1 - SPARE) * target
    print(
        f"{machine()}{versions(programs)}; {args.ratings:,} ratings by {n_users:,} users of {n_items:,} items, "
        f"{TEST_SHARE:.0%} of them for the test; noise {NOISE}, target: a test RMSE of {target:.4f}; rank {args.rank}, "
        f"{args.threads} threads; settings chosen on {n_tuning:,} ratings\n",
        flush=True,
    )
    data = planted(folder, args.ratings, n_users, n_items)
    small = planted(folder, n_tuning, n_users * n_tuning // args.ratings, n_items * n_tuning // args.ratings)
    fixed = {"rank": args.rank, "threads": args.threads}
    chosen: dict[str, Settings] = {}
    runs: dict[str, list[Run]] = {program: [] for program in programs}
    for program in programs:
        in_memory = program.removesuffix("-disk")
        if in_memory in chosen:
            chosen[program] = chosen[in_memory]
            continue
        with noted(problems, program):
            run_one = functools.partial(run, in_memory, spark_memory=args.spark_memory)
            settings, epochs = choose(functools.partial(run_one, small), fixed, SETTINGS[in_memory], enough)
            if small != data:
                epochs, _ = fewest_epochs(functools.partial(run_one, data), fixed | settings, enough, epochs)
            chosen[program] = settings | {"epochs": epochs}
    for _, program in itertools.product(range(args.rounds), programs):
        if program not in problems:
            with noted(problems, program):
                runs[program].append(run(program, data, fixed | chosen[program], args.spark_memory))
    medians = {key: Run(*map(median, zip(*found, strict=True))) for key, found in runs.items() if key not in problems}
    rows = [
        [NAMES[program], problems[program], *[""] * (len(HEADER) - 2)]
        if program in problems
        else row(program, chosen[program], medians[program], target, medians.get("distmf"))
        for program in NAMES
        if program in problems or program in medians
    ]
    print(markdown(HEADER, rows), flush=True)


def row(program: str, settings: Settings, found: Run, target: float, ours: Run | None) -> list[str]:
    """Return a line of the first table."""
    line = [
        NAMES[program],
        ", ".join(f"{key} {value}" for key, value in settings.items() if key != "epochs"),
        str(settings["epochs"]),
        f"{found.test_rmse:.4f}{', not the target' if found.test_rmse > target else ''}",
        f"{found.seconds:.1f}",
        f"{found.seconds - found.training_seconds:.1f}",
        f"{found.training_seconds:.1f}",
        f"{found.ratings_per_second / 1e6:.1f} M",
        format_bytes(int(found.peak)),
    ]
    if ours is None:
        return [*line, "", "", ""]
    rates = ours.ratings_per_second / found.ratings_per_second
    return line + [f"{ratio:.1f} ×" for ratio in (found.seconds / ours.seconds, rates, found.peak / ours.peak)]


@contextlib.contextmanager
def noted(problems: dict[str, str], program: str) -> Iterator[None]:
    """Note it if the program fails, and go on without it."""
    try:
        yield
    except FailedError as err:
        problems[program] = str(err)


def updates_per_second(args: argparse.Namespace, folder: Path) -> None:
    """Print the second table: LIBMF and distmf on one thread and on all."""
    data = planted(folder, args.ratings, args.users or args.ratings // 100, args.items or args.ratings // 1000)
    counts = sorted({1, args.threads})
    rows = []
    for rank in args.ranks:
        runs = {
            (program, threads): functools.partial(
                updates,
                program,
                data,
                {"rank": rank, "threads": threads, "epochs": EPOCHS_OF_SPEED} | SETTINGS[program][0],
            )
            for threads in counts
            for program in ("libmf", "distmf")
        }
        speed = in_turn(runs, args.rounds)
        cells = [
            (f"{libmf / 1e6:.0f} M", f"{ours / 1e6:.0f} M", f"{ours / libmf:.1f} ×")
            for libmf, ours in ((speed["libmf", threads], speed["distmf", threads]) for threads in counts)
        ]
        rows.append([rank, *itertools.chain.from_iterable(cells)])
    header = [f"{what}, {n} thread{'s' * (n > 1)}" for n in counts for what in ("LIBMF", "distmf", "distmf / LIBMF")]
    print(f"\nUpdates per second, {EPOCHS_OF_SPEED} epochs of the same ratings:\n")
    print(markdown(["rank", *header], rows), flush=True)


def updates(program: str, data: Path, settings: Settings) -> float:
    """Return the updates per second of one run."""
    return run(program, data, settings).ratings_per_second


def planted(folder: Path, n_ratings: int, n_users: int, n_items: int) -> Path:
    """Return a folder with planted ratings in `train` and `test`; it is made if it is not there."""
    data = folder / f"ratings-{n_ratings}-{n_users}-{n_items}"
    if not data.exists():
        say(f"making {n_ratings:,} ratings")
        folder.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            made = Path(name) / "made"
            distmf.datasets.planted_ratings(made / "all", n_ratings, n_users, n_items, noise=NOISE)
            (made / "train").mkdir()
            (made / "test").mkdir()
            for number, path in enumerate(sorted((made / "all").iterdir())):
                table = pq.read_table(path)
                is_test = np.random.default_rng([0, number]).random(len(table)) < TEST_SHARE
                pq.write_table(table.filter(~is_test), made / "train" / path.name)
                pq.write_table(table.filter(is_test), made / "test" / path.name)
                path.unlink()
            (made / "all").rmdir()
            made.rename(data)
    return data


def choose(
    run_on: Callable[[Settings], Run], fixed: Settings, choices: list[Settings], target: float
) -> tuple[Settings, int]:
    """Return the settings that reach the target in the fewest epochs, else those that come closest; and the epochs."""
    tried: list[tuple[Settings, int, float]] = []
    for settings in choices:
        limit = min((epochs for _, epochs, error in tried if error <= target), default=EPOCHS[-1])
        tried.append((settings, *fewest_epochs(run_on, fixed | settings, target, limit=limit)))
    settings, epochs, _ = min(tried, key=lambda found: (max(target, found[2]), found[1], found[2]))
    return settings, epochs


def fewest_epochs(
    run_on: Callable[[Settings], Run],
    settings: Settings,
    target: float,
    start: int = EPOCHS[0],
    limit: int = EPOCHS[-1],
) -> tuple[int, float]:
    """Return the fewest of `EPOCHS` that reach the target, and the test RMSE; if none does, those of the least RMSE.

    It begins with `start`, and gives up at `limit`, or when the error no longer falls by a thousandth.
    """
    errors: dict[int, float] = {}

    def reaches(epochs: int) -> bool:
        errors[epochs] = run_on(settings | {"epochs": epochs}).test_rmse
        return errors[epochs] <= target

    at = EPOCHS.index(start)
    if reaches(start):
        enough = [start, *itertools.takewhile(reaches, reversed(EPOCHS[:at]))]
        return enough[-1], errors[enough[-1]]
    for before, epochs in itertools.pairwise(epochs for epochs in EPOCHS[at:] if epochs <= limit):
        if reaches(epochs) or errors[epochs] > 0.999 * errors[before]:
            break
    best = min(errors, key=lambda epochs: errors[epochs])
    return best, errors[best]


def run(program: str, data: Path, settings: Settings, spark_memory: str = "") -> Run:
    """Return what a fresh process took to train a program on `train`, up to a saved model, and its error on `test`.

    LIBMF's threads sometimes wait for each other for ever, the smaller the blocks the sooner: it is then run again.
    """
    for _ in range(ATTEMPTS - 1 if program.startswith("libmf") else 0):
        try:
            return attempt(program, data, settings, spark_memory)
        except StuckError as err:
            say(f"{NAMES[program]} {err}, once more")
    return attempt(program, data, settings, spark_memory)


def attempt(program: str, data: Path, settings: Settings, spark_memory: str) -> Run:
    """Do what `run` does, once."""
    n_updates = settings["epochs"] * sum(pq.read_metadata(path).num_rows for path in (data / "train").iterdir())
    with tempfile.TemporaryDirectory(prefix="run-", dir=data) as name:
        model, log = Path(name) / "model", Path(name) / "log"
        options = settings | {"data": str(data), "model": str(model)}
        given = itertools.chain.from_iterable((f"--{key}", value) for key, value in settings.items())
        commands = {
            "distmf": [*PROGRAM, "train", data / "train", model, *given, "--tol", 0, "--json", "-q"],
            "libmf": peer("libmf", on_disk=False, **options),
            "libmf-disk": peer("libmf", on_disk=True, **options),
            "spark": peer("spark", memory=spark_memory, blocks=settings["threads"], **options),
        }
        lines, saved, start = list[tuple[float, str]](), dict[str, float](), time.perf_counter()
        with (
            log.open("w") as errors,
            subprocess.Popen(
                ["timeout", "--foreground", str(seconds_allowed(program, n_updates)), *map(str, commands[program])],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
            sampled_memory(process.pid) as samples,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                lines.append((time.perf_counter() - start, line))
                if line.startswith("{") and not saved:  # the model is saved; what follows is the test
                    saved, seconds, peak = json.loads(line), lines[-1][0], max(samples)
        if process.returncode == TIMED_OUT:
            raise StuckError(f"was not done after {seconds_allowed(program, n_updates)} s")
        if process.returncode:
            told = log.read_text().strip().splitlines() or [""]
            raise FailedError(f"ended with {process.returncode}: {told[-1]}")
        if program == "distmf":
            training_seconds = n_updates / saved["ratings_per_second"]
            test_rmse = evaluate(model, data / "test")
        else:
            training_seconds = saved.get("training_seconds") or seconds_of_epochs(lines)
            test_rmse = json.loads(lines[-1][1])["test_rmse"]
    words = " ".join(f"{key} {value}" for key, value in settings.items())
    say(f"{NAMES[program]}, {words}: {seconds:.1f} s, {training_seconds:.1f} s in training, test RMSE {test_rmse:.4f}")
    return Run(seconds, training_seconds, n_updates / training_seconds, peak, test_rmse)


def seconds_allowed(program: str, n_updates: float) -> int:
    """Return after how many seconds a run is given up: many times what it takes on a slow machine."""
    return int(120 + n_updates / (1e4 if program == "spark" else 5e4))


def peer(name: str, **options: object) -> list[object]:
    """Return the command of a peer's run."""
    return [sys.executable, Path(__file__).with_name(f"peer_{name}.py"), json.dumps(options)]


def evaluate(model: Path, test: Path) -> float:
    """Return the RMSE of a model of distmf."""
    command = [*PROGRAM, "evaluate", str(model), str(test), "--json", "-q"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout)["rmse"])


def seconds_of_epochs(lines: Sequence[tuple[float, str]]) -> float:
    """Return the seconds of all epochs, from the times at which LIBMF printed a line about each."""
    times = [at for at, line in lines if re.match(r"\s*\d+\s+\d+\.\d+", line)]
    return (times[-1] - times[0]) * len(times) / (len(times) - 1)


def say(what: str) -> None:
    """Print progress."""
    print(what, file=sys.stderr, flush=True)


def missing(program: str) -> str | None:
    """Return what is to be done before a program can run, None if it can."""
    if program.startswith("libmf") and importlib.util.find_spec("libmf") is None:
        return "not installed: pip install libmf, built for this CPU (see --help)"
    if program == "spark" and importlib.util.find_spec("pyspark") is None:
        return "not installed: pip install pyspark"
    if program == "spark" and shutil.which("java") is None:
        return "not installed: apt-get install default-jre-headless"
    return None


def versions(programs: list[str]) -> str:
    """Return the peers' versions, and how LIBMF was built."""
    told = f", libmf {version('libmf')} {'with' if has_avx() else 'WITHOUT'} AVX" if "libmf" in programs else ""
    return told + (f", pyspark {version('pyspark')}" if "spark" in programs else "")


if __name__ == "__main__":
    main()
