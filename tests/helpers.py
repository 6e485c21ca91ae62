"""Ratings for tests, and files of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmf import Blocks, MatrixFactorization, block_ratings


def random_ratings(n: int, n_users: int, n_items: int, seed: int = 0, *, coded: bool = True) -> pa.Table:
    """Return ratings of distinct random pairs: 1 to 5 if coded, else any number. Every id occurs if n is large."""
    rng = np.random.default_rng(seed)
    users, items = np.divmod(rng.choice(n_users * n_items, n, replace=False), n_items)
    signal = np.sin(users) + np.cos(items) + 0.3 * rng.standard_normal(n)
    ratings = np.clip(np.rint(3 + signal), 1, 5) if coded else 3 + signal
    return pa.table({"user_id": users, "item_id": items, "rating": ratings.astype(np.float32)})


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    """Write a table as Parquet."""
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by name."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def blocks_in(folder: Path, n_ratings: int, n_users: int, n_items: int) -> Blocks:
    """Block random ratings, which stay beside the blocks as r.parquet, with a holdout and 4 × 4 blocks."""
    source = write(folder / "r.parquet", random_ratings(n_ratings, n_users, n_items))
    return block_ratings(source, folder / "b", grid=(4, 4), holdout=0.1)


def saved(mf: MatrixFactorization, folder: Path) -> dict[str, bytes]:
    """Save a model in a folder and return its bytes."""
    mf.save(folder / "m")
    return files(folder / "m")
