"""Ratings far larger than memory: `distmf block` and `distmf train` inside a memory limit for all that they are.

    python benchmarks/out_of_core.py --ratings 1e9 --memory 2GiB

It makes the ratings (planted, power-law; the noise floor is known), sets the limit by a control group (pages of files
count too; needs root), runs the commands in it one after the other, and prints what they took. With `--beside` it
trains once more without a limit, on files that are in memory already: the ratio of the two is what the limit costs. The
data is made once and kept in `--folder`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the script's own folder would hide the package of the same name

import distmf  # noqa: E402
from benchmarks.cgroup import Peaks, forget_pages, limited  # noqa: E402
from benchmarks.common import PROGRAM, count, machine, markdown  # noqa: E402
from distmf.datasets import Planted  # noqa: E402
from distmf.sizes import format_bytes, parse_bytes  # noqa: E402


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=count, default=1_000_000_000)
    parser.add_argument("--users", type=count, help="[default: a hundredth of the ratings]")
    parser.add_argument("--items", type=count, help="[default: a thousandth of the ratings]")
    parser.add_argument("--memory", default="2GiB", help="of the control group")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("out_of_core"), help="with space for 30 bytes a rating")
    parser.add_argument("--beside", action="store_true", help="train without a limit as well")
    args = parser.parse_args()
    n_users, n_items = args.users or args.ratings // 100, args.items or args.ratings // 1000
    ratings, blocks = args.folder / f"ratings-{args.ratings}-{n_users}-{n_items}", args.folder / "blocks"
    planted = Planted(args.ratings, n_users, n_items)
    if not ratings.exists():
        args.folder.mkdir(exist_ok=True, parents=True)
        distmf.datasets.planted_ratings(ratings, args.ratings, n_users, n_items)
    print(
        f"{machine()}; {args.ratings:,} ratings by {n_users:,} users of {n_items:,} items, "
        f"noise {planted.noise_floor}; limit {args.memory}, {args.threads} threads\n"
    )
    rows = []
    options = ["--threads", str(args.threads), "--json"]
    limit = parse_bytes(args.memory)
    forget_pages(args.folder)
    given = ["block", str(ratings), str(blocks), "--rank", str(max(args.ranks)), *options]
    found, seconds, peaks = run(limit, given)
    rows.append(row("block", args.ratings / seconds, seconds, peaks, f"{found['bytes_per_rating']:.2f} bytes a rating"))
    for rank in args.ranks:
        given = ["train", str(blocks), str(args.folder / "model"), "--rank", str(rank), "--epochs", str(args.epochs)]
        given += ["--tol", "0", *options]
        forget_pages(blocks)
        found, seconds, peaks = run(limit, given)
        error = f"train RMSE {found['train_rmse']:.4f} after {found['epochs']} epochs"
        rows.append(row(f"train, rank {rank}", found["ratings_per_second"], seconds, peaks, error))
        if args.beside:
            subprocess.run(["cat", *map(str, blocks.rglob("*.bin"))], stdout=subprocess.DEVNULL, check=True)
            done = subprocess.run([*PROGRAM, *given], stdout=subprocess.PIPE, text=True, check=True)
            without = json.loads(done.stdout)["ratings_per_second"]
            error = f"with the limit {found['ratings_per_second'] / without:.2f} of it"
            rows.append(["the same without a limit", f"{without / 1e6:.1f} M", "", "", "", "", "", error])
        shutil.rmtree(args.folder / "model")
    shutil.rmtree(blocks)
    header = ["", "ratings/s", "seconds", "peak of the group", "own memory", "of the largest process", "killed", ""]
    print(markdown(header, rows))


def run(limit: int, given: list[str]) -> tuple[dict[str, float], float, Peaks]:
    """Return what a command printed as JSON, its seconds, and what it took."""
    with limited(limit) as group:
        done, seconds, peaks = group.run([*PROGRAM, *given], stdout=subprocess.PIPE)
    if done.returncode or peaks.kills:
        sys.exit(f"distmf {' '.join(given)} ended with {done.returncode}; killed for memory: {peaks.kills}")
    return json.loads(done.stdout), seconds, peaks


def row(what: str, rate: float, seconds: float, peaks: Peaks, note: str) -> list[str]:
    """Return a line of the table."""
    sizes = map(format_bytes, (peaks.group, peaks.own, max(peaks.by_process.values())))
    return [what, f"{rate / 1e6:.1f} M", f"{seconds:.0f}", *sizes, str(peaks.kills), note]


if __name__ == "__main__":
    try:
        main()
    except OSError as err:
        sys.exit(f"{err}: a control group with a memory limit is needed; run it as root, on Linux")
