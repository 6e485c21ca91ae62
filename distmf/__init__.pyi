from . import datasets, errors
from .blocking import block_ratings
from .blocks import Blocks, open_blocks
from .evaluation import evaluate
from .exporting import export
from .factorization import MatrixFactorization
from .html_report import report
from .loading import load
from .matrix import always, non_negative, not_nan
from .ranking import evaluate_ranking
from .recommending import recommend_all
from .splitting import split
from .tuning import tune
from .version import __version__
from .watching import watch

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
    "export",
    "load",
    "non_negative",
    "not_nan",
    "open_blocks",
    "recommend_all",
    "report",
    "split",
    "tune",
    "watch",
]
