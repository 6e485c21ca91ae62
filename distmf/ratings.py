"""Any source of Parquet ratings -> checked batches of them. Knows nothing of numbers, grids or models.

Every file is looked at before anything is read, and every batch is checked before it is handed on: whoever takes
batches from here may rely on ids without nulls, of one type, and on ratings that are finite.
"""

import contextlib
import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distmf.arguments import similar
from distmf.errors import RatingsError, StoreError
from distmf.filesystem import display_name, explained, is_local, one_line, opened, path_type, read_range, url_to_fs
from distmf.sizes import counted

BATCH_ROWS = 1 << 20
BUFFER_BYTES = 1 << 20  # read from a column at once, so that a row group of any size takes bounded memory
SAMPLED_PIECES, SAMPLED_ROWS = 8, 1 << 12  # to see how long ids are
REMOTE_BUFFER_BYTES = 1 << 23  # a request takes longer
MAGIC = b"PAR1"
TEXT = ".csv", ".tsv", ".txt", ".dat", ".data"
ISO_DATE = r"^\d{4}-\d{2}-\d{2}($|[T ])"  # whose order as text is that of time
MOST_NAMED = 20  # columns, in a message
LARGEST = 1e30  # beyond it, predictions would not fit into float32


class Columns(NamedTuple):
    """Names of the columns; without a `rating`, pairs of ids are read; without an `item` or `user` too, other ids."""

    user: str | None = "user_id"
    item: str | None = "item_id"
    rating: str | None = "rating"
    weight: str | None = None
    time: str | None = None

    @property
    def ids(self) -> list[str]:
        """The columns of ids to read."""
        return [name for name in self[:2] if name is not None]

    @property
    def numbers(self) -> dict[str, str]:
        """The columns of ratings and weights to read."""
        return {what: name for what, name in (("ratings", self.rating), ("weights", self.weight)) if name is not None}

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in self if name is not None]


class Problem(NamedTuple):
    """Something wrong with values of a column; `what` they are is said in the singular."""

    column: str
    what: str
    how: str = ""


class Piece(NamedTuple):
    """One row group of one file: what a task reads."""

    path: str
    row_group: int
    n_rows: int


class Batch(NamedTuple):
    """Some ratings, checked.

    Attributes
    ----------
    user, item : pa.Array, shape (n,)
        Ids: integers, or `large_string`; no nulls.
    rating : float32, shape (n,)
        Finite.
    weight : float32, shape (n,)
        Finite, and above 0.
    time : pa.Array, shape (n,)
        Of a type that has an order; no nulls.

    What was not asked for is None.
    """

    user: pa.Array
    item: pa.Array
    rating: Any
    weight: Any = None
    time: Any = None

    @property
    def n_bytes(self) -> int:
        """Of all that there is."""
        return sum(column.nbytes for column in self if column is not None)


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings that lie somewhere as Parquet; a value that can be sent to another process.

    Attributes
    ----------
    fs : fsspec.AbstractFileSystem
        Where they lie.
    columns : Columns
        What to read.
    id_types : mapping
        Column of ids to its type: an integer type or `large_string`.
    pieces : tuple of Piece
        All row groups, by path and position.
    """

    fs: Any
    columns: Columns
    id_types: Mapping[str, pa.DataType]
    pieces: tuple[Piece, ...]

    @property
    def n_rows(self) -> int:
        """Number of ratings or pairs."""
        return sum(piece.n_rows for piece in self.pieces)

    def string_bytes(self) -> int:
        """Return about how many bytes an id takes, of the column of longer ones, if it is a string; else 0.

        It is the mean of the first rows of a few files.
        """
        widths = {name: [0] for name, id_type in self.id_types.items() if not pa.types.is_integer(id_type)}
        if widths:
            for piece in self.pieces[:: -(-len(self.pieces) // SAMPLED_PIECES)]:
                batch = next(read_piece(self, piece, SAMPLED_ROWS))
                columns = dict(zip(self.columns.ids, batch, strict=False))
                for name, found in widths.items():
                    found.append(-(-columns[name].nbytes // len(batch.user)))
        return max(map(max, widths.values()), default=0)

    def spans(self, n_rows: int) -> list["Ratings"]:
        """Return the ratings in parts of consecutive pieces, each of at least `n_rows` rows but for the last."""
        ends = np.cumsum([piece.n_rows for piece in self.pieces])
        spans = np.split(np.arange(len(ends)), np.flatnonzero(np.diff(ends // n_rows)) + 1)
        return [replace(self, pieces=self.pieces[span[0] : span[-1] + 1]) for span in spans]

    def fingerprint(self) -> str:
        """Return a hash of the columns and of what the file system knows of the files: it changes when one does."""
        with explained("the files of the ratings cannot be looked up"):
            keys = [self.fs.ukey(path) for path in dict.fromkeys(piece.path for piece in self.pieces)]
        what = [*self.columns, *(f"{piece.path} {piece.row_group} {piece.n_rows}" for piece in self.pieces), *keys]
        return hashlib.blake2s("\n".join(map(str, what)).encode(), digest_size=16).hexdigest()


def open_ratings(source: str | Path, columns: Columns) -> Ratings:
    """Find the files of a source and check what can be known before they are read.

    Parameters
    ----------
    source : str or Path
        A file, a folder (with the folders in it; names that begin with ``.`` or ``_`` are skipped), a glob, or an
        fsspec URL of one of them.
    columns : Columns
        What to read.

    Raises
    ------
    RatingsError
        If there is no file or no rating; a file is not Parquet or is truncated; a column is missing; an id is neither
        an integer nor a string, or not of the type that it has in the other files; a rating is not a number.
    """
    check_distinct(columns, str(source))
    fs, path = url_to_fs(source)
    pieces: list[Piece] = []
    types: dict[str, tuple[pa.DataType, str]] = {}  # of each id column: its type, and the file that decided it
    for file in _files(fs, path, str(source)):
        with _open(fs, file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            check_columns(schema.names, columns, display_name(fs, file))
            pieces += [
                Piece(file, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)
            ]
        if metadata.num_rows:
            for column in columns.ids:
                _check_id_type(schema, column, types, display_name(fs, file))
            for option, column in columns.numbers.items():
                _check_number_type(schema, option, column, display_name(fs, file))
    pieces = [piece for piece in pieces if piece.n_rows]
    if not pieces:
        raise RatingsError(f"{source}: there is no row in it; ratings are needed")
    return Ratings(fs, columns, {column: id_type for column, (id_type, _) in types.items()}, tuple(pieces))


def read_piece(ratings: Ratings, piece: Piece, n_rows: int | None = None) -> Iterator[Batch]:
    """Yield the ratings of one row group in batches of up to `n_rows`; memory does not grow with the row group.

    Raises
    ------
    RatingsError
        If there are null ids, or ratings that are null, NaN or infinite; at the end, with the number of each. Or if the
        row group cannot be read.
    """
    problems: Counter[Problem] = Counter()
    where = f"{display_name(ratings.fs, piece.path)}, row group {piece.row_group}"
    with _open(ratings.fs, piece.path) as parquet:
        names = ratings.columns.names
        n_rows = n_rows or BATCH_ROWS
        batches = parquet.iter_batches(n_rows, row_groups=[piece.row_group], columns=names, use_threads=False)
        while (raw := _next(batches, where)) is not None:
            batch, found = _checked(raw, ratings)
            problems.update(found)
            if not problems:
                yield batch
    if problems:
        what = [f"column {each.column!r} has {counted(n, each.what)}{each.how}" for each, n in problems.items()]
        raise RatingsError(f"{where}: {'; '.join(what)}; remove these rows, or set what is missing")


def read_ids(source: str | Path, columns: Columns) -> pa.Array:
    """Return the ids in the one column of a source that is to be read, in memory.

    Raises
    ------
    RatingsError
        As `open_ratings` and `read_piece`.
    """
    ratings = open_ratings(source, columns)
    return pa.concat_arrays([batch.user for piece in ratings.pieces for batch in read_piece(ratings, piece)])


def files_of(source: str | Path) -> list[tuple[Any, str]]:
    """Return the file systems and paths of the files of a source.

    Raises
    ------
    RatingsError
        If there is none.
    """
    fs, path = url_to_fs(source)
    return [(fs, file) for file in _files(fs, path, str(source))]


def column_names(source: str | Path) -> list[str]:
    """Return the names of the columns in the first file of a source.

    Raises
    ------
    RatingsError
        As `open_ratings`.
    """
    fs, file = files_of(source)[0]
    with _open(fs, file) as parquet:
        return list(parquet.schema_arrow.names)


def _files(fs: Any, path: str, source: str) -> list[str]:
    """Return the files of a source, sorted; those with a hidden name below what the source names are left out."""
    what = path_type(fs, path)
    if what == "file":
        return [path]
    is_glob = what is None and any(char in path for char in "*?[")
    root = re.split(r"[*?\[]", path)[0].rpartition("/")[0] if is_glob else path.rstrip("/")
    found: set[str] = set()
    with explained(f"{source} cannot be listed"):
        for match in fs.glob(path) if is_glob else [path] if what else []:
            found.update(fs.find(match) if fs.isdir(match) else [match])
    files = [file for file in found if not any(part[:1] in (".", "_") for part in file[len(root) :].split("/"))]
    if not files:
        raise RatingsError(f"{source}: no such file, or no file in it; give a Parquet file, a folder, a glob or a URL")
    return sorted(files)


@contextlib.contextmanager
def _open(fs: Any, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; on a local disk without Python in between."""
    with contextlib.nullcontext(path) if is_local(fs) else opened(fs, path) as file:
        try:
            # Not with pre_buffer, which reads all of a row group at once.
            size = BUFFER_BYTES if is_local(fs) else REMOTE_BUFFER_BYTES
            parquet = pq.ParquetFile(file, buffer_size=size, pre_buffer=False)
        except FileNotFoundError as err:
            raise RatingsError(
                f"{display_name(fs, path)}: the file is gone; were the ratings changed meanwhile?"
            ) from err
        except StoreError:
            raise
        except (pa.ArrowException, OSError) as err:
            what = f"{display_name(fs, path)} {_what_it_is(fs, path)}"
            raise RatingsError(f"{what}; remove it, write it again, or choose files by a glob") from err
        with parquet:
            yield parquet


def _what_it_is(fs: Any, path: str) -> str:
    """Return what a file is that cannot be opened as Parquet."""
    with explained(f"{display_name(fs, path)} cannot be read"):
        size, begin = fs.size(path), read_range(fs, path, 0, len(MAGIC))
    if size == 0:
        return "is empty (0 bytes), so it is not a Parquet file"
    if begin == MAGIC:
        return f"is a Parquet file that is truncated or damaged ({size:,} bytes)"
    is_text = posixpath.splitext(path)[1].lower() in TEXT
    return "is not a Parquet file" + ("" if is_text else f"; text must be called {', '.join(TEXT)}")


def _next(batches: Iterator[pa.RecordBatch], where: str) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as err:
        raise RatingsError(f"{where} cannot be read: {one_line(err)}; the file is damaged, write it again") from err


def check_distinct(columns: Columns, source: str) -> None:
    """Refuse columns of which one is asked for twice.

    Raises
    ------
    RatingsError
        If there are some.
    """
    for name in columns.names:
        options = [option for option, other in zip(Columns._fields, columns, strict=True) if other == name]
        if len(options) > 1:
            flags = " or ".join(f"{option}= (--{option})" for option in options)
            raise RatingsError(
                f"{source}: column {name!r} is taken for {' and '.join(options)}, which need one each; name another by "
                f"{flags}"
            )


def check_columns(names: Sequence[str], columns: Columns, file: str) -> None:
    """Refuse to read columns from a file, or what it is, that has others, or two of a name.

    Raises
    ------
    RatingsError
        With those that there are, and the one that may be meant.
    """
    for option, name in zip(Columns._fields, columns, strict=True):
        if name is None or names.count(name) == 1:
            continue
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        there = (", ".join(map(repr, names[:MOST_NAMED])) or "none") + more
        if name in names:
            raise RatingsError(f"{file}: {names.count(name)} columns are called {name!r}; rename them: {there}")
        meant, how = similar(name, names), f"name the right one by {option}= (--{option})"
        hint = f"did you mean {option}={meant!r} (--{option} {meant})?" if meant else how
        raise RatingsError(f"{file}: there is no column {name!r}; there are: {there}; {hint}")


def _value_type(schema: pa.Schema, column: str) -> pa.DataType:
    found = schema.field(column).type
    return found.value_type if pa.types.is_dictionary(found) else found


def _check_id_type(schema: pa.Schema, column: str, types: dict[str, tuple[pa.DataType, str]], file: str) -> None:
    found = _value_type(schema, column)
    if pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found):
        found = pa.large_string()
    elif not pa.types.is_integer(found):
        raise RatingsError(
            f"{file}: column {column!r} has type {found}; ids can be integers or strings, so convert them"
        )
    expected, first_file = types.setdefault(column, (found, file))
    if found != expected:
        raise RatingsError(
            f"{file}: column {column!r} has type {_plain(found)}, but {_plain(expected)} in {first_file}; "
            "write all files with one type"
        )


def _plain(id_type: pa.DataType) -> str:
    return str(id_type).removeprefix("large_")


def _check_number_type(schema: pa.Schema, what: str, column: str, file: str) -> None:
    found = _value_type(schema, column)
    kinds = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean
    if not any(is_one(found) for is_one in kinds):
        raise RatingsError(f"{file}: column {column!r} has type {found}; {what} must be numbers, so convert them")


def _checked(raw: pa.RecordBatch, ratings: Ratings) -> tuple[Batch, dict[Problem, int]]:
    """Return a batch, and what is wrong with it: column and kind to count; if anything is, the batch is of no use."""
    columns = ratings.columns
    ids = [_decoded(raw, name).cast(ratings.id_types[name]) for name in columns.ids]
    found = {Problem(name, "null id"): column.null_count for name, column in zip(columns.ids, ids, strict=True)}
    numbers: dict[str, npt.NDArray[np.float32]] = {}
    for what, name in columns.numbers.items():
        column = _decoded(raw, name)
        values = numbers[what] = _to_float32(column.drop_null())
        bad = values[~(abs(values) <= LARGEST)]
        one = what.removesuffix("s")
        found[Problem(name, f"null {one}")] = column.null_count
        found[Problem(name, f"NaN {one}")] = int(np.isnan(bad).sum())
        found[Problem(name, f"infinite {one}", " (as float32)")] = int(np.isinf(bad).sum())
        found[Problem(name, one, f" beyond ±{LARGEST:g}")] = int(np.isfinite(bad).sum())
        if what == "weights":
            found[Problem(name, one, " not above 0")] = int((values <= 0).sum())
    time = _decoded(raw, columns.time) if columns.time else None
    if columns.time and time is not None:
        found[Problem(columns.time, "null time")] = time.null_count
        if pa.types.is_string(time.type) or pa.types.is_large_string(time.type):
            is_iso = pc.sum(pc.match_substring_regex(time, ISO_DATE)).as_py() or 0
            found[Problem(columns.time, "time", " as text that is not ISO 8601 (2026-11-27)")] = (
                len(time) - time.null_count - is_iso
            )
    batch = Batch(ids[0], ids[1] if len(ids) > 1 else None, numbers.get("ratings"), numbers.get("weights"), time)
    return batch, {key: n for key, n in found.items() if n}


def _decoded(raw: pa.RecordBatch, name: str) -> pa.Array:
    column = raw.column(name)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _to_float32(column: pa.Array) -> npt.NDArray[np.float32]:
    if pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64())
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        values = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return np.asarray(values + np.float32(0))  # one zero: -0.0 would be a rating of its own
