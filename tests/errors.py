"""What users can do wrong -> what distmf says; all of it is a page of the documentation: `python -m tests.errors`.

Each case is a command as it is typed, or a few lines of Python, and how it ends: the exit code, or the kind of error.
All are run in one folder, which they leave as it is.
"""

import contextlib
import io
import re
import shlex
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import dask
import distributed  # noqa: F401 (its configuration has to be there before some of it is changed)
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

import distmf
from distmf import errors
from distmf.cli import main
from distmf.filesystem import one_line
from tests.documents import write_inputs

PAGE = Path(__file__).parents[1] / "docs/errors.md"
SOURCES = Path(distmf.__file__).parent

INTRODUCTION = """# Errors

What can go wrong, and what distmf says of it. The tests make this page: they do what is in the column on the left, and
compare what is said.

A command ends with the exit code 0 when it is done, with 1 and a line that begins with `distmf:` when something is
wrong with what is there, and with 2 and a line that begins with `Error:` when it was called the wrong way. There is no
traceback. In Python, every error derives from {py:exc}`distmf.errors.DistMFError` and from the built-in that one would
expect: `RatingsError`, `ParameterError` and `MemoryBudgetError` are also a `ValueError`, `StoreError` an `OSError`.

`…` stands for words of another library or of the system."""

OPTION = r"No such option '\1'. Did you mean '\2'?"  # as newer versions of click say it

PROBLEM, USAGE = 1, 2  # exit codes
RATINGS, PARAMETER, MEMORY = errors.RatingsError, errors.ParameterError, errors.MemoryBudgetError
STORE, NOT_FITTED, DIVERGED = errors.StoreError, errors.NotFittedError, errors.DivergedError

CASES: dict[str, dict[str, int | type[Exception]]] = {
    "Ratings": {
        "distmf block nowhere.parquet b": PROBLEM,
        "distmf block 'ratings/*.csv' b": PROBLEM,
        "distmf block folder b": PROBLEM,
        "distmf block no-bytes.parquet b": PROBLEM,
        "distmf block notes.parquet b": PROBLEM,
        "distmf block cut.parquet b": PROBLEM,
        "distmf block flipped.parquet b": PROBLEM,
        "distmf block no-rows.parquet b": PROBLEM,
        "distmf block ratings b --user usr_id": PROBLEM,
        "distmf block ratings b --user who": PROBLEM,
        "distmf block ratings b --weight wieght": PROBLEM,
        "distmf block ratings b --user item_id": PROBLEM,
        "distmf block twice.parquet b": PROBLEM,
        "distmf block two-users.parquet b": PROBLEM,
        "distmf block nulls.parquet b": PROBLEM,
        "distmf block weights.parquet b --weight w": PROBLEM,
        "distmf block real-ids.parquet b": PROBLEM,
        "distmf block words.parquet b": PROBLEM,
        "distmf block mixed b": PROBLEM,
        "distmf block words.csv b": PROBLEM,
        "distmf block later.csv b": PROBLEM,
        "distmf block missing.csv b": PROBLEM,
        "distmf block real-ids.csv b": PROBLEM,
        "distmf block ratings.csv b --user item_id": PROBLEM,
        "distmf.block_ratings(pa.table({'user_id': [1], 'item_id': [2], 'rating': [np.nan]}), 'b')": RATINGS,
        "distmf.block_ratings(pa.table({'user_id': [1], 'item_id': [2], 'rating': ['good']}), 'b')": RATINGS,
        "distmf block ragged.csv b": PROBLEM,
        "distmf block prose.csv b": PROBLEM,
        "distmf block pairs.csv b": PROBLEM,
        "distmf block names.csv b": PROBLEM,
        "distmf block utf-16.csv b": PROBLEM,
        "distmf block no-bytes.csv b": PROBLEM,
        "distmf block ratings.csv b --user usr_id": PROBLEM,
        "distmf block s4://bucket/ratings b": PROBLEM,
        "distmf block '~nobody-here/ratings' b": PROBLEM,
        "distmf block model b": PROBLEM,
        "distmf.block_ratings(None, 'b')": RATINGS,
        "distmf.block_ratings(3, 'b')": RATINGS,
        "distmf.block_ratings([[1, 2], [3, 4, 5]], 'b')": RATINGS,
        "distmf.block_ratings(['ratings/part-0.parquet', 'ratings/part-1.parquet'], 'b')": RATINGS,
        "distmf.block_ratings({'user_id': [1], 'item_id': [2], 'rating': [3.0]}, 'b')": RATINGS,
        "distmf.block_ratings(np.array([['a', 'b'], ['c', 'd']]), 'b')": RATINGS,
    },
    "A matrix": {
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.array([3.0, 1.0]))": RATINGS,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.full((2, 3), np.nan))": RATINGS,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.array([[1.0, np.inf], [2.0, 3.0]]))": RATINGS,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.eye(3), is_set=lambda matrix: matrix[0] > 0)": PARAMETER,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.eye(3), is_set=True)": PARAMETER,
        "mf = distmf.MatrixFactorization(2)\nmf.fit('ratings', is_set=distmf.non_negative)": PARAMETER,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.eye(3), holdout=0.1)": PARAMETER,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.zeros((3, 3)), [1, 2, 3])": RATINGS,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.zeros((3, 2), int), [1, 2])": RATINGS,
        "mf = distmf.MatrixFactorization(2)\nmf.fit('ratings', sample_weight=[1, 2])": PARAMETER,
        "mf = distmf.MatrixFactorization(2)\nmf.fit(np.ones((2, 2), int), [1, 2], rating='r')": PARAMETER,
        "mf = distmf.load('model')\nmf.predict(pa.table({'u': [1], 'i': [2], 't': [3]}))": RATINGS,
    },
    "Blocking": {
        "distmf block ratings": USAGE,
        "distmf.open_blocks(pa.table({'user_id': [7]}))": PARAMETER,
        "distmf block ratings b --holdot 0.1": USAGE,
        "distmf block ratings b --holdout 1": USAGE,
        "distmf block ratings b --holdout nan": USAGE,
        "distmf block ratings b --holdout 0.9999999": PROBLEM,
        "distmf block ratings b --grid 8": USAGE,
        "distmf block ratings b --grid 500x2": PROBLEM,
        "distmf block ratings b --duplicates drop": USAGE,
        "distmf block repeated.parquet b --duplicates error": PROBLEM,
        "distmf block ratings b --memory-per-task much": USAGE,
        "distmf block ratings b --memory-per-task 1KiB": PROBLEM,
        "distmf block ratings b --threads 1 --memory 1MiB": PROBLEM,
        "distmf block ratings b --seed -1": USAGE,
        "distmf block ratings folder": PROBLEM,
        "distmf block ratings model": PROBLEM,
        "distmf block ratings test.parquet": PROBLEM,
        "distmf block ratings test.parquet/b": PROBLEM,
        "distmf.block_ratings('ratings', 'b', usr='user_id')": PARAMETER,
        "distmf.block_ratings('ratings', 'b', holdout=1)": PARAMETER,
        "distmf.block_ratings('ratings', 'b', holdout='0.1')": PARAMETER,
        "distmf.block_ratings('ratings', 'b', duplicates='sum')": PARAMETER,
        "distmf.block_ratings('ratings', 'b', rank='64')": PARAMETER,
        "distmf.block_ratings('ratings', 'b', seed=-1)": PARAMETER,
        "distmf.block_ratings('ratings', 'b', grid=4)": PARAMETER,
        "distmf.block_ratings('ratings', 'b', grid=(0, 4))": PARAMETER,
        "distmf.block_ratings('ratings', 'b', memory_per_task='1 GX')": PARAMETER,
        "distmf.block_ratings('ratings', 'b', threads=0)": PARAMETER,
        "distmf.block_ratings('ratings', 'b', user=3)": PARAMETER,
    },
    "Training": {
        "distmf train model m": PROBLEM,
        "distmf train ratings m --rank 8:16": USAGE,
        "distmf train ratings m --n-factors 8": USAGE,
        "distmf train ratings ratings/m": PROBLEM,
        "mf = distmf.MatrixFactorization(n_factors=8)": PARAMETER,
        "distmf trian ratings m": USAGE,
        "distmf train ratings": USAGE,
        "distmf train ratings m --rnak 8": USAGE,
        "distmf train ratings m --rank 0": USAGE,
        "distmf train ratings m --loss hubr": USAGE,
        "distmf train ratings m --reg 1,2,3": USAGE,
        "distmf train ratings m --reg nan": USAGE,
        "distmf train ratings m --step-size fast": USAGE,
        "distmf train ratings m --bounds 5 1": USAGE,
        "distmf train ratings m --bounds 2 4": PROBLEM,
        "distmf train ratings m --loss logistic": PROBLEM,
        "distmf train ratings m --loss logistic --bounds 1 5": USAGE,
        "distmf train zeros.parquet m --loss poisson": PROBLEM,
        "distmf train negative.parquet m --loss poisson": PROBLEM,
        "distmf train ratings m --nonnegative --posterior-samples 4": USAGE,
        "distmf train weighted m --posterior-samples 4": USAGE,
        "distmf train blocks m --holdout 0.2": USAGE,
        "distmf train blocks m --threads 1 --memory 1MiB": PROBLEM,
        "distmf train blocks m --threads 0": USAGE,
        "distmf train folder m": PROBLEM,
        "distmf train blocks folder": PROBLEM,
        "distmf train blocks blocks/m": PROBLEM,
        "distmf train new m --start none": PROBLEM,
        "distmf train new m --start model --rank 8": USAGE,
        "distmf train strings.parquet m --start model": PROBLEM,
        "distmf train new m --start bounded": PROBLEM,
        "distmf train wild.parquet m --rank 4 --step-decay 1e30 --epochs 8": PROBLEM,
        "mf = distmf.MatrixFactorization(rnak=3)": PARAMETER,
        "mf = distmf.MatrixFactorization(colour=3)": PARAMETER,
        "mf = distmf.MatrixFactorization().set_params(rnak=3)": PARAMETER,
        "mf = distmf.MatrixFactorization(rank='64')\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(rank=1000)\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(epochs=1.5)\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(tol=-1)\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(reg='none')\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(bias_reg=(1, 2, 3))\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(step_size='fast')\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(loss='hubr')\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(bounds=5)\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(nonnegative='yes')\nmf.fit('blocks')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit(None)": RATINGS,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', holdout=0.1)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('ratings', holdut=0.1)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', epochs=5)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', resumee=True)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', start='model')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', threads=0)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', memory='much')": PARAMETER,
        "draws = distmf.load('draws')\ndraws.partial_fit('new')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fold_in('new')": NOT_FITTED,
        "mf = distmf.MatrixFactorization(4)\nmf.diagnose()": NOT_FITTED,
    },
    "On a cluster": {
        "distmf train blocks m --scheduler tcp://127.0.0.1:9": PROBLEM,
        "distmf train blocks m --scheduler notes.parquet": PROBLEM,
        "distmf train blocks m --workers 2 --threads 2": USAGE,
        "distmf train blocks m --workers 0": USAGE,
        "distmf train blocks m --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem": USAGE,
        "distmf train blocks m --workers 2 --tls-cert cert.pem": USAGE,
        "distmf train blocks m --workers 2 --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem": PROBLEM,
        "distmf train blocks m --workers 2 --tls-ca-file notes.parquet --tls-cert notes.parquet "
        "--tls-key notes.parquet": PROBLEM,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', client=object(), threads=2)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', client=object(), memory='1 GiB')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', client='tcp://127.0.0.1:9')": PARAMETER,
    },
    "Checkpoints and models": {
        "distmf train blocks m --resume": USAGE,
        "distmf train blocks m --checkpoint-every 2": USAGE,
        "distmf train blocks m --checkpoint ''": USAGE,
        "distmf train blocks m --checkpoint folder": PROBLEM,
        "distmf train blocks m --checkpoint m": PROBLEM,
        "distmf train blocks m --rank 4 --checkpoint checkpoint": PROBLEM,
        "distmf train blocks m --rank 8 --checkpoint checkpoint --resume": PROBLEM,
        "distmf train blocks-without-holdout m --rank 4 --epochs 2 --checkpoint checkpoint --resume": PROBLEM,
        "distmf train blocks m --rank 4 --epochs 2 --checkpoint damaged-checkpoint --resume": PROBLEM,
        "distmf train missing-blocks m --rank 4": PROBLEM,
        "distmf train damaged-blocks m --rank 4": PROBLEM,
        "distmf train cut-blocks m --rank 4": PROBLEM,
        "distmf train other-version m": PROBLEM,
        "distmf train bent-manifest m": PROBLEM,
        "distmf train no-json m": PROBLEM,
        "distmf inspect nowhere": PROBLEM,
        "distmf inspect folder": PROBLEM,
        "distmf inspect split": PROBLEM,
        "distmf inspect test.parquet": PROBLEM,
        "distmf evaluate nowhere test.parquet": PROBLEM,
        "distmf evaluate blocks test.parquet": PROBLEM,
        "distmf evaluate damaged-model test.parquet": PROBLEM,
        "distmf inspect damaged-run": PROBLEM,
        "distmf recommend damaged-users r": PROBLEM,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', resume=True)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', checkpoint='')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', checkpoint='c', checkpoint_every=0)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', checkpoint_every=2)": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.save('m')": NOT_FITTED,
        "mf = distmf.load('model')\nmf.save('folder')": STORE,
        "distmf.load(None)": STORE,
    },
    "Predicting and recommending": {
        "distmf predict model nowhere.parquet p.parquet": PROBLEM,
        "distmf predict model pairs.parquet folder": PROBLEM,
        "distmf predict model pairs.parquet p.tsv": USAGE,
        "distmf predict model pairs.parquet pairs.parquet": USAGE,
        "distmf predict model pairs.parquet test.parquet/p.parquet": PROBLEM,
        "distmf predict model users.parquet p.parquet": PROBLEM,
        "distmf predict model strings.parquet p.parquet": PROBLEM,
        "distmf predict model pairs.parquet p.parquet --std": PROBLEM,
        "distmf recommend model r -n 0": USAGE,
        "distmf recommend model r --users users.parquet --user who": PROBLEM,
        "distmf recommend model r --users strings.parquet": PROBLEM,
        "distmf recommend model r --exclude nowhere": PROBLEM,
        "distmf recommend model r --among nowhere.parquet": PROBLEM,
        "distmf recommend model r --among users.parquet": PROBLEM,
        "distmf recommend model r --among unknown.parquet": USAGE,
        "distmf recommend model r --bound optimist": USAGE,
        "distmf recommend model r --bound optimistic": PROBLEM,
        "distmf recommend model folder": PROBLEM,
        "distmf recommend model model/r": PROBLEM,
        "distmf recommend blocks r": PROBLEM,
        "distmf recommend model r --exclude model": PROBLEM,
        "distmf fold-in model strings.parquet m": PROBLEM,
        "distmf fold-in model blocks m --user user_id": USAGE,
        "distmf fold-in huber new m": USAGE,
        "mf = distmf.load('model')\nmf.predict([1, 2], [3])": RATINGS,
        "mf = distmf.load('model')\nmf.predict(['7'], ['3'])": RATINGS,
        "mf = distmf.load('model')\nmf.predict([7.0], [3.0])": RATINGS,
        "mf = distmf.load('model')\nmf.predict([7, None], [3, 3])": RATINGS,
        "mf = distmf.load('model')\nmf.predict(np.zeros((3, 3), int))": RATINGS,
        "mf = distmf.load('model')\nmf.predict(7, 3, return_std=True)": NOT_FITTED,
        "mf = distmf.load('model')\nmf.recommend(7, n=0)": PARAMETER,
        "mf = distmf.load('model')\nmf.recommend(7, top_k=3)": PARAMETER,
        "mf = distmf.load('model')\nmf.recommend(7, n='3')": PARAMETER,
        "mf = distmf.load('model')\nmf.recommend(7, bound='optimist')": PARAMETER,
        "mf = distmf.load('model')\nmf.recommend(7, among=[99999])": PARAMETER,
        "mf = distmf.load('model')\nmf.recommend('7')": RATINGS,
        "mf = distmf.load('model')\nmf.similar_items(99999)": RATINGS,
        "mf = distmf.load('model')\nmf.fold_in(np.ones((2, 2)), holdut=1)": PARAMETER,
        "distmf.recommend_all('model', 'r', n=0)": PARAMETER,
        "mf = distmf.load('model')\ndistmf.recommend_all(7, 'r')": PARAMETER,
        "mf = distmf.load('model')\nmf.recommend(7, exclude=pa.table({'user_id': [7]}))": RATINGS,
        "mf = distmf.load('model')\nmf.predict([2**70], [3])": RATINGS,
        "distmf.recommend_all('model', 'r', bound='best')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\nmf.predict(7, 3)": NOT_FITTED,
        "mf = distmf.MatrixFactorization(4)\nmf.user_factors_": NOT_FITTED,
    },
    "Evaluating": {
        "distmf evaluate model ratings --rating stars": PROBLEM,
        "distmf evaluate model blocks-without-holdout": PROBLEM,
        "distmf evaluate model blocks --user user_id": USAGE,
        "distmf evaluate model strings.parquet": PROBLEM,
        "distmf evaluate model ratings --relevant 4": USAGE,
        "mf = distmf.load('model')\ndistmf.evaluate_ranking(mf, 'ratings', relevant='4')": PARAMETER,
        "distmf evaluate model ratings --ranking 5 --relevant 9": PROBLEM,
        "distmf evaluate clicks-model test.parquet": PROBLEM,
        "mf = distmf.load('model')\ndistmf.evaluate_ranking(mf, 'ratings', 0)": PARAMETER,
        "distmf.evaluate('nowhere', 'test.parquet')": STORE,
        "distmf.evaluate(3, 'test.parquet')": PARAMETER,
        "mf = distmf.load('model')\ndistmf.evaluate(mf, 'test.parquet', rting='stars')": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\ndistmf.evaluate(mf, 'test.parquet')": NOT_FITTED,
    },
    "Planning": {
        "distmf plan --ratings 1e9 --users 1e6": USAGE,
        "distmf plan --ratings many --users 1e6 --items 1e5": USAGE,
        "distmf plan --ratings 1e9 --users 1e6 --items 1e5 --network 10Gb": USAGE,
        "distmf plan --ratings 1e9 --users 1e6 --items 10 --grid 16x16": USAGE,
        "distmf plan --ratings 1e11 --users 1e9 --items 1e7 --workers 2 --memory 1GiB --kernel-rate 5e7 "
        "--copy-rate 4GB/s --disk 1GB/s": PROBLEM,
    },
    "Tuning": {
        "distmf tune blocks-without-holdout": PROBLEM,
        "distmf tune blocks --holdout 0.1": USAGE,
        "distmf tune blocks --rank 8,x": USAGE,
        "distmf tune blocks --rank 8,": USAGE,
        "distmf tune blocks --checkpoint ''": USAGE,
        "distmf tune blocks --checkpoint folder": PROBLEM,
        "distmf tune blocks --rank 8 --reg auto --epochs 2 --checkpoint tuning": PROBLEM,
        "distmf.tune('blocks', ranks=[])": PARAMETER,
        "distmf.tune('blocks', ranks=8)": PARAMETER,
        "distmf.tune('blocks', ranks=['8'])": PARAMETER,
        "distmf.tune('blocks', target_cost=0.1)": PARAMETER,
        "distmf.tune('blocks', rank=8)": PARAMETER,
        "distmf.tune('ratings', holdut=0.1)": PARAMETER,
    },
    "Splitting": {
        "distmf split ratings s --by time": USAGE,
        "distmf split ratings s --by usr": USAGE,
        "distmf split ratings s --by last": PROBLEM,
        "distmf split ratings s --by last --time timestmp": PROBLEM,
        "distmf split ratings s --test-size 0": USAGE,
        "distmf split ratings s --test-size 2": USAGE,
        "distmf split one.parquet s --test-size 0.001": PROBLEM,
        "distmf split ratings folder": PROBLEM,
        "distmf split ratings ratings": PROBLEM,
        "distmf split ratings s --time timestamp": USAGE,
        "distmf.split('ratings', 's', by='day')": PARAMETER,
        "distmf.split('ratings', 's', by='user', test_sise=2)": PARAMETER,
        "distmf.split('ratings', 's', test_size=1.5)": PARAMETER,
        "distmf.split('ratings', 's', by='user', test_size='2')": PARAMETER,
    },
    "Exporting": {
        "distmf export nowhere v": PROBLEM,
        "distmf export model v --format nmupy": USAGE,
        "distmf export model folder": PROBLEM,
        "distmf export model model/v": PROBLEM,
        "distmf.export('model', 'v', 'csv')": PARAMETER,
        "mf = distmf.load('model')\ndistmf.export(7, 'v')": PARAMETER,
    },
    "Reporting": {
        "distmf report nowhere": PROBLEM,
        "distmf report model --item number": USAGE,
        "distmf report model --titles nowhere.csv": PROBLEM,
        "distmf report model --titles prose.csv": PROBLEM,
        "distmf report model --titles cut.parquet": PROBLEM,
        "distmf report model --titles cut-titles.csv": PROBLEM,
        "distmf report model --titles strange-titles.csv": PROBLEM,
        "distmf report model --titles names.csv --title how": PROBLEM,
        "distmf report model --titles names.csv --item who --title wht": PROBLEM,
        "distmf report model -o folder": PROBLEM,
        "mf = distmf.load('model')\ndistmf.report(mf, 'report.html', titles=['Alien'])": PARAMETER,
        "mf = distmf.MatrixFactorization(4)\ndistmf.report(mf, 'report.html')": NOT_FITTED,
        "distmf.report('nowhere', 'report.html')": STORE,
        "distmf.report(3, 'report.html')": PARAMETER,
        "distmf report model -o report.pdf": USAGE,
    },
    "Ratings made up": {
        "distmf.datasets.planted_ratings('p', n_ratings=0, n_users=3, n_items=3)": PARAMETER,
        "distmf.datasets.planted_ratings('p', n_ratings=10, n_users=3, n_items=3)": PARAMETER,
        "distmf.datasets.planted_ratings('s3://b/p', n_ratings=9, n_users=9, n_items=9)": STORE,
        "distmf.datasets.planted_ratings('folder', n_ratings=9, n_users=9, n_items=9)": STORE,
    },
}


class Found(NamedTuple):
    """How a case ended.

    Attributes
    ----------
    ended : int or type
        The exit code, or the kind of error.
    output : str
        All that was said.
    message : str
        The error alone, in which paths in the folder are relative.
    error : BaseException or None
        What was raised.
    """

    ended: int | type[BaseException] | None
    output: str
    message: str
    error: BaseException | None


def run(did: str, folder: Path) -> Found:
    """Do what a user did, in the working directory, which is `folder`."""
    if did.startswith("distmf "):
        with _raised() as raised, dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            done = CliRunner().invoke(main, shlex.split(did)[1:])
        lines = [line for line in done.stderr.splitlines() if line.startswith(("distmf: ", "Error: "))]
        error = raised[0] if raised else done.exception
        return Found(done.exit_code, done.output, _told("\n".join(lines), folder, error), error)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            exec(did, {"distmf": distmf, "np": np, "pa": pa})
        except Exception as err:
            return Found(type(err), said.getvalue(), _told(f"{type(err).__name__}: {err}", folder, err), err)
    return Found(None, said.getvalue(), "", None)


@contextlib.contextmanager
def _raised() -> Iterator[list[Exception]]:
    """Yield a list of what commands raise, before it is turned into an exit code."""
    raised: list[Exception] = []
    invoke = type(main).invoke

    def listen(group: Any, ctx: click.Context) -> Any:
        try:
            return invoke(group, ctx)
        except Exception as err:
            raised.append(err)
            raise

    with mock.patch.object(type(main), "invoke", listen):
        yield raised


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def places(error: BaseException | None) -> Iterator[tuple[str, int]]:
    """Yield the modules and lines that an error, and those that it came from, passed through."""
    for each in chain(error):
        for frame in traceback.extract_tb(each.__traceback__):
            if Path(frame.filename).parent == SOURCES and frame.lineno:
                yield Path(frame.filename).stem, frame.lineno


def _told(message: str, folder: Path, error: BaseException | None) -> str:
    """Return a message with relative paths; words of other libraries, which change with their versions, as dots."""
    message = message.replace(f"{folder}/", "")
    for each in chain(error):
        if not isinstance(each, errors.DistMFError | click.ClickException) and len(one_line(each)) > 10:
            message = message.replace(one_line(each), "…")
    return re.sub(r"No such option:? '?(-[\w-]+?)'?\.? Did you mean '?(-[\w-]+?)'?\?", OPTION, message)


def page() -> str:
    """Return the page of the documentation, by running all cases."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name).resolve()
        make_folder(folder)
        return written({did: run(did, folder) for cases in CASES.values() for did in cases})


def written(found: dict[str, Found]) -> str:
    """Return the page, given how each case ended."""
    lines = [INTRODUCTION]
    for group, cases in CASES.items():
        rows = [f"| {'<br>'.join(map(_code, did.splitlines()))} | {_code(found[did].message)} |" for did in cases]
        lines += ["", f"## {group}", "", "| What you did | What it says |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def make_folder(folder: Path) -> None:
    """Write what the cases are about: ratings, blocks, models and checkpoints, whole and damaged."""
    write_inputs(folder)
    _write_ratings(folder)
    _write_text(folder)
    _write_trained(folder)
    _damage(folder)


def _write_ratings(folder: Path) -> None:
    def write(name: str, **columns: Any) -> None:
        pq.write_table(pa.table(columns), folder / name)

    ids = {"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2]}
    write("nulls.parquet", user_id=[1, None, 2], item_id=[1, 2, 3], rating=[3.0, 4.0, float("nan")])
    write("weights.parquet", **ids, rating=[1.0, 2.0, 3.0, 4.0], w=[1.0, 0.0, 2.0, 1.0])
    write("real-ids.parquet", user_id=[1.0, 2.0], item_id=[1, 2], rating=[3.0, 4.0])
    write("words.parquet", user_id=[1, 2], item_id=[1, 2], rating=["good", "bad"])
    write("two-users.parquet", user=["a", "b"], userId=[1, 2], item_id=[1, 2], rating=[3.0, 4.0])
    write(
        "no-rows.parquet",
        user_id=pa.array([], pa.int64()),
        item_id=pa.array([], pa.int64()),
        rating=pa.array([], pa.float32()),
    )
    write("one.parquet", user_id=[1], item_id=[1], rating=[3.0])
    write("repeated.parquet", user_id=[1, 1, 2], item_id=[1, 1, 1], rating=[3.0, 4.0, 5.0])
    write("zeros.parquet", **ids, rating=[0.0] * 4)
    write("negative.parquet", **ids, rating=[-1.0, 2.0, 3.0, 4.0])
    write("strings.parquet", user_id=["a", "b"], item_id=["x", "y"], rating=[3.0, 4.0])
    write("unknown.parquet", item_id=[99_998, 99_999])
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.arange(4000), 40)
    write("wild.parquet", user_id=users, item_id=items, rating=rng.normal(size=4000))
    names = ["user_id", "item_id", "rating", "rating"]
    pq.write_table(pa.Table.from_arrays([pa.array([1, 2])] * 4, names=names), folder / "twice.parquet")
    (folder / "mixed").mkdir()
    write("mixed/part-0.parquet", user_id=[1], item_id=[1], rating=[3.0])
    write("mixed/part-1.parquet", user_id=["u1"], item_id=[1], rating=[3.0])
    (folder / "folder").mkdir()
    (folder / "folder/notes.md").write_text("Not ours.\n")
    (folder / "no-bytes.parquet").touch()
    (folder / "notes.parquet").write_text("user 1 liked item 2\n")
    whole = (folder / "ratings/part-0.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:5000])
    (folder / "flipped.parquet").write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])


def _write_text(folder: Path) -> None:
    rows = [f"{n % 9},{n // 9},{1 + n % 5}" for n in range(60)]
    head = "user_id,item_id,rating"
    texts = {
        "ratings.csv": [head, *rows],
        "words.csv": [head, *rows[:6], "4,5,good", *rows[6:]],
        "later.csv": [head, *rows * 4000, "4,5,good"],
        "missing.csv": [head, *rows[:6], "4,5,", *rows[6:]],
        "real-ids.csv": [head, "1.5,2,3"],
        "ragged.csv": [head, *rows[:6], "4,5", *rows[6:]],
        "prose.csv": ["What people thought of films"],
        "pairs.csv": ["user_id,item_id", "1,2"],
        "names.csv": ["who,what,how", "1,2,3"],
        "no-bytes.csv": [],
        "cut-titles.csv": ["item_id,title", "1,Alien", "2"],
        "strange-titles.csv": ["item_id,title", "tt0078748,Alien"],
    }
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / "utf-16.csv").write_text("\n".join([head, *rows]), encoding="utf-16")


def _write_trained(folder: Path) -> None:
    """Block and train; the working directory is the folder."""
    distmf.block_ratings("ratings", "blocks", holdout=0.1, grid=(2, 2))
    distmf.block_ratings("ratings", "blocks-without-holdout", grid=(1, 1))
    distmf.block_ratings("ratings", "weighted", grid=(1, 1), weight="w")
    for name, ratings, options in (
        ("model", "blocks", {}),
        ("draws", "blocks", {"posterior_samples": 1}),
        ("huber", "blocks", {"loss": "huber"}),
        ("bounded", "low.parquet", {"bounds": (1, 4)}),
        ("clicks-model", "clicks.parquet", {"loss": "logistic"}),
    ):
        if name == "bounded":
            table = pq.read_table("ratings")
            pq.write_table(table.filter(pa.compute.less(table["rating"], 4.5)), folder / "low.parquet")
        distmf.MatrixFactorization(4, epochs=2, **options).fit(ratings).save(folder / name)
    distmf.split("ratings", "split")
    distmf.MatrixFactorization(4, epochs=2).fit("blocks", checkpoint="checkpoint")
    distmf.tune("blocks", ranks=[4], regs=["auto"], epochs=[2], checkpoint="tuning")


def _damage(folder: Path) -> None:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def copy(what: str, name: str) -> Path:
        return Path(shutil.copytree(folder / what, folder / name))

    def largest(path: Path) -> Path:
        return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: (file.stat().st_size, file))

    largest(copy("blocks", "missing-blocks")).unlink()
    flip(largest(copy("blocks", "damaged-blocks")))
    path = largest(copy("blocks", "cut-blocks"))
    path.write_bytes(path.read_bytes()[:100])
    for name, old, new in ("other-version", '"version": ', '"version": 9'), ("bent-manifest", '"seed": ', '"seed": 1'):
        path = copy("blocks", name) / "manifest.json"
        path.write_text(path.read_text().replace(old, new, 1))
    (copy("blocks", "no-json") / "manifest.json").write_text("{")
    for path in copy("checkpoint", "damaged-checkpoint").rglob("*"):
        if path.is_file() and path.suffix not in (".json",):
            flip(path)
    flip(copy("model", "damaged-model") / "items.parquet")
    flip(copy("model", "damaged-users") / "users.parquet")
    (copy("model", "damaged-run") / "run.json").write_text("{")


if __name__ == "__main__":
    PAGE.write_text(page())
