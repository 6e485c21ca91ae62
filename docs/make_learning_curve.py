"""Draw learning-curve.png: the errors of each epoch on MovieLens 1M, as `distmf report` shows them.

DISTMF_TEST_DATA=FOLDER python -m docs.make_learning_curve

FOLDER is where ml-1m.parquet lies; Chromium draws.
"""

import os
import tempfile
from pathlib import Path

import distmf
from tests.browser import opened

WIDTH, PIXELS = 800, 2  # of the page, and for each of its points


def main() -> None:
    """Train, and write the picture beside this file."""
    ratings = Path(os.environ["DISTMF_TEST_DATA"]) / "ml-1m.parquet"
    mf = distmf.MatrixFactorization().fit(ratings, holdout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        distmf.report(mf, page)
        with opened(page, WIDTH, scale=PIXELS) as (browser, problems):
            browser.locator("section#learning-curves").screenshot(path=Path(__file__).with_name("learning-curve.png"))
    assert not problems, problems


if __name__ == "__main__":
    main()
