"""What can be chosen, and how far: constants that the command line shows without importing what works with them."""

from typing import Literal, get_args

MAX_RANK = 512
MAX_SAMPLES = 1024
MAX_BLOCKS = 1024  # row blocks or column blocks; a Dask scheduler handles about 900 tasks a second

Bound = Literal["mean", "optimistic", "pessimistic"]
BOUNDS: dict[Bound, int] = {"mean": 0, "optimistic": 1, "pessimistic": -1}  # standard deviations

Format = Literal["parquet", "numpy"]  # of exported vectors
FORMATS: tuple[Format, ...] = get_args(Format)

By = Literal["random", "user", "last"]  # how ratings are split
WAYS: tuple[By, ...] = get_args(By)

# What `tune` tries if it is not told.
RANKS = 16, 64, 256
REG_FACTORS = 0.5, 0.7, 1.0, 1.4, 2.0  # of the automatic one
EPOCHS = 10, 15
HOLDOUT = 0.1  # of raw ratings
