"""Tables of ids: those of users and items in a folder of blocks, and those that number them while it is made.

Both have the ids in the order of their numbers, which is that of their hashes. They are written a piece at a time:
there may be more ids than memory holds, and strings are of any length.

users.parquet            ids, and their ratings to train on
numbers/users.parquet    their hashes, their ratings to train on, and the span of the input that each comes up in first
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.blocks import KIND
from distmf.ids import IdCounts, Numbers, integers_of
from distmf.store import Folder

PIECE_ROWS = 1 << 17
NUMBERS = "numbers"
NUMBERED = pa.schema({"hash": pa.uint64(), "count": pa.int64(), "span": pa.uint8()})


def write_numbers(folder: Folder, name: str, parts: Iterable[tuple[IdCounts, npt.NDArray[np.uint8]]]) -> None:
    """Write the table that numbers one side, given part by part, by ascending hash: counts, and spans."""
    columns = ([*counts, spans] for counts, spans in parts)
    folder.write_table(f"{NUMBERS}/{name}", NUMBERED, (pa.record_batch(some, schema=NUMBERED) for some in columns))


def read_numbers(folder: Folder, name: str, column: str) -> npt.NDArray[Any]:
    """Return a column of it."""
    return np.concatenate(list(_column(folder, f"{NUMBERS}/{name}", column)))


def integer_ids(folder: Folder, name: str, id_type: pa.DataType, salt: np.uint64) -> Iterator[pa.Array]:
    """Yield the integers, of a type, that it numbers; `salt` is that of the hashes."""
    for hashes in _column(folder, f"{NUMBERS}/{name}", "hash"):
        yield pa.array(integers_of(hashes, salt).astype(str(id_type)))  # to_pandas_dtype wants pandas before pyarrow 26


def read_counts(folder: Folder, name: str) -> Numbers | None:
    """Return the ratings to train on of each id of a side, from whichever of its tables is there, or None."""
    for table in name, f"{NUMBERS}/{name}":
        if folder.fs.isfile(folder.child(table)):
            return np.concatenate(list(_column(folder, table, "count")))
    return None


def _column(folder: Folder, table: str, column: str) -> Iterator[npt.NDArray[Any]]:
    for group in folder.read_row_groups(table, [column]):
        yield group[column].to_numpy()


def write_ids(folder: Folder, name: str, id_type: pa.DataType, ids: Iterable[pa.Array], counts: Numbers) -> None:
    """Write the table of one side, given its ids part by part, and all counts."""
    schema = pa.schema({"id": id_type, "count": pa.int64()})
    folder.write_table(name, schema, _pieces(ids, counts, schema))


def _pieces(ids: Iterable[pa.Array], counts: Numbers, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield rows of the table in pieces that do not depend on how many ids each part has."""
    waiting, begin = pa.table({"id": pa.array([], schema.field("id").type)}), 0

    def piece(n_rows: int) -> pa.RecordBatch:
        nonlocal waiting, begin
        some = waiting.slice(0, n_rows)["id"].combine_chunks()
        waiting, begin = waiting.slice(n_rows), begin + n_rows
        return pa.record_batch([some, counts[begin - n_rows : begin]], schema=schema)

    for part in ids:
        waiting = pa.concat_tables([waiting, pa.table({"id": part})])
        while len(waiting) >= PIECE_ROWS:
            yield piece(PIECE_ROWS)
    yield piece(len(waiting))


def string_bytes(folder: Folder) -> int:
    """Return the bytes of the ids that are strings, and 8 for each of where it ends, as the footers tell them."""
    total = 0
    for name in KIND.tables:
        with folder.parquet(name) as parquet:
            if not pa.types.is_integer(parquet.schema_arrow.field("id").type):
                groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
                total += sum(group.column(0).total_uncompressed_size + 8 * group.num_rows for group in groups)
    return total
