"""A file of items and their titles -> titles by id, as a model knows its ids."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distmf.arguments import did_you_mean
from distmf.errors import RatingsError
from distmf.filesystem import display_name, one_line, opened
from distmf.guessing import KNOWN, only_one_of
from distmf.ratings import files_of

# What columns are often called, in small letters and without what stands between words.
ITEMS = (*KNOWN["item"], "id")
TITLES = "title", "itemtitle", "movietitle", "booktitle", "producttitle", "name", "itemname", "moviename"
PARQUET = b"PAR1"  # how it begins
DELIMITERS = "::", "\t", ";", "|", ","


def read_titles(
    source: str | Path, ids: pa.DataType, *, item: str | None = None, title: str | None = None
) -> dict[Any, str]:
    """Return the titles in a source, by id.

    Parameters
    ----------
    source : str or Path
        Path or URL of Parquet, or of text: columns between "::", tabs, semicolons, bars or commas, in UTF-8 or else
        Latin-1. Text without a line of names has items first and then titles, as the files of MovieLens.
    ids : pa.DataType
        Of the model's items.
    item, title : str, optional
        Columns; by default as they are called, where only one can be meant.

    Raises
    ------
    RatingsError
        If there is nothing to read, or it is not clear which columns are meant, or ids are of another type.
    """
    found: dict[Any, str] = {}
    for fs, path in files_of(source):
        where = display_name(fs, path)
        with opened(fs, path) as file:
            read = _of_parquet if file.read(len(PARQUET)) == PARQUET else _of_text
            file.seek(0)
            items, titles = read(file, where, item, title)
        try:
            found |= dict(zip(items.cast(ids).to_pylist(), titles.to_pylist(), strict=True))
        except pa.ArrowInvalid as err:
            raise RatingsError(
                f"{where}: there are items that are no {ids}, as the model's ids are; name their column by --item"
            ) from err
    return {id_: text for id_, text in found.items() if text}


def _of_parquet(file: Any, where: str, item: str | None, title: str | None) -> tuple[pa.Array, pa.Array]:
    try:
        with pq.ParquetFile(file) as parquet:
            columns = _columns(parquet.schema_arrow.names, where, item, title)
            table = parquet.read(columns)
    except pa.ArrowInvalid as err:
        raise RatingsError(f"{where} cannot be read as Parquet: {one_line(err)}; write it again") from err
    return table[columns[0]].combine_chunks(), table[columns[1]].combine_chunks().cast(pa.string())


def _of_text(file: Any, where: str, item: str | None, title: str | None) -> tuple[pa.Array, pa.Array]:
    raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = next((mark for mark in DELIMITERS if lines and mark in lines[0]), None)
    if delimiter is None:
        raise RatingsError(
            f"{where}: items and titles need a column each, with commas between; its first line is "
            f"{''.join(lines[:1])[:80]!r}"
        )
    rows = (
        [line.split(delimiter) for line in lines]
        if len(delimiter) > 1
        else list(csv.reader(lines, delimiter=delimiter))
    )
    names = [name.strip() for name in rows[0]]
    if item or title or only_one_of(names, TITLES, "title", where):
        places = [names.index(name) for name in _columns(names, where, item, title)]
        rows = rows[1:]
    else:
        places = [0, 1]
    for row in rows:
        if len(row) <= max(places):
            raise RatingsError(
                f"{where}: there is no title in the line that begins with {delimiter.join(row)[:80]!r}; mend it"
            )
    items, titles = ([row[place].strip() for row in rows] for place in places)
    return pc.utf8_trim_whitespace(pa.array(items, pa.string())), pa.array(titles, pa.string())


def _columns(there: Sequence[str], where: str, item: str | None, title: str | None) -> list[str]:
    found: list[str] = []
    for what, name, known in (("item", item, ITEMS), ("title", title, TITLES)):
        column = name or only_one_of(there, known, what, where)
        if column is None or column not in there:
            listed = ", ".join(map(repr, there))
            hint = did_you_mean(name, there) if name else ""
            raise RatingsError(f"{where}: say by --{what} which column has the {what}s; there are {listed}{hint}")
        found.append(column)
    return found
