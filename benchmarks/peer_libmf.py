"""One training by LIBMF, for benchmarks/peers.py and quality.py: Parquet ratings → factors, then the error on others.

    python benchmarks/peer_libmf.py '{"data": …, "model": …, "on_disk": false, "rank": 64, …}'

It calls LIBMF's C functions in the library of the PyPI package `libmf`, whose own `fit` takes ids as
float32 and copies all ratings twice. Prints LIBMF's lines about the epochs, a line of JSON when the model is saved,
with the seconds from Parquet to factors, and one of the error.
"""

import contextlib
import ctypes
import io
import json
import math
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

NODE = np.dtype([("u", np.int32), ("v", np.int32), ("r", np.float32)])  # mf_node
N_BINS = 26  # the default of the C library, for
BLOCK_RATINGS = 1000  # or more in a block; in smaller blocks its threads soon wait for each other for ever


class Problem(ctypes.Structure):
    """mf_problem."""

    _fields_ = [("m", ctypes.c_int), ("n", ctypes.c_int), ("nnz", ctypes.c_longlong), ("R", ctypes.c_void_p)]


def main(
    data: str,
    model: str,
    on_disk: bool,
    rank: int,
    threads: int,
    epochs: int,
    reg: float,
    step_size: float,
    center: bool = True,
) -> None:
    """Train, save, and test; `center` takes the mean off the ratings, which is always done on disk."""
    os.environ["OMP_WAIT_POLICY"] = "passive"  # its OpenMP threads would spin beside those that train
    binding = import_binding()
    library = binding.mf
    for function in (library.mf_train, library.mf_train_on_disk):
        function.restype = ctypes.POINTER(binding.MFModel)
    library.mf_train.argtypes = [ctypes.POINTER(Problem), binding.MFParam]
    library.mf_train_on_disk.argtypes = [ctypes.c_char_p, binding.MFParam]
    library.calc_rmse.restype = ctypes.c_double
    paths = sorted(Path(data, "train").iterdir())
    n_ratings = sum(pq.read_metadata(path).num_rows for path in paths)
    parameters = binding.MFParam(
        fun=binding.P_L2_MFR,
        k=rank,
        nr_threads=threads,
        nr_bins=min(N_BINS, max(2 * threads + 1, math.isqrt(n_ratings // BLOCK_RATINGS))),
        nr_iters=epochs,
        lambda_p2=reg,
        lambda_q2=reg,
        eta=step_size,
        quiet=False,  # prints when an epoch has ended
        copy_data=False,
    )
    start = time.perf_counter()
    if on_disk:
        with Path(model).with_suffix(".txt").open("wb") as file:
            mean = write_text(paths, file)
        trained = library.mf_train_on_disk(file.name.encode(), parameters)
    else:
        nodes = read_nodes(paths, threads)
        mean = float(nodes["r"].mean(dtype=np.float64)) if center else 0.0
        nodes["r"] -= np.float32(mean)
        trained = library.mf_train(problem(nodes), parameters)
    seconds = time.perf_counter() - start
    found = trained.contents
    np.save(model + "-users.npy", np.ctypeslib.as_array(found.P, (found.m, found.k)))
    np.save(model + "-items.npy", np.ctypeslib.as_array(found.Q, (found.n, found.k)))
    print(json.dumps({"saved": model, "seconds": seconds}), flush=True)
    test = read_nodes(sorted(Path(data, "test").iterdir()), threads)
    test["r"] -= np.float32(mean)
    print(json.dumps({"test_rmse": library.calc_rmse(ctypes.byref(problem(test)), trained)}), flush=True)


def import_binding() -> Any:
    """Return the package's module, without what it prints and warns of when it is imported."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from libmf import mf  # noqa: PLC0415 (it may not be installed)
    return mf


def has_avx() -> bool:
    """Return whether the library was built with -DUSEAVX: it then adds neighbours in vectors of 256 bits (vhaddps).

    Compilers do not use this instruction of their own accord.
    """
    code = Path(import_binding().compiled_src).read_bytes()
    return sum(found[1] & 7 == 7 for found in re.findall(rb"\xc5.\x7c", code, re.DOTALL)) >= 10


def read_nodes(paths: list[Path], threads: int) -> npt.NDArray[Any]:
    """Return all ratings as LIBMF takes them."""
    ends = np.cumsum([pq.read_metadata(path).num_rows for path in paths])
    nodes = np.empty(ends[-1], NODE)

    def read(path: Path, end: int) -> None:
        table = pq.read_table(path, use_threads=False)
        for field, column in zip(NODE.names or (), ("user_id", "item_id", "rating"), strict=True):
            nodes[field][end - len(table) : end] = table[column].to_numpy()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, paths, ends))
    return nodes


def problem(nodes: npt.NDArray[Any]) -> Problem:
    """Return the ratings as a problem; they must live as long as it."""
    return Problem(int(nodes["u"].max()) + 1, int(nodes["v"].max()) + 1, len(nodes), nodes.ctypes.data)


def write_text(paths: list[Path], file: Any) -> float:
    """Write all ratings, less their mean, as the lines of text that LIBMF reads from disk; return the mean."""
    columns = (pq.read_table(path, columns=["rating"])["rating"] for path in paths)
    sums = [(pc.sum(column).as_py(), len(column)) for column in columns]
    mean = sum(total for total, _ in sums) / sum(n for _, n in sums)
    options = pa.csv.WriteOptions(include_header=False, delimiter=" ")
    for path in paths:
        table = pq.read_table(path)
        ratings = pc.subtract(table["rating"], pa.scalar(mean, pa.float32()))
        pa.csv.write_csv(table.set_column(2, "rating", ratings), file, options)
    return mean


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
