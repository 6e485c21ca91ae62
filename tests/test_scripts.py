"""The examples and the benchmarks run."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distmf.datasets import planted_ratings

ROOT = Path(__file__).parents[1]
PEERS = {"libmf": "LIBMF", "libmf-disk": "LIBMF on disk", "spark": "Spark ALS"}


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("hidden", [0, 2, 5])
def test_hidden_cells__shows_all_and_the_error_on_the_hidden_cells(hidden: int) -> None:
    output = run("examples/hidden_cells.py", "--hidden", str(hidden))
    for word in (
        "user factors",
        "item factors",
        "user biases",
        "item biases",
        "mean μ",
        "matrix",
        "prediction",
        "difference",
    ):
        assert word in output
    assert "the target cost is reached" in output
    assert f"on the {20 - hidden} set cells: 0.00" in output
    assert output.count("hidden cell (") == hidden


def test_benchmark_of_the_kernel__runs() -> None:
    output = run("benchmarks/kernel.py", "--toy")
    assert "copy bound" in output


def test_benchmark_of_the_plan__runs() -> None:
    output = run("benchmarks/plan.py", "--toy")
    assert output.count("| 4 × 4 |") == 3


def test_benchmark_of_the_scheduler__runs() -> None:
    output = run("benchmarks/scheduler.py", "--toy")
    assert "| 4 × 4 |" in output
    assert "tasks a block" in output


def test_benchmark_of_processes__runs() -> None:
    output = run(
        "benchmarks/cluster.py", "--ratings", "100000", "--grid", "4", "--rank", "8", "--epochs", "3", "--rounds", "1"
    )
    assert "| 2 worker processes with a checkpoint each epoch |" in output


def test_benchmark_of_scaling__runs(tmp_path: Path) -> None:
    output = run("benchmarks/scaling.py", "--ratings", "1e5", "2e5", "--rounds", "1", "--folder", str(tmp_path / "s"))
    assert "| 200,000 |" in output
    assert "memory, 2 threads" in output


@pytest.mark.parametrize(
    ("program", "module", "tool"),
    [("libmf", "libmf", None), ("libmf-disk", "libmf", None), ("spark", "pyspark", "java")],
)
def test_benchmark_beside_peers__runs(program: str, module: str, tool: str | None) -> None:
    if importlib.util.find_spec(module) is None or (tool and shutil.which(tool) is None):
        pytest.skip(f"{module} is not installed: benchmarks/peers.py --help says how" + f", with {tool}" * bool(tool))
    output = run("benchmarks/peers.py", "--toy", "--programs", "distmf", program)
    table = [line.split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert [line[0] for line in table[2:4]] == ["| distmf", f"| {PEERS[program]}"]
    assert ("Updates per second" in output) == (program == "libmf")


def test_benchmark_beside_peers__says_what_is_not_installed() -> None:
    hidden = (
        "import importlib.util, runpy, sys; importlib.util.find_spec = lambda name: None; sys.argv = sys.argv[1:]; "
    )
    hidden += "runpy.run_path(sys.argv[0], run_name='__main__')"
    output = run("-c", hidden, "benchmarks/peers.py", "--toy")
    assert "| LIBMF | not installed: pip install libmf" in output
    assert "| Spark ALS | not installed: pip install pyspark |" in output


def test_benchmark_of_steps__runs() -> None:
    rows = [line.split(" | ") for line in run("benchmarks/steps.py", "--toy").splitlines() if line.startswith("| ")]
    errors = [float(row[-1].rstrip(" |")) for row in rows[2:]]
    assert len(errors) == 9
    assert len(set(errors)) == 9  # each is a rule of its own
    assert all(0.7 < error < 1.5 for error in errors)


def test_benchmark_of_evaluating__runs() -> None:
    sizes = "--ratings", "5000", "--users", "200", "--items", "100", "--rank", "8", "--pairs", "300", "--rounds", "1"
    lines = run("benchmarks/evaluate.py", *sizes).splitlines()
    assert any(line.startswith("| evaluate, 1 thread | 5,000 | ") for line in lines)
    assert any(line.startswith("| predict | 300 | ") for line in lines)


def test_benchmark_of_recommending__runs() -> None:
    sizes = "--users", "500", "--items", "300", "--rank", "8", "--rounds", "1"
    output = run("benchmarks/recommend.py", *sizes)
    assert "| 10 of 300 items, rank 8," in output
    assert "\n| distmf | " in output
    if importlib.util.find_spec("implicit") is None:
        assert "implicit is left out: pip install implicit" in output
    else:
        assert "100.00 % of the items are the same" in output
    assert "5,000 rows: " in run("benchmarks/recommend.py", *sizes, "--command")


def test_benchmark_of_errors__runs_without_peers_and_says_what_is_not_installed(tmp_path: Path) -> None:
    planted_ratings(tmp_path / "made", 10_000, 300, 200)
    hidden = "import importlib.util, runpy, sys; find_spec = importlib.util.find_spec; sys.argv = sys.argv[1:]; "
    hidden += "importlib.util.find_spec = lambda name, *others: (\n"
    hidden += "    None if name in ('libmf', 'surprise', 'cmfrec') else find_spec(name, *others))\n"
    hidden += "runpy.run_path(sys.argv[0], run_name='__main__')"
    output = run("-c", hidden, "benchmarks/quality.py", "--toy", "--data", str(tmp_path / "made"), "--folds", "2")
    assert "|  | made | seconds | generated, RMSE / noise | seconds |" in output
    rows = [line.split(" | ")[0] for line in output.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| distmf, defaults", "| distmf, tuned", "| distmf, posterior_samples=10"]
    assert "- made: 10,000 ratings, 2 folds\n  - distmf, tuned: rank 64" in output
    assert "- LIBMF is left out: libmf not installed" in output
    assert "- Surprise SVD is left out: surprise not installed" in output
    assert "- cmfrec is left out: cmfrec" in output


@pytest.mark.parametrize(
    ("peer", "modules", "names"),
    [
        ("libmf", ["libmf"], ["LIBMF"]),
        ("surprise", ["surprise"], ["Surprise SVD", "Surprise SVD++"]),
        ("cmfrec", ["cmfrec", "threadpoolctl"], ["cmfrec"]),
    ],
)
def test_benchmark_of_errors__runs_beside_peers(peer: str, modules: list[str], names: list[str]) -> None:
    if any(importlib.util.find_spec(module) is None for module in modules):
        pytest.skip(f"{' or '.join(modules)} is not installed: benchmarks/quality.py --help says how")
    output = run("benchmarks/quality.py", "--toy", "--peers", peer, "--svdpp")
    assert "left out" not in output
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1] for line in output.splitlines() if line.startswith("| ")}
    assert all(1 < float(cells[name]) < 1.6 for name in names)
