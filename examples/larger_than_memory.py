"""Block and train ratings that are larger than the memory that this process may use, and stay within it.

    python examples/larger_than_memory.py                                       # 20 million ratings in 350 MiB
    python examples/larger_than_memory.py --ratings 1e9 --memory 2GiB --folder /somewhere/with/space

The ratings are made up, of known factors plus noise, so that the best possible error is known. What blocking and
training take is planned before they begin; at the end stands what they took. The libraries take about 200 MiB of it.
"""

import argparse
import concurrent.futures
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import distmf
from distmf.datasets import planted_ratings
from distmf.sizes import format_bytes, parse_bytes

SECONDS_BETWEEN_LOOKS = 0.01


class Peak(threading.Thread):
    """Looks how much memory is this process's own: without pages of files, which the system takes when it wants."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.n_bytes = 0

    def run(self) -> None:
        """Look, as long as the process runs."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            of_its_own = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.n_bytes = max(self.n_bytes, 1024 * of_its_own)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def main() -> None:
    """Make ratings, block them, train, and compare memory and error with what was planned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=float, default=2e7, help="how many (default: 2e7)")
    parser.add_argument("--memory", default="350 MiB", help="that this process may use (default: 350 MiB)")
    parser.add_argument("--rank", type=int, default=32, help="latent factors (default: 32)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the ratings (default: 5)")
    parser.add_argument("--folder", type=Path, help="where there is space for it (default: where temporary files go)")
    args = parser.parse_args()
    n_ratings = int(args.ratings)
    if n_ratings < 1000:
        parser.error(f"--ratings is {args.ratings:g}; at least 1000 are needed")
    n_users, n_items = max(1000, n_ratings // 140), max(500, n_ratings // 900)  # so that there are pairs enough

    with tempfile.TemporaryDirectory(prefix="larger-", dir=args.folder) as name, distmf.watch() as rest:
        folder = Path(name)
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
            # What it takes to make ratings does not count.
            made = another.submit(planted_ratings, folder / "ratings", n_ratings, n_users, n_items, seed=0)
            floor = made.result().noise_floor
        peak = Peak()
        peak.start()
        blocks = distmf.block_ratings(
            folder / "ratings", folder / "blocks", holdout=0.05, rank=args.rank, memory=args.memory
        )
        mf = distmf.MatrixFactorization(args.rank, epochs=args.epochs).fit(blocks, memory=args.memory)
        mf.save(folder / "model")
        rest()

        in_memory = format_bytes(24 * n_ratings)  # 8 bytes for each user, item and rating
        print(f"ratings   {n_ratings:,}, as a data frame {in_memory}")
        print(f"memory    {format_bytes(peak.n_bytes)} at most, of {format_bytes(parse_bytes(args.memory))}")
        print(f"holdout   RMSE {mf.history_.holdout_rmse:.4f}; the noise alone has {floor:.4f}")
        print(mf.history_.summary())


if __name__ == "__main__":
    try:
        main()
    except (distmf.errors.DistMFError, OSError) as err:
        raise SystemExit(str(err)) from None
