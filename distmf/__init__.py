"""Biased matrix factorization on ratings that do not fit in memory, on a laptop's cores or a Dask cluster."""

import distmf.clock  # noqa: F401  # isort: skip (before all that takes time)

from importlib.metadata import version

from distmf import datasets, errors
from distmf.blocking import block_ratings
from distmf.blocks import Blocks, open_blocks
from distmf.evaluate import evaluate
from distmf.factorization import MatrixFactorization, load
from distmf.matrix import always, non_negative, not_nan
from distmf.ranking import evaluate_ranking
from distmf.recommending import recommend_all
from distmf.tuning import tune

__version__ = version("distmf")

__all__ = [
    "Blocks",
    "MatrixFactorization",
    "__version__",
    "always",
    "block_ratings",
    "datasets",
    "errors",
    "evaluate",
    "evaluate_ranking",
    "load",
    "non_negative",
    "not_nan",
    "open_blocks",
    "recommend_all",
    "tune",
]
