"""Ratings, pairs or ids as text, in columns -> Parquet, and the names of its columns."""

import codecs
import contextlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from pyarrow import compute

from distmf.errors import RatingsError
from distmf.filesystem import display_name, one_line, opened
from distmf.guessing import columns_in
from distmf.ratings import TEXT, Columns, check_columns
from distmf.store import Folder

NEEDED = "user", "item", "rating"  # each in a column of its own
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
REFUSED = re.compile(r"(?:column #(\d+): )?Row #(\d+): (?:CSV conversion error to (\w+): invalid value )?(.*)")
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
NOT_UTF8 = "{} is not text in UTF-8; save it as such"
MISSING = "", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None"  # among integers


def is_text(path: str) -> bool:
    """Return whether a file is text, by its name."""
    return posixpath.splitext(_uncompressed(path))[1].lower() in TEXT


def _uncompressed(path: str) -> str:
    stem, extension = posixpath.splitext(path)
    return stem if extension.lower() in COMPRESSED else path


class _TextError(Exception):
    """A column of ids, of which integers were expected, has some that are none."""


def write_text(files: Sequence[tuple[Any, str]], folder: Folder, names: dict[str, str | None]) -> Columns:
    """Write files of text as Parquet, each as one file; return their columns, which are those of the first.

    Ids are integers where all of them are, as they are written; else all are strings: 007 is not 7.
    """
    needed = [what for what in NEEDED if what in names]
    with _open_text(*files[0], needed) as (lines, _):
        columns = columns_in(lines.names, names, lines.where)
    strings: set[str] = set()
    while True:
        try:
            for n, (fs, path) in enumerate(files):
                with _open_text(fs, path, needed) as (lines, text):
                    check_columns(lines.names, columns, lines.where)
                    _write_one(lines, text, folder, f"part-{n}.parquet", columns, strings)
        except _TextError as err:
            strings.add(str(err))
        else:
            return columns


@contextlib.contextmanager
def _open_text(fs: Any, path: str, needed: Sequence[str]) -> Iterator[tuple["_Lines", "_Rest"]]:
    """Yield what the first line of a file says, and all of its text."""
    where = display_name(fs, path)
    compression = COMPRESSED.get(posixpath.splitext(path)[1].lower())
    with opened(fs, path) as raw, pa.input_stream(pa.PythonFile(raw, mode="r"), compression=compression) as text:
        first = text.read(1 << 16).removeprefix(codecs.BOM_UTF8)
        head, _, _ = first.partition(b"\n")
        if b"\0" in head:
            raise RatingsError(NOT_UTF8.format(where))
        yield _Lines.of(head.decode(errors="replace").strip(), where, needed), _Rest(first, text)


def _write_one(lines: "_Lines", text: "_Rest", folder: Folder, name: str, columns: Columns, strings: set[str]) -> None:
    """Write the text of a file as Parquet; ids in the columns `strings` as such, others as integers."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(lines.reader(text, columns))
        kinds = {column: pa.large_string() if column in strings else pa.int64() for column in columns.ids}
        schema = pa.schema([(column, kinds.get(column, reader.schema.field(column).type)) for column in columns.names])
        writer = pq.ParquetWriter(stack.enter_context(folder.create(name)), schema)
        stack.enter_context(writer)
        try:
            for batch in reader:
                arrays = {column: batch[column] for column in columns.names}
                for column in columns.ids:
                    ids = compute.utf8_trim_whitespace(batch[column])
                    arrays[column] = ids if column in strings else _integers(ids, column, lines.where)
                writer.write_batch(pa.record_batch(list(arrays.values()), schema=schema))
        except pa.ArrowInvalid as err:
            raise lines.refused(err) from err


def _integers(ids: pa.Array, name: str, where: str) -> pa.Array:
    """Return ids as integers, null where they are missing.

    Raises
    ------
    RatingsError
        If they are numbers with a fraction.
    _TextError
        If there are others.
    """
    is_missing = compute.is_in(ids, pa.array(MISSING, ids.type))
    numbers = ids.filter(compute.invert(is_missing))
    if not compute.all(compute.match_substring_regex(numbers, INTEGER), min_count=0).as_py():
        is_number = compute.match_substring_regex(numbers, f"^{NUMBER.pattern}$")
        if compute.all(is_number).as_py() and compute.any(compute.match_substring(numbers, ".")).as_py():
            raise RatingsError(
                f"{where}: column {name!r} has type double; ids can be integers or strings, so convert them"
            )
        raise _TextError(name)
    return compute.if_else(is_missing, None, ids).cast(pa.int64())


class _Rest:
    """A stream of which the beginning has been read, from the beginning."""

    closed = False

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest

    def read(self, n: int = -1) -> bytes:
        found, self._first = self._first, b""
        return found if found else bytes(self._rest.read(n))

    def readable(self) -> bool:
        return True

    def close(self) -> None: ...


class _Lines(NamedTuple):
    """Lines of text with columns, between which stand "::", tabs, semicolons or commas.

    Attributes
    ----------
    where : str
        The file, for messages.
    delimiter : str
        What stands between columns.
    has_names : bool
        Whether the first line has the names of the columns.
    names : list of str
        The names; without a line of them users, items and ratings, in this order, as in the files of MovieLens.
    """

    where: str
    delimiter: str
    has_names: bool
    names: list[str]

    @classmethod
    def of(cls, head: str, where: str, needed: Sequence[str]) -> Self:
        """Return what a first line says, which has a column at least for each of `user`, `item`, `rating` needed."""
        delimiter = next((mark for mark in ("::", "\t", ";", ",") if mark in head), "," if len(needed) == 1 else None)
        if delimiter is None:
            raise RatingsError(
                f"{where}: there are no columns in its first line, {head[:80]!r}; put commas, semicolons, tabs or :: "
                "between"
            )
        fields = head.split(delimiter)
        if len(fields) < len(needed):
            which = ", ".join(f"{what}s" for what in needed[:-1]) + f" and {needed[-1]}s"
            raise RatingsError(f"{where}: {which} need a column each; its first line is {head[:80]!r}")
        is_number = [bool(NUMBER.fullmatch(field.strip().strip('"'))) for field in fields]
        has_names = not (is_number[2] if len(needed) == len(NEEDED) else all(is_number[:3]))
        others = ["timestamp"] if len(fields) == 4 else [f"column {n}" for n in range(4, len(fields) + 1)]
        unnamed = ["user_id", "item_id", "rating", *others] if len(fields) > 1 else [f"{needed[0]}_id"]
        named = [field.strip().strip('"') for field in fields]
        return cls(where, delimiter, has_names, named if has_names else unnamed[: len(fields)])

    @property
    def fields(self) -> list[str]:
        """The names of all that stands between delimiters of one character: of "::", every other is empty."""
        others = [""] * (len(self.delimiter) - 1)
        return [name for column in self.names[:-1] for name in (column, *others)] + self.names[-1:]

    def reader(self, text: Any, columns: Columns) -> Any:
        """Return a reader of the text."""
        kinds = {
            **dict.fromkeys(columns.numbers.values(), pa.float64()),
            **dict.fromkeys(columns.ids, pa.large_string()),
        }
        read = pc.ReadOptions(column_names=_unique(self.fields), skip_rows=int(self.has_names), use_threads=False)
        parse = pc.ParseOptions(delimiter=self.delimiter[0])
        convert = pc.ConvertOptions(include_columns=columns.names, column_types=kinds)
        try:
            return pc.open_csv(pa.PythonFile(text, mode="r"), read, parse, convert)
        except pa.ArrowInvalid as err:
            raise self.refused(err) from err

    def refused(self, err: pa.ArrowInvalid) -> RatingsError:
        """Return an error that says what Arrow found, and in which line."""
        found = REFUSED.search(str(err))
        if "invalid UTF8" in str(err):
            return RatingsError(NOT_UTF8.format(self.where))
        if not found:
            return RatingsError(f"{self.where} cannot be read as text: {one_line(err)}")
        column, line, kind, what = found.groups()
        if column and kind:
            needed = "a number is needed" if kind == "double" else f"{kind} is the type of the lines before"
            what = f"column {self.fields[int(column)]!r} has {what}, but {needed}"
        what = re.sub(r"Expected (\d+) columns, got (\d+): .*", r"\1 columns are expected, and there are \2", what)
        return RatingsError(f"{self.where}, line {int(line):,}: {what}; mend the line, or remove it")


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which the empty ones are told apart."""
    return [name or f"nothing {n}" for n, name in enumerate(names)]
