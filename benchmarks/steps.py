"""Rules of the step size: errors on unseen ratings of plain SGD loops, from the same first factors, in random order.

    python benchmarks/steps.py --data ml-1m.parquet ml-100k.parquet --test-share 0.1 0.2 --reg 0.055 0.09
    python benchmarks/steps.py --generated 400000

Each `--data` is Parquet with the columns `user_id`, `item_id` and `rating`, small enough for memory; its `--test-share`
is drawn at random. Generated ratings are planted, by a 80th as many users and a 160th as many items.

The rules are those of docs/steps.md: a constant step, one that goes to zero in a straight line, and AdaGrad with one
accumulator for each row, as LIBMF's RPCS has it: the step of a row is η over the root of the mean square of its
gradients, added up since the first epoch, at first one; with or without the straight line on top.

The table has the test RMSE at the end. The loops are as plain as they are slow: they are to tell rules apart, and share
nothing with distmf but the model.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

sys.path[0] = str(Path(__file__).parents[1])  # so that `benchmarks` is found

from benchmarks.common import count, machine, markdown  # noqa: E402
from distmf.datasets import planted_ratings  # noqa: E402

BIAS_REG = 0.02
FIRST_FACTORS = 0.1  # standard deviation


class Rule(NamedTuple):
    """A rule of the step size: where it starts, whether it goes to zero, and whether rows have accumulators."""

    start: float
    on_line: bool
    accumulates: bool

    def __str__(self) -> str:
        kind = "AdaGrad, one accumulator a row" if self.accumulates else "the same step for all"
        return f"{kind}, {'straight line from' if self.on_line else 'constant'} {self.start:g}"


RULES = [
    *(Rule(start, False, False) for start in (0.04, 0.02)),
    *(Rule(start, True, False) for start in (0.04, 0.06, 0.08)),
    *(Rule(start, on_line, True) for on_line in (False, True) for start in (0.1, 0.2)),
]


class Data(NamedTuple):
    """Ratings of numbered users and items, to train on and to test on, less their mean over their spread."""

    name: str
    train: tuple[npt.NDArray[Any], ...]
    test: tuple[npt.NDArray[Any], ...]
    shape: tuple[int, int]
    scale: float
    reg: float


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small data, two epochs: to see that it runs")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="PATH")
    parser.add_argument("--test-share", type=float, nargs="+", default=[0.1], help="of all or of each --data")
    parser.add_argument("--reg", type=float, nargs="+", default=[0.05], help="of all or of each --data")
    parser.add_argument("--generated", type=count, default=0, metavar="RATINGS")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    if args.toy:
        args.generated, args.rank, args.epochs = 4_000, 4, 2
    if not args.data and not args.generated:
        parser.error("give --data, --generated, or both")
    print(f"{machine()}; rank {args.rank}, {args.epochs} epochs\n")
    data = list(datasets(args))
    rows = [[rule, *(f"{test_rmse(one, rule, args.rank, args.epochs):.4f}" for one in data)] for rule in RULES]
    print(markdown(["rule", *(f"{one.name}, reg {one.reg:g}" for one in data)], rows))


def datasets(args: argparse.Namespace) -> Iterator[Data]:
    """Yield all data that is asked for."""
    for number, path in enumerate(args.data):
        share, reg = (values[number % len(values)] for values in (args.test_share, args.reg))
        yield split(path.stem, path, share, reg)
    if args.generated:
        with tempfile.TemporaryDirectory(prefix="distmf-bench-") as folder:
            sides = max(400, args.generated // 80), max(200, args.generated // 160)
            planted_ratings(Path(folder) / "r", args.generated, *sides, rank=4)
            yield split("generated", Path(folder) / "r", 0.1, args.reg[-1])


def split(name: str, path: Path, share: float, reg: float) -> Data:
    """Read ratings and draw those to test on."""
    table = pq.read_table(path, columns=["user_id", "item_id", "rating"])
    users, items = (np.unique(table[column].to_numpy(), return_inverse=True)[1] for column in ("user_id", "item_id"))
    ratings = table["rating"].to_numpy().astype(np.float64)
    is_test = np.random.default_rng(0).random(len(ratings)) < share
    mean, scale = ratings[~is_test].mean(), ratings[~is_test].std()
    values = (ratings - mean) / scale
    train, test = ((users[some], items[some], values[some]) for some in (~is_test, is_test))
    return Data(name, train, test, (int(users.max()) + 1, int(items.max()) + 1), float(scale), reg)


def test_rmse(data: Data, rule: Rule, rank: int, epochs: int) -> float:
    """Train by a rule and return the error on the test part."""
    rng = np.random.default_rng(0)
    sides = [
        (rng.normal(0, FIRST_FACTORS, (n, rank)).astype(np.float32), np.zeros(n, dtype=np.float32), np.ones(n))
        for n in data.shape
    ]
    for epoch in range(epochs):
        step = rule.start * (1 - epoch / epochs if rule.on_line else 1)
        order = rng.permutation(len(data.train[0]))
        train(order, *data.train, *sides[0], *sides[1], step, data.reg, rule.accumulates)
    users, items, values = data.test
    (P, b_u, _), (Q, b_i, _) = sides
    errors = values - b_u[users] - b_i[items] - np.einsum("nk,nk->n", P[users], Q[items])
    return float(np.sqrt(np.mean(errors**2)) * data.scale)


@nb.njit
def train(order, users, items, values, P, b_u, g_u, Q, b_i, g_i, step, reg, accumulates):
    """Do one epoch, in place; `g_u` and `g_i` are the accumulators of users and items."""
    rank = P.shape[1]
    for n in order:
        u, i = users[n], items[n]
        error = values[n] - b_u[u] - b_i[i]
        for k in range(rank):
            error -= P[u, k] * Q[i, k]
        of_user, of_item = step, step
        if accumulates:
            of_user, of_item = step / np.sqrt(g_u[u]), step / np.sqrt(g_i[i])
        square_u, square_i = 0.0, 0.0
        for k in range(rank):
            p, q = P[u, k], Q[i, k]
            to_user, to_item = error * q - reg * p, error * p - reg * q
            square_u, square_i = square_u + to_user**2, square_i + to_item**2
            P[u, k] = p + of_user * to_user
            Q[i, k] = q + of_item * to_item
        b_u[u] += of_user * (error - BIAS_REG * b_u[u])
        b_i[i] += of_item * (error - BIAS_REG * b_i[i])
        g_u[u] += square_u / rank
        g_i[i] += square_i / rank


if __name__ == "__main__":
    main()
