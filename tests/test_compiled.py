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
print([adder(n)(1) for n in NUMBERS], sum(record.is_start for _, record in compilations.buffer))
"""


def run(code: str, cache: Path, numbers: tuple[int, ...] = (1, 2)) -> str:
    code = code.replace("NUMBERS", str(numbers))
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

matrix = np.random.default_rng(0).normal(size=(50, 40))
for rank in NUMBERS:
    model = distmf.MatrixFactorization(rank=rank, epochs=3).fit(matrix)
    print(hashlib.sha256(model.user_factors_.tobytes() + model.item_factors_.tobytes()).hexdigest())
"""


def test_compiled__gives_the_same_bits_where_code_of_several_processes_meets(tmp_path: Path) -> None:
    # Each process numbers its functions from 1, so the linker would take that of one rank for that of the other.
    parts = [run(TRAINING, tmp_path, (rank,)) for rank in (16, 32, 64)]
    assert len(set(parts)) == 3
    n_files = len(list((tmp_path / "distmf").iterdir()))
    assert n_files > 10
    assert run(TRAINING, tmp_path, (64, 32, 16)) == "".join(reversed(parts))
    assert len(list((tmp_path / "distmf").iterdir())) == n_files
