"""The tables of users and items in a folder of blocks: ids and their counts in the order of their numbers.

They are written and read a piece at a time: there may be more ids than memory holds, and strings are of any length.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.blocks import KIND
from distmf.filesystem import opened
from distmf.ids import IdCounts
from distmf.store import Folder

PIECE_ROWS = 1 << 17


def write_ids(folder: Folder, name: str, id_type: pa.DataType, salt: np.uint64, parts: Iterable[IdCounts]) -> None:
    """Write the table of one side, given its counts part by part, by ascending hash; `salt` is that of the hashes."""
    schema = pa.schema({"id": id_type, "count": pa.int64()})
    tables = (pa.table([part.raw_ids(id_type, salt), part.counts], schema=schema) for part in parts)
    folder.write_table(name, schema, _pieces(tables))


def _pieces(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of tables in pieces that do not depend on how many rows each of these has."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= PIECE_ROWS:
            joined = pa.concat_tables(waiting)
            n_whole = len(joined) // PIECE_ROWS * PIECE_ROWS
            for begin in range(0, n_whole, PIECE_ROWS):
                yield from joined.slice(begin, PIECE_ROWS).combine_chunks().to_batches()
            waiting = [joined.slice(n_whole)]
    yield from pa.concat_tables(waiting).combine_chunks().to_batches()


def read_ids(folder: Folder, name: str, checksum: int) -> Iterator[pa.Array]:
    """Yield the ids of one side, piece by piece."""
    for table in folder.read_row_groups(name, checksum, ["id"]):
        yield table["id"].combine_chunks()


def string_bytes(folder: Folder) -> int:
    """Return the bytes of the ids that are strings, and 8 for each of where it ends, as the footers tell them."""
    total = 0
    for name in KIND.tables:
        with opened(folder.fs, folder.child(name)) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
            if not pa.types.is_integer(parquet.schema_arrow.field("id").type):
                groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
                total += sum(group.column(0).total_uncompressed_size + 8 * group.num_rows for group in groups)
    return total
