"""Every error that a user can cause: how it ends, what it says, and that the documentation says the same."""

import ast
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from distmf import block_ratings, blocking, cluster
from distmf.engine import Graph
from distmf.errors import ClusterError, DistMFError, GraphLostError, RatingsError, StoreError
from distmf.factors import Saved, read
from distmf.ratings import Columns, open_ratings
from distmf.reading import Reading
from distmf.store import Folder
from tests.errors import CASES, PAGE, SOURCES, Found, make_folder, places, run, written
from tests.helpers import write

ENDS = {did: ends for cases in CASES.values() for did, ends in cases.items()}

# Errors that no case can cause, and the tests that do.
ELSEWHERE = {
    "blocking: a matrix is trained on in threads of": "test_cluster.py::test_fit__takes_a_client_or_threads",
    "checkpoint: …; factors that processes share, or that do": (
        "test_cluster.py::test_fit__on_blocks_beside_which_nothing_can_be_written_says_what_to_give"
    ),
    "engines: client is closed; connect again, as by Client('tcp://host:8786')": (
        "test_cluster.py::test_fit__takes_a_client_or_threads"
    ),
    "cluster: distmf … must be installed on scheduler and": (
        "test_errors.py::test_cluster__of_another_version_is_refused"
    ),
    "cluster: the connection to the scheduler is lost, and": (
        "test_scheduler.py::test_scheduler__that_is_lost_loses_nothing"
    ),
    "cluster: … ran on … workers that died, last": (
        "test_cluster.py::test_fit__gives_up_on_a_block_that_kills_every_worker"
    ),
    "cluster: the cluster has lost or cancelled the tasks": "test_errors.py::test_cluster__that_lost_tasks_says_so",
    "cluster: no worker has joined the cluster of …": (
        "test_errors.py::test_cluster__without_workers_is_not_waited_for_for_ever"
    ),
    "cluster: there has been no worker for … s;": (
        "test_errors.py::test_cluster__without_workers_is_not_waited_for_for_ever"
    ),
    "cluster: worker … (…) is paused, its memory is": (
        "test_errors.py::test_cluster__whose_worker_is_paused_sends_tasks_again"
    ),
    "engines: not every worker shares the storage of this": (
        "test_scheduler.py::test_storage__that_a_worker_does_not_see_is_named"
    ),
    "factors: …: … does not match its checksum: the": "test_errors.py::test_factors__that_are_damaged_are_refused",
    "halving: all candidates diverge; look for ratings of very": (
        "test_tuning.py::test_tune__says_so_if_the_defaults_diverge_or_all"
    ),
    "html_report: a report needs Bokeh: pip install 'distmf[report]'": ("test_report.py::test_report__refuses"),
    "lock: …: somebody removed …, so another driver may": (
        "test_lock.py::test_check__finds_that_another_driver_took_over"
    ),
    "lock: …: another driver took over, as this one": "test_lock.py::test_check__finds_that_another_driver_took_over",
    "lock: … is in use: …; wait until it": (
        "test_lock.py::test_driver_lock__refuses_a_second_driver_until_the_first_has_ended"
    ),
    "memory: blocking into … × … blocks needs …": "test_memory.py::test_block__takes_the_amount_that_a_refusal_names",
    "names: the ratings changed while they were blocked: an": (
        "test_names.py::test_collect_names__refuses_ratings_that_changed"
    ),
    "names: two of the ids have the same 64-bit": "test_names.py::test_checked__finds_ids_that_were_taken_for_one",
    "ratings: …: the file is gone; were the ratings": "test_ratings.py::test_read_piece__says_when_a_file_is_gone",
    "scattering: the ratings changed while they were blocked: an": (
        "test_errors.py::test_block_ratings__refuses_ratings_that_changed_meanwhile"
    ),
    "sides: there are … ids that do not fit": (
        "test_folding.py::test_ids__that_do_not_fit_are_refused_before_training"
    ),
    "text: name": "test_sources.py::test_text__has_strings_where_an_id_is_no_integer",
    "frames: … cannot be read as a table of": (
        "test_sources.py::test_frames__of_pandas_that_are_no_ratings_are_refused"
    ),
    "store: …: the file name … leads out of": "test_store.py::test_folder__refuses_names_that_lead_out",
    "store: … is a whole bucket; choose a folder": (
        "test_s3.py::test_s3__names_a_bucket_that_is_not_there_before_the_work_and_makes_none"
    ),
    "trainer: workers have joined or left the cluster": (
        "test_cluster.py::test_fit__goes_on_from_the_last_state_when_a_worker_is_lost"
    ),
    "frames: the matrix has entries of type …; a": "test_sources.py::test_matrices__of_other_entries_are_refused",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Found]]:
    """Return how each case ended, all run in one folder."""
    folder = tmp_path_factory.mktemp("errors").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_folder(folder)
        before = sorted(folder.rglob("*"))
        ends = {}
        for did in ENDS:
            ends[did] = run(did, folder)
            assert sorted(folder.rglob("*")) == before, f"left behind, or removed: {did}"
        yield ends


@pytest.mark.parametrize("did", ENDS)
def test_error__ends_as_it_ought_to_and_is_told_in_a_line_or_two(did: str, found: dict[str, Found]) -> None:
    expected, (ended, output, message, error) = ENDS[did], found[did]
    assert ended == expected, output
    assert isinstance(error, DistMFError | click.ClickException | click.exceptions.Exit)
    assert "Traceback" not in output
    assert 1 <= len(message.splitlines()) <= 2
    assert not re.search(r"\b1 (ratings|users|items|epochs|blocks|threads|ids|nulls)\b", message)
    assert not re.search(r"\.tmp-|/tmp/|0x[0-9a-f]{6}|\bNoneType\b.*NoneType", message)


@pytest.mark.parametrize(
    ("did", "meant"),
    [
        ("distmf trian ratings m", "'train'"),
        ("distmf train ratings m --rnak 8", "'--rank'"),
        ("distmf train ratings m --loss hubr", "'huber'"),
        ("distmf split ratings s --by usr", "'user'"),
        ("distmf block ratings b --user usr_id", "--user user_id"),
        ("distmf.block_ratings('ratings', 'b', usr='user_id')", "'user'"),
        ("mf = distmf.MatrixFactorization(rnak=3)", "'rank'"),
        ("mf = distmf.MatrixFactorization(4)\nmf.fit('ratings', holdut=0.1)", "'holdout'"),
        ("mf = distmf.MatrixFactorization(4)\nmf.fit('blocks', resumee=True)", "'resume'"),
        ("distmf.tune('blocks', rank=8)", "'ranks'"),
        ("mf = distmf.MatrixFactorization(n_factors=8)", "'rank'"),
        ("mf = distmf.load('model')\nmf.recommend(7, top_k=3)", "'n'"),
        ("distmf train ratings m --n-factors 8", "'--rank'"),
        ("distmf split ratings s --by time", "'last'"),
    ],
)
def test_misspelling__suggests_the_right_one(did: str, meant: str, found: dict[str, Found]) -> None:
    assert re.search(rf"[Dd]id you mean .*{meant}", found[did].message)


def test_page__says_what_the_cases_say(found: dict[str, Found]) -> None:
    assert PAGE.read_text() == written(found), "write it again: python -m tests.errors"


def sites() -> dict[str, tuple[str, range]]:
    """Return where an error is raised for a user: by module and words, the module and its lines."""
    there = {}
    for path in sorted(SOURCES.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call) or not (node is not call or ast.unparse(call.func) == "self.fail"):
                continue
            if ast.unparse(call.func) not in ("KeyboardInterrupt", "CommClosedError"):
                there[f"{path.stem}: {words(call)}"] = path.stem, range(node.lineno, (node.end_lineno or 0) + 1)
    return there


def words(call: ast.Call) -> str:
    """Return the first words of the message of an error, as far as they stand there."""
    message = call.args[0]
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    return " ".join(text.split()[:8]) if text.strip("… ") else ast.unparse(message)


def test_sites__are_all_reached(found: dict[str, Found]) -> None:
    passed = {place for each in found.values() for place in places(each.error)}
    unreached = {name for name, (module, lines) in sites().items() if not any((module, n) in passed for n in lines)}
    assert unreached == set(ELSEWHERE)


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_elsewhere__names_tests_that_there_are(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"\ndef {name}(" in (Path(__file__).parent / file).read_text()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> cluster.ClusterEngine:
    """Return the engine of a cluster without workers, which is not there."""
    engine = object.__new__(cluster.ClusterEngine)
    scheduler = SimpleNamespace(identity=None)
    engine.client = SimpleNamespace(
        scheduler=scheduler, status="running", sync=lambda *_, **__: {"address": "tcp://host:8786", "workers": {}}
    )
    for name in ("NO_WORKERS_SECONDS", "PAUSED_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(cluster, name, -1.0)
    return engine


def test_cluster__without_workers_is_not_waited_for_for_ever(engine: cluster.ClusterEngine) -> None:
    with pytest.raises(ClusterError, match="no worker has joined .*; start some: dask worker tcp://host:8786"):
        engine._wait_for_workers()
    with pytest.raises(ClusterError, match="there has been no worker for .* s; start some"):
        cluster._Lookout(engine, Graph({}, []), None).look()


def test_cluster__whose_worker_is_paused_sends_tasks_again(engine: cluster.ClusterEngine) -> None:
    worker = {"tcp://w:1": {"name": "w", "status": "paused"}}
    engine.client.sync = lambda *_, **__: {"workers": worker}
    engine.client.processing = lambda workers: {"tcp://w:1": ["task"]}
    lookout = cluster._Lookout(engine, Graph({"task": ()}, []), None)
    lookout.seen_workers += 60
    with pytest.raises(GraphLostError, match=r"worker w \(tcp://w:1\) is paused, its memory is full"):
        lookout.look()


def test_cluster__that_lost_tasks_says_so(engine: cluster.ClusterEngine) -> None:
    with pytest.raises(GraphLostError, match="has lost or cancelled the tasks under way"), engine._connected():
        raise CancelledError


def test_cluster__of_another_version_is_refused(engine: cluster.ClusterEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.client.run_on_scheduler = lambda _: "0.0.1"
    monkeypatch.setattr(cluster.ClusterEngine, "everywhere", lambda *_: {"w": version("distmf")})
    with pytest.raises(ClusterError, match=r"must be installed on .*, but the scheduler: 0\.0\.1$"):
        engine._check_versions()


def test_factors__that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "c")
    folder.write("f", [bytes(40)])
    whole = Saved("f", 2, zlib.crc32(bytes(40)))
    assert not read(whole, folder, 4).biases.any()
    with pytest.raises(StoreError, match="f does not match its checksum: the file is damaged"):
        read(whole._replace(checksum=1), folder, 4)


def test_block_ratings__refuses_ratings_that_changed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (
        write(tmp_path / f"{n}.parquet", {"user_id": [1, n], "item_id": [1, 2], "rating": [1.0, 2.0]}) for n in (2, 3)
    )
    scatter = blocking.scatter_ratings

    def of_others(engine: Any, spans: Any, reading: Any, *others: Any) -> Any:
        return scatter(engine, [open_ratings(after, Columns())], Reading(), *others)

    monkeypatch.setattr(blocking, "scatter_ratings", of_others)
    with pytest.raises(RatingsError, match="changed while they were blocked: an id came up that was not counted"):
        block_ratings(before, tmp_path / "b")
    assert not (tmp_path / "b").exists()
