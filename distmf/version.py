"""The version of distmf that is installed."""

from importlib.metadata import version

__version__ = version("distmf")
