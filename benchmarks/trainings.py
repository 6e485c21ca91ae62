"""Trainings for benchmarks/quality.py: a split of ratings and settings → a trained model's error, and what it took.

A split is a folder with Parquet in `train` and `test`, whose ids are small integers. Knows nothing of how settings are
chosen.
"""

import importlib.util
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import distmf
from benchmarks.peer_libmf import has_avx
from benchmarks.peers import ATTEMPTS, FailedError, peer, say

COLUMNS = ["user_id", "item_id", "rating"]
PEERS = {"libmf": ["libmf"], "surprise": ["surprise"], "cmfrec": ["cmfrec", "threadpoolctl"]}  # the modules they need
Settings = dict[str, Any]


class Run(NamedTuple):
    """What a training took, and its error on the test part."""

    test_rmse: float
    seconds: float  # from Parquet to a model


def train_distmf(split: Path, settings: Settings, seed: int, threads: int) -> Run:
    """Block the training part, train on all of it, and test."""
    with tempfile.TemporaryDirectory(dir=split) as name:
        start = time.perf_counter()
        blocks = distmf.block_ratings(split / "train", Path(name) / "blocks", threads=threads)
        mf = distmf.MatrixFactorization(**settings, seed=seed).fit(blocks, threads=threads)
        seconds = time.perf_counter() - start
    return Run(distmf.evaluate(mf, split / "test")["rmse"], seconds)


def train_libmf(split: Path, settings: Settings, seed: int, threads: int) -> Run:
    """Train in a process of its own, and test."""
    train, test = pq.read_table(split / "train"), pq.read_table(split / "test")
    with tempfile.TemporaryDirectory(dir=split) as name:
        options = settings | {"data": str(split), "model": f"{name}/model", "threads": threads}
        seconds_allowed = 20 + settings["epochs"] * len(train) / 5e5  # many times what it takes
        output = until_it_ends([*map(str, peer("libmf", on_disk=False, center=False, **options))], seconds_allowed)
        P, Q = np.load(f"{name}/model-users.npy"), np.load(f"{name}/model-items.npy")
    saved = next(json.loads(line) for line in output.splitlines() if line.startswith("{"))
    users, items = test["user_id"].to_numpy(), test["item_id"].to_numpy()
    is_known = (users < len(P)) & (items < len(Q))
    predicted = np.full(len(test), np.nan)  # as the factors of what is unseen
    predicted[is_known] = np.einsum("nf,nf->n", P[users[is_known]], Q[items[is_known]])
    predicted[np.isnan(predicted)] = train["rating"].to_numpy().mean(dtype=np.float64)
    return Run(clipped_rmse(predicted, train, test), saved["seconds"])


def until_it_ends(command: list[str], seconds_allowed: float) -> str:
    """Return the output of LIBMF; its threads sometimes wait for each other for ever, and it is then run again."""
    for _ in range(ATTEMPTS):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds_allowed)
        except subprocess.TimeoutExpired:
            say(f"LIBMF was not done after {seconds_allowed:.0f} s")
        except subprocess.CalledProcessError as err:
            raise FailedError(f"ended with {err.returncode}: {err.stderr}") from err
        else:
            return done.stdout
    raise FailedError(f"was not done after {seconds_allowed:.0f} s, {ATTEMPTS} times")


def train_surprise(algorithm: str, split: Path, settings: Settings, seed: int) -> Run:
    """Train one of Surprise's algorithms, and test; it predicts one pair at a time."""
    import surprise  # noqa: PLC0415 (it may not be installed)

    start = time.perf_counter()
    train = pq.read_table(split / "train")
    ratings = [(*row, None) for row in zip(*(train[column].to_pylist() for column in COLUMNS), strict=True)]  # no times
    scale = pc.min_max(train["rating"]).as_py()
    reader = surprise.Reader(rating_scale=(scale["min"], scale["max"]))
    mf = getattr(surprise, algorithm)(
        n_factors=settings["rank"],
        reg_all=settings["reg"],
        lr_all=settings["step_size"],
        n_epochs=settings["epochs"],
        random_state=seed,
    )
    mf.fit(surprise.Dataset(reader).construct_trainset(ratings))
    seconds = time.perf_counter() - start
    test = pq.read_table(split / "test")
    pairs = zip(test["user_id"].to_pylist(), test["item_id"].to_pylist(), strict=True)
    return Run(clipped_rmse(np.array([mf.predict(*pair).est for pair in pairs]), train, test), seconds)


def train_cmfrec(split: Path, settings: Settings, seed: int, threads: int) -> Run:
    """Train cmfrec's model of explicit feedback, and test."""
    import cmfrec  # noqa: PLC0415 (it may not be installed)

    start = time.perf_counter()
    train = pq.read_table(split / "train")
    mf = cmfrec.CMF(
        k=settings["rank"],
        lambda_=[settings["bias_reg"]] * 2 + [settings["reg"]] * 4,  # of biases, factors, and attributes there are not
        scale_lam=True,
        niter=settings["epochs"],
        add_implicit_features=bool(settings["implicit"]),
        random_state=seed,
        nthreads=threads,
        verbose=False,
    )
    mf.fit(train.rename_columns(["UserId", "ItemId", "Rating"]).to_pandas())
    seconds = time.perf_counter() - start
    test = pq.read_table(split / "test")
    return Run(clipped_rmse(mf.predict(test["user_id"].to_numpy(), test["item_id"].to_numpy()), train, test), seconds)


def clipped_rmse(predicted: npt.NDArray[Any], train: pa.Table, test: pa.Table) -> float:
    """Return the error on the test part of predictions that are clipped to the range of the training part."""
    ratings = train["rating"].to_numpy()
    errors = np.clip(predicted.astype(np.float64), ratings.min(), ratings.max()) - test["rating"].to_numpy()
    return float(np.sqrt(np.mean(errors**2)))


def missing(program: str) -> str | None:
    """Return what is to be done before a peer can run, None if it can."""
    absent = [module for module in PEERS[program] if importlib.util.find_spec(module) is None]
    return f"{' and '.join(absent)} not installed, see --help" if absent else None


def versions(programs: list[str]) -> str:
    """Return the peers' versions, and how LIBMF was built."""
    packages = {"libmf": "libmf", "surprise": "scikit-surprise", "cmfrec": "cmfrec"}
    told = [f", {package} {version(package)}" for program, package in packages.items() if program in programs]
    built = [f", LIBMF {'with' if has_avx() else 'WITHOUT'} AVX" for _ in range("libmf" in programs)]
    return "".join(told + built)


Train = Callable[[Path, Settings, int, int], Run]  # of the folder of a split, settings, seed and threads
TRAIN: dict[str, Train] = {
    "distmf": train_distmf,
    "distmf-tuned": train_distmf,
    "distmf-posterior": train_distmf,
    "libmf": train_libmf,
    "surprise": lambda split, settings, seed, _: train_surprise("SVD", split, settings, seed),
    "svdpp": lambda split, settings, seed, _: train_surprise("SVDpp", split, settings, seed),
    "cmfrec": train_cmfrec,
}
