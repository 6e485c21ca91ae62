"""Biased matrix factorization on ratings that do not fit in memory, on a laptop's cores or a Dask cluster."""

import distmf.clock  # noqa: F401  # isort: skip (before all that takes time)

import lazy_loader

# The names stand in __init__.pyi, and are imported when they are first used: the command line completes words without.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
