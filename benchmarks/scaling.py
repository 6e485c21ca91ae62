"""How speed and memory go with the number of ratings: a table, and a picture of it.

    pip install matplotlib
    python benchmarks/scaling.py --ratings 1e7 3e7 1e8 3e8 1e9 --picture docs/scaling.svg

For each number it makes planted ratings by a hundredth as many users of a thousandth as many items, blocks them, and
trains on 1 and on 2 threads, in turn, each in a fresh process with the memory that `--memory` allows. Ratings per
second are those of the epochs; memory is what was the process's own at the peak.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # the script's own folder would hide the package of the same name

import distmf  # noqa: E402
from benchmarks.common import PROGRAM, count, machine, markdown, sampled_memory  # noqa: E402
from distmf.sizes import format_bytes  # noqa: E402


def main() -> None:
    """Run all, print Markdown, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=count, nargs="+", default=[10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--folder", type=Path, default=Path("scaling"), help="with space for 30 bytes a rating")
    parser.add_argument("--picture", type=Path, help="where to draw it, as .svg or .png")
    args = parser.parse_args()
    print(f"{machine()}; rank {args.rank}, at most {args.memory}\n")
    found: dict[tuple[int, int], tuple[float, int]] = {}
    for n in args.ratings:
        ratings, blocks = args.folder / f"ratings-{n}", args.folder / "blocks"
        args.folder.mkdir(exist_ok=True, parents=True)
        if not ratings.exists():
            distmf.datasets.planted_ratings(ratings, n, n // 100, n // 1000)
        run(["block", ratings, blocks, "--rank", args.rank, "--memory", args.memory])
        rounds: dict[int, list[tuple[float, int]]] = {threads: [] for threads in args.threads}
        for _, threads in itertools.product(range(args.rounds), args.threads):
            options = ["--rank", args.rank, "--epochs", args.epochs, "--tol", 0, "--threads", threads]
            history, peak = run(["train", blocks, args.folder / "model", *options, "--memory", args.memory])
            rounds[threads].append((history["ratings_per_second"], peak))
        for threads, results in rounds.items():
            rates, peaks = zip(*results, strict=True)
            found[n, threads] = median(rates), max(peaks)
    header = ["ratings"] + [
        f"{what}, {t} thread{'s' * (t > 1)}" for t in args.threads for what in ("ratings/s", "memory")
    ]
    cells = {key: [f"{rate / 1e6:.0f} M", format_bytes(peak)] for key, (rate, peak) in found.items()}
    rows = [[f"{n:,}", *itertools.chain.from_iterable(cells[n, t] for t in args.threads)] for n in args.ratings]
    print(markdown(header, rows))
    shutil.rmtree(args.folder / "blocks")
    shutil.rmtree(args.folder / "model")
    if args.picture:
        draw(found, args.picture)


def run(given: list[Any]) -> tuple[dict[str, float], int]:
    """Return what a command printed as JSON, and the most memory that was its own."""
    command = [*PROGRAM, *map(str, given), "--json", "-q"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        sampled_memory(process.pid) as samples,
    ):
        output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"distmf {' '.join(map(str, given))} ended with {process.returncode}")
    return json.loads(output), max(samples)


def draw(found: dict[tuple[int, int], tuple[float, int]], path: Path) -> None:
    """Draw ratings per second and memory over the number of ratings, a line for each number of threads."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 (only the picture needs it)

    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for threads in sorted({threads for _, threads in found}):
        sizes = sorted(n for n, other in found if other == threads)
        rates, peaks = zip(*(found[n, threads] for n in sizes), strict=True)
        label = f"{threads} thread{'s' * (threads > 1)}"
        speed.plot(sizes, [rate / 1e6 for rate in rates], "o-", label=label)
        memory.plot(sizes, [peak / 2**30 for peak in peaks], "o-", label=label)
    for axes, title in ((speed, "million ratings per second"), (memory, "memory, GiB")):
        axes.set(xscale="log", xlabel="ratings", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    speed.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
