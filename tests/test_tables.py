"""The tables of ids: the same bytes whatever the parts that they are put together of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmf.blocks import KIND
from distmf.ids import IdCounts, hash_ids, salt
from distmf.store import Folder
from distmf.tables import PIECE_ROWS, integer_ids, read_numbers, string_bytes, write_ids, write_numbers

SALT = salt(0, "user")


@pytest.mark.parametrize("kind", [pa.int32(), pa.large_string()])
def test_write_ids__does_not_depend_on_the_parts(kind: pa.DataType) -> None:
    n = 2 * PIECE_ROWS + 1000
    ids, counts = pa.array(np.arange(n)).cast(kind), np.arange(n) + 7
    folder = Folder.at("memory://tables")
    try:
        contents = []
        for size in (n, 70_000, PIECE_ROWS, 2 * PIECE_ROWS + 999):
            for name in KIND.tables:
                write_ids(folder, name, kind, (ids.slice(begin, size) for begin in range(0, n, size)), counts)
            contents.append(folder.read("users.parquet"))
        assert len(set(contents)) == 1
        table = pq.ParquetFile(pa.BufferReader(contents[0]))
        assert [table.metadata.row_group(k).num_rows for k in range(3)] == [PIECE_ROWS, PIECE_ROWS, 1000]
        assert table.read(["id"])["id"].combine_chunks().equals(ids)
        assert table.read(["count"])["count"].to_numpy().tolist() == counts.tolist()
        n_bytes = 0 if pa.types.is_integer(kind) else sum(len(name) for name in ids.to_pylist()) + 8 * n
        assert n_bytes <= string_bytes(folder) / 2 <= 1.5 * n_bytes
    finally:
        folder.delete()


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64()])
def test_numbers__are_read_as_they_were_written(kind: pa.DataType) -> None:
    limits = np.iinfo(str(kind))
    ids = pa.array([limits.min, limits.max, 0, 1, limits.max - 1][: 4 + (limits.min < 0)], kind).unique()
    hashes = hash_ids(ids, SALT)
    order = np.argsort(hashes)
    counts, spans = np.arange(len(ids)), np.arange(len(ids), dtype=np.uint8) + 250
    parts = [(IdCounts(hashes[order][n : n + 2], counts[n : n + 2]), spans[n : n + 2]) for n in range(0, len(ids), 2)]
    folder = Folder.at("memory://tables")
    try:
        write_numbers(folder, "users.parquet", parts)
        assert read_numbers(folder, "users.parquet", "hash").tolist() == hashes[order].tolist()
        assert read_numbers(folder, "users.parquet", "count").tolist() == counts.tolist()
        assert read_numbers(folder, "users.parquet", "span").tolist() == spans.tolist()
        found = pa.concat_arrays(list(integer_ids(folder, "users.parquet", kind, SALT)))
        assert found.equals(ids.take(pa.array(order)))
    finally:
        folder.delete()
