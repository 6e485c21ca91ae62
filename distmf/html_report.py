"""A trained model -> one HTML file that shows how it was trained and how good it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distmf.errors import DistMFError, ParameterError
from distmf.factorization import MatrixFactorization
from distmf.loading import loaded
from distmf.store import new_file
from distmf.titles import read_titles


def report(
    mf: MatrixFactorization | str | Path, path: str | Path, *, titles: Mapping[Any, str] | str | Path | None = None
) -> None:
    """Write a report of a trained model: one HTML file that needs nothing else, whole or not at all.

    It has the learning curves, errors by size, by rating and by how much is known of users and items, the grid, the
    times of the last epoch, a map of the items, the diagnosis, and the settings to train the same again. It needs
    Bokeh: ``pip install 'distmf[report]'``.

    Parameters
    ----------
    mf : MatrixFactorization, str or Path
        A trained model, or the folder or URL of one.
    path : str or Path
        File or fsspec URL to write; a file that is there is replaced.
    titles : mapping, str or Path, optional
        Titles of items by their ids, or a file of them, Parquet or text, to show in the map; ids without one are shown
        as they are.

    Raises
    ------
    NotFittedError
        Before training.
    DistMFError
        If Bokeh is not installed.
    ParameterError
        If `mf` or `titles` are something else, or the file is not called .html.
    RatingsError
        If titles cannot be read.
    StoreError
        If the file cannot be written.
    """
    if Path(path).suffix.lower() not in ("", ".html", ".htm"):
        raise ParameterError(f"{path}: a report is HTML, so call it .html")
    mf = loaded(mf)
    try:
        from distmf.page import page  # noqa: PLC0415 (needs an extra)
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != "bokeh":
            raise
        raise DistMFError("a report needs Bokeh: pip install 'distmf[report]'") from err
    if isinstance(titles, str | Path):
        titles = read_titles(titles, mf.model_.items.ids.type)
    if titles is not None and not isinstance(titles, Mapping):
        raise ParameterError(
            f"titles are of type {type(titles).__name__}; give a dict of titles by id, or a file: "
            "dict(zip(frame.item_id, frame.title))"
        )
    html = page(mf, titles or {})
    with new_file(path) as file:
        file.write(html.encode())
