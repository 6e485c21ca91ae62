"""A saved model -> the best items of all its users, in partitions of Parquet, on any engine, in bounded memory.

best/
    part-00000.parquet  user_id, item_id, score, rank (from 1), best first: the users of one row group of users.parquet
    _distmf.json        what is recommended to whom; no reader of Parquet folders looks at it

Two stages, each of which goes on where it was killed. The first sorts what the users have rated by partition: each row
block of ratings leaves a file of them, a segment for each partition. The second takes one partition after the other.
"""

import functools
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.arguments import check_choice, check_whole, names_checked
from distmf.best import Rated
from distmf.blocking import blocks_to_exclude
from distmf.blocks import PARTS, Blocks
from distmf.choices import BOUNDS, Bound
from distmf.engine import Engine
from distmf.engines import check_storage, open_engine
from distmf.factorization import MatrixFactorization
from distmf.grid import BlockKey
from distmf.jobs import job_folder, run_stage
from distmf.loading import saved
from distmf.model import ITEMS, USERS, Catalogue, Model, check_users
from distmf.model import KIND as MODEL
from distmf.sides import Side, as_ids
from distmf.store import Folder, Kind, refuse_nested

KIND = Kind("distmf recommendations", 1, "_distmf.json", (), r"part-\d+\.parquet")
PLACES, RATED = "places", "rated"
PAIR = np.dtype([("user", np.uint32), ("item", np.uint32)])  # positions in the partition, and of the item

Numbers = npt.NDArray[np.int64]


class Work(NamedTuple):
    """What the tasks of both stages need to know.

    Attributes
    ----------
    model, folder : Folder
        Of the model; where the job writes.
    checksum : int
        Of the file of the items.
    begins : tuple of int
        Where the users of each partition begin, and in the end their number.
    n : int
        How many items.
    bound : str
        What they are ranked by.
    """

    model: Folder
    folder: Folder
    checksum: int
    begins: tuple[int, ...]
    n: int
    bound: Bound


@names_checked
def recommend_all(
    model: MatrixFactorization | str | Path,
    out: str | Path,
    n: int = 10,
    *,
    users: Any = None,
    exclude: Any = None,
    among: Any = None,
    without: Any = None,
    bound: Bound = "mean",
    client: Any = None,
    threads: int | None = None,
) -> int:
    """Write the best items of all users of a model, partition by partition.

    It takes no more memory than the items and, for each thread, one part of the users: those of one row group of the
    model's file. Killed and called again, it goes on with the partitions that are left.

    Parameters
    ----------
    model : str, Path or MatrixFactorization
        Folder or fsspec URL of a model, or a trained one, which is then saved beside `out` for the time being.
    out : str or Path
        Folder or fsspec URL to write Parquet to, with the columns `user_id`, `item_id`, `score` and `rank`, by
        ascending user and then from rank 1 on. Recommendations that are there are replaced.
    n : int
        How many items for each user.
    users : array-like, optional
        Ids of users, instead of all that were trained on. Those that were not get the items with the highest biases.
    exclude, among, without, bound
        As in `MatrixFactorization.recommend`.
    client, threads
        Where to run, as in `MatrixFactorization.fit`.

    Returns
    -------
    int
        Number of rows that were written.

    Raises
    ------
    ParameterError
        If there is no item to recommend, or `bound` is none of these.
    NotFittedError
        If a bound other than "mean" is asked of a model without draws from the posterior.
    StoreError
        If the model is missing or damaged, or there is something else at `out`.
    ClusterError
        If the cluster is lost.
    """
    check_whole("n", n)
    check_choice("bound", bound, BOUNDS)
    with saved(model, out) as place, blocks_to_exclude(exclude) as blocks:
        refuse_nested(Folder.at(out), place, *([] if blocks is None else [blocks.folder]))
        manifest = place.read_manifest(MODEL)
        checksums = manifest["checksums"]
        check_users(place, manifest)
        ids, counts, begins = _users(place)
        known, _ = _items(place, checksums[ITEMS])
        if BOUNDS[bound]:
            known.last_draws()  # an error now, not in a task
        items = known.items_among(among, without)
        wanted, unseen = _wanted(ids, counts, users)
        what = {
            "model": checksums,
            "n": n,
            "bound": bound,
            "exclude": None if blocks is None else blocks.identity(),
            "items": zlib.crc32(items.data),
            "users": None if users is None else [zlib.crc32(wanted.data), zlib.crc32(str(unseen).encode())],
        }
        with open_engine(client, threads) as engine, job_folder(out, KIND, what, (PLACES, RATED)) as folder:
            readable = {MODEL.manifest: place, **({} if blocks is None else {"manifest.json": blocks.folder})}
            check_storage(engine, folder, readable)
            work = Work(place, folder, checksums[ITEMS], begins, n, bound)
            folder.write(f"{PLACES}/items", items)
            folder.write(f"{PLACES}/wanted", wanted)
            offsets = [] if blocks is None else _sorted(engine, work, blocks, ids)
            calls: list[tuple[Any, ...]] = [(_recommend, work, part, offsets) for part in range(len(begins) - 1)]
            sizes = np.diff(begins).tolist()
            if len(unseen):
                calls.append((_recommend_unseen, work, len(begins) - 1, unseen))
                sizes.append(len(unseen))
            n_rows: int = sum(run_stage(engine, folder, "recommending", calls, sizes, what="users"))
            folder.write_manifest(KIND, {**what, "n_rows": n_rows})
            engine.everywhere(_items.cache_clear)
    return n_rows


def _users(place: Folder) -> tuple[pa.Array, Numbers, tuple[int, ...]]:
    """Return ids and counts of all users of a model, and where the row groups of their file begin."""
    parts = list(place.read_row_groups(USERS, ["id", "count"]))
    table = pa.concat_tables(parts)
    begins = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return table["id"].combine_chunks(), table["count"].to_numpy(), tuple(begins.tolist())


def _wanted(ids: pa.Array, counts: Numbers, users: Any) -> tuple[npt.NDArray[np.bool_], pa.Array]:
    """Return which users of the model are asked for, and the ids of others that are."""
    if users is None:
        return counts > 0, ids[:0]
    side = Side(ids, np.empty((0, 0), np.float32), np.empty(0, np.float32), counts)
    asked = as_ids(users, ids.type, "user").unique()
    places = side.positions(asked, "user")
    wanted = np.zeros(len(ids), dtype=np.bool_)
    wanted[places[places >= 0]] = True
    return wanted, asked.filter(pa.array(places < 0)).cast(ids.type)


@functools.lru_cache(maxsize=1)
def _items(place: Folder, checksum: int) -> tuple[Model, int]:
    """Return a model with its items only, which are of a file of that checksum, and its rank; kept by each process."""
    model, manifest = Model.load_items(place)
    return model, manifest["hyperparameters"]["rank"]


@functools.lru_cache(maxsize=1)
def _catalogue(work: Work) -> Catalogue:
    """Return the items that may be recommended; kept by each process."""
    among = np.frombuffer(work.folder.read(f"{PLACES}/items"), dtype=np.int64)
    return _items(work.model, work.checksum)[0].catalogue(among)


def _places_of(
    blocks: Blocks, ids: pa.Array, place: Folder, checksum: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the positions in the model of the users and of the items of blocks, -1 for those that it has not."""
    users = Side(ids, np.empty((0, 0), np.float32), np.empty(0, np.float32), np.ones(len(ids), dtype=np.int64))
    found: list[npt.NDArray[np.int32]] = []
    pairs: tuple[tuple[Side, Literal["user", "item"]], ...] = (
        (users, "user"),
        (_items(place, checksum)[0].items, "item"),
    )
    for side, name in pairs:
        found.append(side.map.numbers(as_ids(blocks.ids(name)["id"], side.ids.type, name)).astype(np.int32))
    return found[0], found[1]


def _sorted(engine: Engine, work: Work, blocks: Blocks, ids: pa.Array) -> list[list[int]]:
    """Have what users have rated sorted by partition; return for each row block what `_sort` does."""
    numbers = _places_of(blocks, ids, work.model, work.checksum)
    for name, array in zip(("of-users", "of-items"), numbers, strict=True):
        work.folder.write(f"{PLACES}/{name}", array)
    rows, cols = (range(n) for n in blocks.shape)
    sizes = [sum(blocks.entries[BlockKey(row, col)].n_train for col in cols) for row in rows]
    return run_stage(engine, work.folder, "sorting", [(_sort, work, blocks, row) for row in rows], sizes)


def _sort(work: Work, blocks: Blocks, row: int) -> list[int]:
    """Write what the users of a row block have rated, by partition; return where each partition begins in the file."""
    begin, end = blocks.layout.row_cuts[row : row + 2]
    of_users = _read_places(work, "of-users", begin, end)
    of_items = _read_places(work, "of-items", 0, blocks.n_items)
    pairs = []
    for col in range(blocks.shape.cols):
        for part in PARTS:
            rows, cols = blocks.numbers(BlockKey(row, col), part)
            users, items = of_users[rows - begin], of_items[cols]
            known = (users >= 0) & (items >= 0)
            pairs.append(np.rec.fromarrays([users[known], items[known]], dtype=PAIR))
    both = np.concatenate(pairs)
    both.sort(order=("user", "item"))
    offsets = np.searchsorted(both["user"], work.begins)
    work.folder.write(f"{RATED}/{row}", both)
    return [int(offset) for offset in offsets]


def _read_places(work: Work, name: str, begin: int, end: int) -> npt.NDArray[np.int32]:
    data = work.folder.read(f"{PLACES}/{name}", 4 * begin, 4 * (end - begin))
    return np.frombuffer(data, dtype=np.int32)


def _recommend(work: Work, part: int, offsets: list[list[int]]) -> int:
    """Write the best items of the users of a partition; return how many rows there are."""
    begin, end = work.begins[part : part + 2]
    wanted = np.flatnonzero(np.frombuffer(work.folder.read(f"{PLACES}/wanted", begin, end - begin), dtype=np.bool_))
    (model, rank), items = _items(work.model, work.checksum), _catalogue(work)
    with work.model.parquet(USERS) as parquet:
        table = parquet.read_row_group(part, use_threads=False)
    users = Side.from_table(table.take(pa.array(wanted)), rank)
    rated = _rated(work, part, offsets, wanted, items.among) if offsets else None
    return _write(work, part, model._replace(users=users), np.arange(len(wanted)), users.ids, rated, items)


def _recommend_unseen(work: Work, part: int, ids: pa.Array) -> int:
    """Write the best items of users that the model does not have."""
    (model, _), items = _items(work.model, work.checksum), _catalogue(work)
    return _write(work, part, model, np.full(len(ids), -1), ids, None, items)


def _rated(work: Work, part: int, offsets: list[list[int]], wanted: Numbers, among: Numbers) -> Rated:
    """Return what the wanted users of a partition have rated."""
    pairs = []
    for row, begins in enumerate(offsets):
        first, last = begins[part : part + 2]
        data = work.folder.read(f"{RATED}/{row}", PAIR.itemsize * first, PAIR.itemsize * (last - first))
        pairs.append(np.frombuffer(data, dtype=PAIR))
    both = np.concatenate(pairs)
    users, items = both["user"].astype(np.int64) - work.begins[part], both["item"].astype(np.int64)
    return Rated.among(users, items, wanted, among)


def _write(
    work: Work,
    part: int,
    model: Model,
    rows: Numbers,
    ids: pa.Array,
    rated: Rated | None,
    items: Catalogue,
) -> int:
    found = model.ranked(rows, work.n, rated, work.bound, items)
    schema = pa.schema(
        {"user_id": ids.type, "item_id": model.items.ids.type, "score": pa.float32(), "rank": pa.int32()}
    )
    table = found.table(ids, schema)
    with work.folder.create(f"part-{part:05d}.parquet") as file, pq.ParquetWriter(file, schema) as writer:
        writer.write_table(table)
    return len(table)
