"""The grid of ratings on disk: a manifest, the ids, and one file of blocks per row block.

    manifest.json                 shapes, cut points, dtypes, statistics; where each block lies and its checksum
    users.parquet, items.parquet  raw id and number of ratings, by row and by column number
    rows/00000.bin                the blocks of row block 0, side by side

A block is four plain arrays for the ratings to train on and the same four for those held out: groups of each size per
tile (uint32), row of each group within the tile, column within the tile and value of each rating; with weights there is
a fifth, of these (float32). Each is filled up to whole words of 8 bytes. They need no decoding: the kernel reads them
as they are.
"""

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.buffers import empty_bytes
from distmf.cache import ByteCache
from distmf.encoding import Encoding
from distmf.errors import ParameterError, StoreError
from distmf.grid import BlockKey, Shape, offset_dtype
from distmf.kernel import GROUP_SIZES, Ratings
from distmf.moments import Moments
from distmf.store import Folder, Kind

KIND = Kind("distmf blocks", 4, "manifest.json", ("users.parquet", "items.parquet"), r"rows/\d+\.bin")
CACHE_BYTES = 1 << 30  # per process
Part = Literal["train", "holdout"]
PARTS: tuple[Part, ...] = "train", "holdout"

_cache: ByteCache[Any] = ByteCache(CACHE_BYTES)


class BlockEntry(NamedTuple):
    """Where a block lies in the file of its row block, and what it holds.

    Attributes
    ----------
    offset, length, checksum : int
        Bytes in the file.
    n_train, n_holdout : int
        Ratings.
    moments : Moments
        Of those to train on, each as often as its weight says.
    holdout_weight : float
        Sum of the weights of those held out.
    """

    offset: int
    length: int
    checksum: int
    n_train: int
    n_holdout: int
    moments: Moments
    holdout_weight: float

    @classmethod
    def of_json(cls, entry: Sequence[Any]) -> "BlockEntry":
        """Return an entry as JSON gives it back."""
        return cls._make([*entry[:5], Moments(*entry[5]), *entry[6:]])


class Layout(NamedTuple):
    """How the blocks of a grid are laid out; the same for all of them.

    Attributes
    ----------
    row_cuts, col_cuts : tuple of int
        Where each row block and column block begins, and the numbers of users and items.
    tile_shape : tuple of int
        Rows and columns of a tile.
    encoding : Encoding
        How ratings are stored.
    is_weighted : bool
        Whether ratings have weights.
    """

    row_cuts: tuple[int, ...]
    col_cuts: tuple[int, ...]
    tile_shape: tuple[int, int]
    encoding: Encoding
    is_weighted: bool = False

    @property
    def shape(self) -> Shape:
        """Numbers of row blocks and column blocks."""
        return Shape(len(self.row_cuts) - 1, len(self.col_cuts) - 1)

    def tiles(self, key: BlockKey) -> tuple[int, int]:
        """Return the numbers of tile rows and tile columns of a block."""
        n_rows = self.row_cuts[key.row + 1] - self.row_cuts[key.row]
        n_cols = self.col_cuts[key.col + 1] - self.col_cuts[key.col]
        return -(-n_rows // self.tile_shape[0]), -(-n_cols // self.tile_shape[1])

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """Dtypes of rows, columns and values, and of weights if there are any."""
        dtypes = offset_dtype(self.tile_shape[0]), offset_dtype(self.tile_shape[1]), self.encoding.dtype
        return (*dtypes, np.dtype(np.float32)) if self.is_weighted else dtypes

    def no_ratings(self) -> Ratings:
        """Return an empty part of a block, of the types that all blocks of this layout have."""
        key = BlockKey(0, 0)
        data = np.zeros(padded(self._count_bytes(key)), dtype=np.uint8)
        return self.ratings(data, key, 0)[0]

    def ratings(self, data: npt.NDArray[np.uint8], key: BlockKey, begin: int) -> tuple[Ratings, int]:
        """Return the ratings of the part of a block that begins in its bytes there, and where it ends.

        They are views of `data`.
        """
        n_bytes = self._count_bytes(key)
        counts = data[begin : begin + n_bytes].view(np.uint32).reshape(-1, len(GROUP_SIZES))
        begin += padded(n_bytes)
        n, arrays = int((counts.sum(axis=0) * GROUP_SIZES).sum()), []
        for dtype, length in zip(self.dtypes, (int(counts.sum()), n, n, n), strict=False):
            arrays.append(np.frombuffer(data, dtype, length, begin))
            begin += padded(dtype.itemsize * length)
        rows, cols, values, *weights = arrays
        n_tile_cols = self.tiles(key)[1]
        return Ratings(counts, rows, cols, values, self.encoding, self.tile_shape, n_tile_cols, *weights), begin

    def _count_bytes(self, key: BlockKey) -> int:
        return math.prod(self.tiles(key)) * len(GROUP_SIZES) * np.dtype(np.uint32).itemsize


@dataclass(frozen=True, slots=True, repr=False)
class Blocks:
    """Ratings blocked into a grid on disk; what `block_ratings` returns and `fit` trains on.

    Attributes
    ----------
    folder : Folder
        Where they lie.
    layout : Layout
        Cut points, tile shape, table of ratings.
    entries : mapping of BlockKey to BlockEntry
        Every block of the grid.
    rating_range : tuple of float
        Smallest and largest rating, held out ones included.
    settings : dict
        How they were made: seed, holdout, duplicates; and the number of ratings that repeat a pair, and the standard
        deviation of the noise that these show, None if it is not known.
    checksums : mapping
        Of the tables of ids, by file.
    """

    folder: Folder
    layout: Layout
    entries: Mapping[BlockKey, BlockEntry]
    rating_range: tuple[float, float]
    settings: dict[str, Any]
    checksums: Mapping[str, int]

    def __repr__(self) -> str:
        what = f"{self.n_ratings:,} ratings of {self.n_items:,} items by {self.n_users:,} users"
        grid = f"{self.shape.rows} × {self.shape.cols} blocks"
        return f"<Blocks {self.path}: {what}, {self.n_holdout:,} held out, {grid}>"

    @property
    def path(self) -> str:
        """The folder or URL."""
        return str(self.folder)

    @property
    def shape(self) -> Shape:
        """Numbers of row blocks and column blocks."""
        return self.layout.shape

    @property
    def n_users(self) -> int:
        """Number of users."""
        return self.layout.row_cuts[-1]

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.layout.col_cuts[-1]

    @property
    def n_ratings(self) -> int:
        """Number of ratings to train on."""
        return sum(entry.n_train for entry in self.entries.values())

    @property
    def n_holdout(self) -> int:
        """Number of ratings held out."""
        return sum(entry.n_holdout for entry in self.entries.values())

    @property
    def moments(self) -> Moments:
        """Mean and spread of the ratings to train on, each as often as its weight says; and the sum of the weights."""
        return sum((self.entries[key].moments for key in sorted(self.entries)), Moments(0, 0.0, 0.0))

    @property
    def train_weight(self) -> float:
        """Sum of the weights of the ratings to train on: their number where they have none."""
        return sum(self.entries[key].moments.n for key in sorted(self.entries))

    @property
    def holdout_weight(self) -> float:
        """Sum of the weights of the ratings held out: their number where they have none."""
        return sum(self.entries[key].holdout_weight for key in sorted(self.entries))

    def identity(self) -> dict[str, Any]:
        """Return what tells these blocks from others, wherever they lie: by name, what people know first."""
        checksums = [self.entries[key].checksum for key in sorted(self.entries)]
        return {
            "users": self.n_users,
            "items": self.n_items,
            "ratings": self.n_ratings,
            "grid": list(self.shape),
            **{f"{name} of the blocks": value for name, value in self.settings.items()},
            "checksum of the ratings": zlib.crc32(np.array(checksums, dtype=np.uint32).tobytes()),
        }

    def read(self, key: BlockKey, part: Part) -> Ratings:
        """Return the ratings of one part of a block, read-only, from the cache of this process if they are there.

        Parameters
        ----------
        key : BlockKey
            Which block.
        part : {"train", "holdout"}
            Ratings to train on, or held out.

        Raises
        ------
        StoreError
            If the file is missing, too short or does not match its checksum.
        """
        parts: dict[Part, Ratings] = _cache.get(self._cache_key(key), lambda: self._load(key))
        return parts[part]

    def prefetch(self, key: BlockKey) -> None:
        """Read a block in the background, for who is about to ask for it."""
        _cache.prefetch(self._cache_key(key), lambda: self._load(key))

    def _cache_key(self, key: BlockKey) -> Hashable:
        return self.path, key, self.entries[key].checksum

    def _load(self, key: BlockKey) -> tuple[dict[Part, Ratings], int]:
        entry, name = self.entries[key], row_file(key.row)
        data = empty_bytes(entry.length)
        self.folder.read_into(name, entry.offset, data)
        data.setflags(write=False)
        if zlib.crc32(data.data) != entry.checksum:
            raise StoreError(
                f"{self.folder}: block ({key.row}, {key.col}) in {name} does not match its checksum; "
                "the file is damaged: restore it or block the ratings again"
            )
        parts: dict[Part, Ratings] = {}
        begin = 0
        for part in PARTS:
            parts[part], begin = self.layout.ratings(data, key, begin)
        return parts, len(data)

    def numbers(self, key: BlockKey, part: Part) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the row and column numbers of the ratings of one part of a block.

        Parameters
        ----------
        key : BlockKey
            Which block.
        part : {"train", "holdout"}
            Ratings to train on, or held out.

        Returns
        -------
        rows, cols : int64, shape (n,)
            In the order of the ratings that `read` returns.
        """
        rows, cols = self.read(key, part).places()
        return self.layout.row_cuts[key.row] + rows, self.layout.col_cuts[key.col] + cols

    def ids(self, side: Literal["user", "item"]) -> pa.Table:
        """Return raw ids (`id`) and numbers of ratings to train on (`count`) in the order of the row or column numbers.

        Several ratings of one pair count each.
        """
        name = f"{side}s.parquet"
        return self.folder.read_table(name, self.checksums[name])

    def id_type(self, side: Literal["user", "item"]) -> pa.DataType:
        """Return the type of raw ids: an integer type, or `large_string`."""
        with self.folder.parquet(f"{side}s.parquet") as table:
            return table.schema_arrow.field("id").type

    def counts(self, side: Literal["user", "item"]) -> npt.NDArray[np.int64]:
        """Return the numbers of ratings to train on, in the order of the row or column numbers."""
        name = f"{side}s.parquet"
        return np.asarray(self.folder.read_table(name, self.checksums[name], ["count"])["count"])


def save_manifest(
    folder: Folder,
    layout: Layout,
    entries: Mapping[BlockKey, BlockEntry],
    rating_range: tuple[float, float],
    settings: dict[str, Any],
) -> None:
    """Write the manifest of blocks: from then on the folder can be opened."""
    content = {
        **layout._asdict(),
        "encoding": layout.encoding._asdict(),
        "rating_range": rating_range,
        "settings": settings,
        "blocks": [[*key, entry] for key, entry in entries.items()],
    }
    folder.write_manifest(KIND, content)


def limit_cache(n_bytes: int = CACHE_BYTES) -> None:
    """Let the cache of this process hold so many bytes of blocks, by default as many as without a plan."""
    _cache.max_bytes = n_bytes


def forget(path: str) -> None:
    """Drop the ratings of the blocks at a path or URL from the cache of this process."""
    _cache.forget(lambda key: isinstance(key, tuple) and key[0] == path)


def padded(n_bytes: int) -> int:
    """Return the bytes that an array of `n_bytes` takes in a file: whole words, so that every array starts aligned."""
    return -(-n_bytes // 8) * 8


def row_file(row: int) -> str:
    """Return the name of the file with the blocks of a row block."""
    return f"rows/{row:05d}.bin"


def is_blocks(source: Any) -> bool:
    """Return whether something is blocks, or a path or URL where there are some."""
    if not isinstance(source, str | Path):
        return isinstance(source, Blocks)
    folder = Folder.at(source)
    return folder.is_a(KIND) or all(map(folder.has, (KIND.manifest, *KIND.tables)))  # its manifest is damaged


def open_blocks(path: Blocks | str | Path) -> Blocks:
    """Open the blocks in a folder or at an fsspec URL; blocks that are open already are returned as they are.

    Raises
    ------
    ParameterError
        If ratings are given that are no blocks.
    StoreError
        If there are none, or of another version, or the manifest is damaged.
    """
    if isinstance(path, Blocks):
        return path
    if not isinstance(path, str | Path):
        raise ParameterError(
            f"blocks, or a folder of them, are needed; this is of type {type(path).__name__}: distmf.block_ratings "
            "makes blocks of it"
        )
    folder = Folder.at(path)
    manifest = folder.read_manifest(KIND)
    layout = Layout(
        tuple(manifest["row_cuts"]),
        tuple(manifest["col_cuts"]),
        tuple(manifest["tile_shape"]),
        Encoding(tuple(manifest["encoding"]["table"]), manifest["encoding"]["low"], manifest["encoding"]["step"]),
        manifest["is_weighted"],
    )
    entries = {BlockKey(row, col): BlockEntry.of_json(entry) for row, col, entry in manifest["blocks"]}
    rating_range = tuple(manifest["rating_range"])
    return Blocks(folder, layout, entries, rating_range, manifest["settings"], manifest["checksums"])
