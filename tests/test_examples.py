"""The examples run as a reader would run them, on small data, and do what they say."""

import functools
import http.server
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import distmf
from tests.helpers import files, random_ratings, write

EXAMPLES = Path(__file__).parents[1] / "examples"
TITLES = "Alien (1979)", "Amélie (2001)", "Monsters, Inc. (2001)"


def run(name: str, *arguments: object, folder: Path, fails: bool = False) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def titles(n_items: int) -> list[str]:
    return [TITLES[item] if item < len(TITLES) else f"Film {item} (2000)" for item in range(n_items)]


@pytest.fixture(scope="module")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two sets in the formats of GroupLens: text with `::` in Latin-1, and CSV in UTF-8; one also as a .zip."""
    folder, n_items = tmp_path_factory.mktemp("movielens"), 60
    rows = list(zip(*random_ratings(3000, 90, n_items).to_pydict().values(), strict=True))
    (folder / "old").mkdir()
    lines = [f"{user + 1}::{item + 1}::{rating:.0f}::{n}" for n, (user, item, rating) in enumerate(rows)]
    (folder / "old/ratings.dat").write_text("\n".join(lines) + "\n")
    films = [f"{item + 1}::{title}::Drama|Comedy" for item, title in enumerate(titles(n_items))]
    (folder / "old/movies.dat").write_text("\n".join(films) + "\n", encoding="latin-1")
    (folder / "new").mkdir()
    lines = [f"{user + 1},{item + 1},{rating:.1f},{n}" for n, (user, item, rating) in enumerate(rows)]
    (folder / "new/ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines]) + "\n")
    films = [f'{item + 1},"{title}",Drama' for item, title in enumerate(titles(n_items))]
    (folder / "new/movies.csv").write_text("\n".join(["movieId,title,genres", *films]) + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / "small.zip", "w") as archive:
        for name in ("ratings.csv", "movies.csv"):
            archive.write(folder / "new" / name, f"small/{name}")
    return folder


@pytest.fixture
def server(movielens: Path) -> Iterator[str]:
    """Serve the sets as GroupLens does, on loopback."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(movielens))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def check_movielens(output: str) -> None:
    assert "stopped after " in output
    assert re.search(r"On (29|30)\d ratings that it has not seen: RMSE \d\.", output)
    assert "For user " in output
    recommended = output[output.index("For user") : output.index("Like Amélie (2001):")].splitlines()[1:11]
    known = set(titles(60))
    assert {line[8:] for line in recommended} <= known
    assert sum(line.split("  ", 2)[2] in known for line in output.splitlines() if line.startswith("  ")) == 20


@pytest.mark.parametrize("path", ["old", "new", "small.zip"])
def test_movielens__trains_and_recommends_titles(path: str, movielens: Path, tmp_path: Path) -> None:
    output = run("movielens.py", movielens / path, "--rank", 8, "--like", "amélie", folder=tmp_path)
    check_movielens(output)


def test_movielens__downloads(server: str, tmp_path: Path) -> None:
    output = run("movielens.py", "--url", server, "--set", "small", "--rank", 8, "--like", "amélie", folder=tmp_path)
    assert output.startswith(f"downloading {server}/small.zip\n")
    check_movielens(output)
    said = run("movielens.py", "--url", server, "--set", "none", folder=tmp_path, fails=True)
    assert f"{server}/none.zip cannot be downloaded: HTTP Error 404" in said
    assert "give its path" in said
    assert "no ratings.csv or ratings.dat" in run("movielens.py", tmp_path, folder=tmp_path, fails=True)


def test_larger_than_memory__stays_within_it(tmp_path: Path) -> None:
    output = run("larger_than_memory.py", "--ratings", "2e6", "--memory", "300MiB", "--rank", 16, folder=tmp_path)
    said = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert said["ratings"] == "2,000,000, as a data frame 45.8 MiB"
    peak, limit = (float(part.split()[0]) for part in said["memory"].split(", of "))
    assert 100 < peak <= limit == 300
    rmse, noise = (float(word) for word in said["holdout"].replace(";", "").split() if word.startswith("0."))
    assert noise == 0.7
    assert noise < rmse < 1.5 * noise


@pytest.mark.parametrize("n", [1000, 30_000])
def test_larger_than_memory__makes_few_ratings_as_well(n: int, tmp_path: Path) -> None:
    assert f"ratings   {n:,}," in run("larger_than_memory.py", "--ratings", n, "--epochs", 1, folder=tmp_path)


def test_cluster_job__does_it_all_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "r.parquet", random_ratings(6000, 200, 100))
    options = ["r.parquet", "out", "--rank", 8, "--epochs", 4]
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))
    output = run("cluster_job.py", *options, folder=tmp_path)
    assert "stopped after 4 epochs" in output
    assert "2,000 recommendations are in out/best" in output
    assert len(pq.read_table(tmp_path / "out/best")) == 2000
    model, before = files(tmp_path / "out/model"), distmf.load(tmp_path / "out/model")
    assert before.history_.holdout_rmse is not None
    assert run("cluster_job.py", *options, folder=tmp_path) == output
    assert files(tmp_path / "out/model") == model
    longer = run("cluster_job.py", *options[:-1], 6, folder=tmp_path)
    assert "stopped after 6 epochs" in longer


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("hidden_cells.py --rank 0", "rank is 0; it is a whole number"),
        ("movielens.py nowhere", "there is no ratings.csv or ratings.dat in it"),
        ("larger_than_memory.py --ratings 5", "--ratings is 5; at least 1000 are needed"),
        ("larger_than_memory.py --ratings 2000 --memory 10MiB", "needs at least"),
        ("larger_than_memory.py --folder nowhere", "No such file or directory"),
        ("cluster_job.py nowhere out --workers 0", "--workers is 0"),
        ("cluster_job.py r.parquet out --scheduler tcp://127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_example__with_wrong_arguments_says_what_is_wrong(command: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "r.parquet", random_ratings(100, 10, 20))
    name, *arguments = command.split()
    said = run(name, *arguments, folder=tmp_path, fails=True)
    assert message in said
    assert "Traceback" not in said


def test_quickstart__runs_and_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ipykernel", "nbclient", "pandas", "sklearn"):
        pytest.importorskip(package, reason=f"no {package}: pip install '.[frames]'")
    import nbclient
    import nbformat

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    kept = [bool(shown(cell)) for cell in notebook.cells if cell.cell_type == "code"]
    (tmp_path / "work").mkdir()
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    ran = {cell.source: shown(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert [bool(output) for output in ran.values()] == kept

    def output_of(code: str) -> str:
        return next(output for source, output in ran.items() if code in source)

    assert "<polyline" in output_of("distmf.watch()")
    assert output_of("similar_items").count("animation") == 2 * 5  # as HTML and as text
    assert "± " in output_of("return_std=True")
    assert output_of("fold_in").count("crime") == 3
    diagnosis = output_of("diagnose")
    biases, factors = re.search(r"(\d\.\d+) with biases only, and (\d\.\d+) with", diagnosis).groups()  # type: ignore[union-attr]
    assert float(factors) < 0.8 * float(biases)


def shown(cell: Any) -> str:
    """Return all that a cell has put out, as text and as HTML."""
    parts = [output.get("data", {"text/plain": output.get("text", "")}) for output in cell.outputs]
    return "".join(str(part.get("text/html", "")) + str(part.get("text/plain", "")) for part in parts)
