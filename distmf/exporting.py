"""A saved model -> vectors whose inner product is the prediction, for indexes of nearest neighbours and other programs.

vectors/
    vectors.json                  what the vectors are of
    users.parquet, items.parquet  id, and vector (a list of `rank` + 2 floats); or, as NumPy has them:
    users.npy, items.npy          vectors: float32, shape (n, rank + 2)
    users_ids.npy, items_ids.npy  raw ids, shape (n,)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.arguments import check_choice
from distmf.choices import FORMATS, Format
from distmf.factorization import MatrixFactorization
from distmf.loading import saved
from distmf.model import Model, check_users
from distmf.sides import Side
from distmf.store import Folder, Kind, new_folder, refuse_nested

KIND = Kind("distmf vectors", 1, "vectors.json", (), r"(users|items)(\.parquet|(_ids)?\.npy)")


def export(model: MatrixFactorization | str | Path, out: str | Path, format: Format = "parquet") -> tuple[int, int]:  # noqa: A002
    """Write a vector for each user and each item of a model, whose inner product is the predicted rating.

    A user's is (p_u, b_u + μ, 1), an item's (q_i, 1, b_i). So an index that searches by inner product finds the items
    with the highest predictions; those who were not trained on have none. Predictions are not clipped; of a model with
    a sigmoid, they are its argument, by which the order is the same. One part of the users is in memory at a time.

    Parameters
    ----------
    model : str, Path or MatrixFactorization
        Folder or fsspec URL of a model, or a trained one, which is then saved beside `out` for the time being.
    out : str or Path
        Folder or fsspec URL to write to; vectors that are there are replaced.
    format : {"parquet", "numpy"}
        `users.parquet` and `items.parquet` with the columns `id` and `vector`; or `users.npy` and `items.npy`, float32
        of shape (n, rank + 2), and the ids beside them in `users_ids.npy` and `items_ids.npy`.

    Returns
    -------
    n_users, n_items : int
        How many of each.

    Raises
    ------
    ParameterError
        If there is no such format.
    StoreError
        If the model is missing or damaged, or there is something else at `out`.

    Examples
    --------
    Exact, and then approximate nearest neighbours, by faiss and by hnswlib::

        index = faiss.IndexFlatIP(items.shape[1]); index.add(items)  # items of items.npy, users of users.npy
        ratings, places = index.search(users[:100], 10)

        index = hnswlib.Index("ip", items.shape[1]); index.init_index(len(items)); index.add_items(items)
        index.set_ef(200)  # how much it searches: more finds more of the best
        places, distances = index.knn_query(users[:100], 10)  # ratings are 1 - distances
    """
    check_choice("format", format, FORMATS)
    with saved(model, out) as place:
        refuse_nested(Folder.at(out), place)
        known, manifest = Model.load_items(place)
        check_users(place, manifest)
        rank = known.items.factors.shape[1]
        with new_folder(out, KIND) as folder:
            n_users = _write(folder, "users", format, _Vectors(place, rank, 0, known.global_bias))
            n_items = _write(folder, "items", format, _Vectors(place, rank, 1, 0.0))
            about = {"bounds": known.normalisation.bounds, "n_users": n_users, "n_items": n_items}
            folder.write_manifest(KIND, {"model": manifest["checksums"], **about})
    return n_users, n_items


class _Vectors(NamedTuple):
    """Vectors of one side of a model: of two more factors, the one that is `own` is bias plus mean, the other is 1."""

    place: Folder
    rank: int
    own: int
    mean: float

    def parts(self, file: str) -> Iterator[tuple[pa.Array, npt.NDArray[np.float32]]]:
        """Yield ids and vectors of a row group at a time."""
        for table in self.place.read_row_groups(file, ["id", "bias", "factors", "count"]):
            side = Side.from_table(_trained(table), self.rank)
            vectors = np.ones((len(side.ids), self.rank + 2), dtype=np.float32)
            vectors[:, : self.rank] = side.factors
            vectors[:, self.rank + self.own] = side.biases + np.float32(self.mean)
            yield side.ids, vectors


def _write(folder: Folder, name: str, format: Format, vectors: _Vectors) -> int:  # noqa: A002
    """Write the vectors of users or items; return how many there are."""
    file, width = f"{name}.parquet", vectors.rank + 2
    tables = [_trained(table) for table in vectors.place.read_row_groups(file, ["id", "count"])]
    ids = pa.concat_tables(tables)["id"].combine_chunks()
    if format == "parquet":
        schema = pa.schema({"id": ids.type, "vector": pa.list_(pa.float32(), width)})
        folder.write_table(file, schema, (_batch(schema, *part) for part in vectors.parts(file)))
    else:
        with folder.create(f"{name}.npy") as out:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), width)}
            np.lib.format.write_array_header_1_0(out, header)
            for _, part in vectors.parts(file):
                out.write(part.data)
        with folder.create(f"{name}_ids.npy") as out:
            array = ids.to_numpy(zero_copy_only=False)
            np.save(out, array.astype("U") if array.dtype == object else array)  # objects would need pickle
    return len(ids)


def _trained(table: pa.Table) -> pa.Table:
    """Return the rows of those that were trained on."""
    return table.filter(pa.array(table["count"].to_numpy() > 0))


def _batch(schema: pa.Schema, ids: pa.Array, vectors: npt.NDArray[np.float32]) -> pa.RecordBatch:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.record_batch([ids, lists.cast(schema.field("vector").type)], schema=schema)
