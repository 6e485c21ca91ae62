"""Machine code that is kept: found by the next process, told apart, and never trusted further than it should be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from numba.core import event
from distmf.compiled import compiled

def adder(n):
    @compiled(n)
    def add(x):
        return x + n
    return add

compilations = event.RecordingListener()
event.register("numba:compile", compilations)
print([adder(n)(1) for n in (1, 2)], sum(record.is_start for _, record in compilations.buffer))
"""


def run(code: str, cache: Path) -> str:
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def test_compiled__is_not_compiled_again_by_the_next_process(tmp_path: Path) -> None:
    assert [run(CODE, tmp_path) for _ in range(2)] == ["[2, 3] 2\n", "[2, 3] 0\n"]
    files = list((tmp_path / "distmf").iterdir())
    assert [file.suffix for file in files] == [".code"] * 2
    assert (tmp_path / "distmf").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("keep", [0, 3, 2000])
def test_compiled__is_compiled_again_where_a_file_is_damaged(keep: int, tmp_path: Path) -> None:
    run(CODE, tmp_path)
    for file in (tmp_path / "distmf").iterdir():
        file.write_bytes(file.read_bytes()[:keep])
    assert [run(CODE, tmp_path) for _ in range(2)] == ["[2, 3] 2\n", "[2, 3] 0\n"]


def test_compiled__is_compiled_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert run(CODE, tmp_path / "file") == "[2, 3] 2\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
def test_compiled__runs_no_code_of_another_user(tmp_path: Path) -> None:
    run(CODE, tmp_path)
    for file in (tmp_path / "distmf").iterdir():
        os.chown(file, 1, 1)
    assert run(CODE, tmp_path) == "[2, 3] 2\n"


TRAINING = """
import hashlib
import numpy as np
import distmf

rng = np.random.default_rng(0)
model = distmf.MatrixFactorization(rank=20, epochs=3).fit(rng.normal(size=(50, 40)))
print(hashlib.sha256(model.user_factors_.tobytes() + model.item_factors_.tobytes()).hexdigest())
"""


def test_compiled__gives_the_same_bits_from_a_file(tmp_path: Path) -> None:
    first, second = (run(TRAINING, tmp_path) for _ in range(2))
    assert first == second
    assert len(list((tmp_path / "distmf").iterdir())) > 5
