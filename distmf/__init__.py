"""Biased matrix factorization on ratings that do not fit in memory, on a laptop's cores or a Dask cluster."""

from distmf.blocking import block_ratings
from distmf.factorization import MatrixFactorization, always, load, non_negative, not_nan

__all__ = ["MatrixFactorization", "always", "block_ratings", "load", "non_negative", "not_nan"]
