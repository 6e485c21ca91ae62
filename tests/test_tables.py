"""The tables of ids: the same bytes whatever the parts that they are put together of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmf.blocks import KIND
from distmf.errors import StoreError
from distmf.ids import IdCounts, hash_ids, salt
from distmf.store import Folder
from distmf.tables import PIECE_ROWS, read_ids, string_bytes, write_ids

SALT = salt(0, "user")


def part_of(counts: IdCounts, begin: int, end: int) -> IdCounts:
    ids = None if counts.ids is None else counts.ids[begin:end]
    return IdCounts(counts.hashes[begin:end], counts.counts[begin:end], ids)


@pytest.mark.parametrize("kind", [pa.int32(), pa.large_string()])
def test_write_ids__does_not_depend_on_the_parts(kind: pa.DataType) -> None:
    n = 2 * PIECE_ROWS + 1000
    ids = pa.array(np.arange(n)).cast(kind)
    hashes = hash_ids(ids, SALT)
    order = np.argsort(hashes)
    ids = ids.take(pa.array(order))
    counts = IdCounts(hashes[order], np.arange(n), None if pa.types.is_integer(kind) else ids)
    folder = Folder.at("memory://tables")
    try:
        contents = []
        for size in (n, 70_000, PIECE_ROWS, 2 * PIECE_ROWS + 999):
            parts = [part_of(counts, begin, begin + size) for begin in range(0, n, size)]
            for name in KIND.tables:
                write_ids(folder, name, kind, SALT, parts)
            contents.append(folder.read("users.parquet"))
        assert len(set(contents)) == 1
        table = pq.read_table(pa.BufferReader(contents[0]))
        assert table["id"].combine_chunks().equals(ids)
        assert table["count"].to_numpy().tolist() == list(range(n))
        checksum = folder.checksums(["users.parquet"])["users.parquet"]
        pieces = list(read_ids(folder, "users.parquet", checksum))
        assert [len(piece) for piece in pieces] == [PIECE_ROWS, PIECE_ROWS, 1000]
        assert pa.concat_arrays(pieces).equals(ids)
        n_bytes = 0 if pa.types.is_integer(kind) else sum(len(name) for name in ids.to_pylist()) + 8 * n
        assert n_bytes <= string_bytes(folder) / 2 <= 1.5 * n_bytes
        with pytest.raises(StoreError, match=r"users\.parquet does not match its checksum"):
            next(read_ids(folder, "users.parquet", checksum + 1))
    finally:
        folder.delete()
