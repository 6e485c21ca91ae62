"""Reports: what stands in them, that nothing from outside does, and, in a browser, that they are drawn."""

import itertools
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import distmf
from distmf import Blocks, MatrixFactorization
from distmf.cli import main
from distmf.errors import DistMFError, NotFittedError, RatingsError, StoreError
from distmf.titles import read_titles
from tests.browser import CHROMIUM, opened
from tests.helpers import blocks_in, files, random_ratings, saved, write

pytest.importorskip("bokeh", reason="no bokeh: pip install '.[report]'")

from distmf import charts, maps, page

EVIL = "</script><script>alert(1)</script>"
TITLES = {n: f"Film {n}" for n in range(150)} | {0: EVIL}
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    return blocks_in(tmp_path_factory.mktemp("report"), 6000, 200, 150)


@pytest.fixture(scope="module")
def mf(blocks: Blocks) -> MatrixFactorization:
    return MatrixFactorization(4, epochs=8).fit(blocks)


def without_run(mf: MatrixFactorization) -> MatrixFactorization:
    other = MatrixFactorization(**mf.get_params())
    other._model = mf.model_._replace(run=None)
    return other


def html_of(mf: MatrixFactorization, folder: Path, titles: dict[Any, str] | None = None) -> str:
    distmf.report(mf, folder / "r.html", titles=titles)
    return (folder / "r.html").read_text()


def words_of(html: str) -> str:
    """Return the page without scripts and styles."""
    return re.sub(r"(?s)<(script|style)\b.*?</\1>", "", html)


def charts_in(html: str) -> dict[str, bool]:
    """Return whether each section of the page has a chart."""
    sections = re.findall(r'(?s)<section id="([\w-]+)"(.*?)</section>', html)
    return {name: "data-root-id" in section for name, section in sections}


def test_report__has_the_numbers_of_the_history(mf: MatrixFactorization, tmp_path: Path) -> None:
    words, history, run = words_of(html_of(mf, tmp_path)), mf.history_, mf.model_.run
    assert history.baselines is not None
    assert run is not None
    assert run.residuals is not None
    assert history.ratings_per_second is not None
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", words))
    assert shown == {
        "holdout RMSE": f"{history.holdout_error:.4f}",
        "train RMSE": f"{history.train_error:.4f}",
        "mean only": f"{history.baselines.mean_holdout:.4f}",
        "biases only": f"{history.baselines.bias_holdout:.4f}",
        "ratings": f"{run.blocks['ratings']:,}",
        "users": "200",
        "items": "150",
        "rank": "4",
        "training": f"{run.seconds:.3g} s",
        "speed": f"{history.ratings_per_second:,.0f}/s",
    }
    assert f"{run.residuals.rmse:.4f}" in words
    assert all(line in words for line in str(mf.diagnose()).splitlines())
    figure = charts.learning_curves(history).figure
    drawn = {
        tuple(source.data["error"])
        for source in figure.select({"name": None})
        if hasattr(source, "data") and "error" in source.data
    }
    assert tuple(epoch.train_error for epoch in history) in drawn
    assert tuple(epoch.holdout_error for epoch in history) in drawn


def test_report__refers_to_nothing_outside(mf: MatrixFactorization, tmp_path: Path) -> None:
    html = html_of(mf, tmp_path, TITLES)
    assert not re.search(r"<link|<iframe|<img|src\s*=|href\s*=|https?:|@import", words_of(html))
    assert not re.search(r"<script[^>]*src|<link", re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", html))
    assert "default-src 'none'" in html


def test_report__takes_what_users_write_as_text(tmp_path: Path) -> None:
    there = tmp_path / "<i>there"
    there.mkdir()
    path = html_of(MatrixFactorization(4, epochs=2).fit(blocks_in(there, 600, 50, 40)), tmp_path)
    assert "&lt;i&gt;there" in path
    assert "<i>there" not in path
    ratings = random_ratings(2000, 80, 40)
    items = [f"<b>{item}</b>" for item in ratings["item_id"].to_pylist()]
    mf = MatrixFactorization(4, epochs=2).fit(ratings.set_column(1, "item_id", pa.array(items)))
    html = html_of(mf, tmp_path, dict.fromkeys(items, EVIL))
    assert "alert(1)" in html
    assert EVIL not in html
    assert "<b>1</b>" not in html


KINDS: dict[str, dict[str, Any]] = {
    "posterior": {"posterior_samples": 2, "epochs": 4},
    "absolute": {"loss": "absolute"},
    "bounds": {"bounds": (0, 6)},
    "nonnegative": {"nonnegative": True, "reg": (0.1, 0.2)},
    "one epoch": {"epochs": 1},
    "early": {"epochs": 40, "reg": 0.0, "patience": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_report__is_of_every_kind_of_model(kind: str, blocks: Blocks, tmp_path: Path) -> None:
    mf = MatrixFactorization(**{"rank": 4, "epochs": 3, **KINDS[kind]}).fit(blocks)
    html = html_of(mf, tmp_path)
    assert f"{mf.history_.holdout_error:.4f}" in words_of(html)
    drawn = charts_in(html)
    assert len(drawn) == 9
    assert all(drawn.values())
    mf.save(tmp_path / "m")
    distmf.report(distmf.load(tmp_path / "m"), tmp_path / "loaded.html")
    again = (tmp_path / "loaded.html").read_text()
    assert charts_in(again) == drawn


def test_report__of_weighted_ratings_says_that_their_column_is_to_be_named(tmp_path: Path) -> None:
    ratings = random_ratings(500, 50, 20)
    weighted = ratings.append_column("w", pa.array(np.ones(500)))
    for table, options, is_said in ((ratings, {}, False), (weighted, {"weight": "w"}, True)):
        mf = MatrixFactorization(2, epochs=1).fit(table, **options)
        html = html_of(mf, tmp_path)
        for said in ("WEIGHT stands for the name of their column", "--weight WEIGHT", "weight=&#39;WEIGHT&#39;"):
            assert (said in html) == is_said


def test_report__says_what_is_not_there(mf: MatrixFactorization, tmp_path: Path) -> None:
    bare = html_of(without_run(mf), tmp_path)
    assert "no record of its training" in bare
    assert [name for name, is_drawn in charts_in(bare).items() if is_drawn] == [
        "learning-curves",
        "items",
        "step-sizes",
    ]
    run = mf.model_.run
    assert run is not None
    interrupted = without_run(mf)
    history = replace(mf.history_, train_error=None, holdout_error=None, baselines=None, stopped="interrupted")
    interrupted._model = mf.model_._replace(history=history, run=run._replace(residuals=None, visits=[]))
    html = html_of(interrupted, tmp_path)
    assert "training did not end" in html
    assert "There are no times of an epoch" in html
    assert charts_in(html)["learning-curves"]
    small = MatrixFactorization(1, epochs=3).fit(random_ratings(500, 50, 20), grid=(1, 1))
    html = html_of(small, tmp_path)
    assert "The model has rank 1" in html
    assert "There is no holdout" in html
    assert "The grid has one block, with 500 ratings." in html
    assert not charts_in(html)["items"]
    assert not charts_in(html)["grid"]
    two = MatrixFactorization(2, epochs=3).fit(np.array([[1.0, 2.0], [3.0, 3.0]]))
    assert "2 items make no map." in html_of(two, tmp_path)
    same = MatrixFactorization(2, epochs=3).fit(np.full((5, 4), 3.0))
    assert charts_in(html_of(same, tmp_path))["residuals"]


def test_report__of_a_model_that_went_on_says_so(mf: MatrixFactorization, tmp_path: Path) -> None:
    more = MatrixFactorization(4, epochs=2).fit(random_ratings(500, 210, 150, seed=1), start=mf)
    assert "of a model that training went on from" in html_of(more, tmp_path)
    assert "of a model that training went on from" not in html_of(mf, tmp_path)
    twice = pa.concat_tables([random_ratings(500, 50, 20)] * 2)
    merged = MatrixFactorization(4, epochs=2).fit(twice, duplicates="mean")
    assert "of a model that training went on from" not in html_of(merged, tmp_path)


def test_report__refuses(mf: MatrixFactorization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFittedError, match="has not been trained"):
        distmf.report(MatrixFactorization(), tmp_path / "r.html")
    with pytest.raises(StoreError, match="is a folder"):
        distmf.report(mf, tmp_path)
    (tmp_path / "r.html").write_text("before")
    monkeypatch.setattr("distmf.page.numbers_of", lambda mf: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distmf.report(mf, tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text() == "before"
    monkeypatch.delitem(sys.modules, "distmf.page")
    for name in [name for name in sys.modules if name.partition(".")[0] == "bokeh"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DistMFError, match=r"a report needs Bokeh: pip install 'distmf\[report\]'"):
        distmf.report(mf, tmp_path / "r.html")


def test_report__has_what_trains_the_same_model(tmp_path: Path) -> None:
    source = str(write(tmp_path / "r.parquet", random_ratings(3000, 100, 80)))
    options: dict[str, Any] = {"rank": 4, "epochs": 3, "reg": (0.1, 0.2), "seed": 3, "nonnegative": True}
    mf = MatrixFactorization(**options).fit(source, holdout=0.2, grid=(3, 2))
    expected = saved(mf, tmp_path)
    (_, python), (_, shell) = page.codes_of(distmf.load(tmp_path / "m"))
    here = str(tmp_path / "blocks")
    found: dict[str, Any] = {"RATINGS": source}
    exec(python.replace("'blocks'", repr(here)), found)
    (tmp_path / "python").mkdir()
    assert saved(found["mf"], tmp_path / "python") == expected
    places = {"RATINGS": source, "blocks": str(tmp_path / "b2"), "model": str(tmp_path / "m2")}
    for line in shell.splitlines():
        words = [places.get(word, word) for word in shlex.split(line)]
        assert words.pop(0) == "distmf"
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    assert files(tmp_path / "m2") == expected


def test_report__command(mf: MatrixFactorization, tmp_path: Path) -> None:
    mf.save(tmp_path / "m")
    (tmp_path / "t.csv").write_text("movieId,title\n3,Blow-Up\n4,\n999,Nobody\n")
    out = str(tmp_path / "r.html")
    words = ["report", str(tmp_path / "m"), "-o", out]
    done = CliRunner().invoke(main, [*words, "--titles", str(tmp_path / "t.csv"), "--json"])
    assert json.loads(done.stdout) == {"path": out, "n_titled": 1}
    assert "Blow-Up" in Path(out).read_text()
    assert f"the report is in {out}\n" == CliRunner().invoke(main, words).stdout
    assert CliRunner().invoke(main, [*words, "--title", "x"]).exit_code == 2
    none = CliRunner().invoke(main, ["report", str(tmp_path), "-o", out])
    assert none.exit_code == 1
    assert "no distmf model here" in none.stderr


def test_maps__stay_light(mf: MatrixFactorization, tmp_path: Path) -> None:
    run = mf.model_.run
    assert run is not None
    rng = np.random.default_rng(0)
    begins = np.sort(rng.random(256 * 256))
    visits = [
        {
            "subepoch": n // 256,
            "row": n % 256,
            "col": n // 256,
            "begin": b,
            "end": b + 1e-5,
            "process": "a",
            "thread": 1,
        }
        for n, b in enumerate((begins - begins[0]).tolist())
    ]
    large = MatrixFactorization(**mf.get_params())
    counts = rng.integers(0, 1000, (256, 256)).tolist()
    large._model = mf.model_._replace(run=run._replace(counts=counts, visits=visits))
    html = html_of(large, tmp_path)
    assert len(html) < len(html_of(mf, tmp_path)) + 1_000_000
    assert "the first 4,000 of 65,536 visits" in html


def test_lanes_of__never_overlap() -> None:
    rng = np.random.default_rng(0)
    begins = np.sort(rng.random(300)).tolist()
    visits = [
        {"process": f"host:{int(rng.integers(3))}", "begin": begin, "end": begin + 0.01 * float(rng.random())}
        for begin in begins
    ]
    lanes = maps.lanes_of(visits)
    assert {lane.split(",")[0] for lane in lanes} == {"worker 1", "worker 2", "worker 3"}
    for lane in set(lanes):
        mine = [visit for visit, other in zip(visits, lanes, strict=True) if other == lane]
        assert len({visit["process"] for visit in mine}) == 1
        assert all(a["end"] <= b["begin"] for a, b in itertools.pairwise(mine))
    at_once = max(
        sum(v["begin"] <= visit["begin"] < v["end"] and v["process"] == visit["process"] for v in visits)
        for visit in visits
    )
    assert max(int(lane.split()[-1]) for lane in lanes) == at_once


def test_plane_of__is_where_points_differ_most() -> None:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((50, 2)) * [3, 1]
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    xy, shares = maps.plane_of((flat @ basis[:2] + 7).astype(np.float32))
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > shares[1]
    distances = [np.linalg.norm(places[:, None] - places[None], axis=2) for places in (xy, flat)]
    assert distances[0] == pytest.approx(distances[1], abs=1e-4)
    mirrored, _ = maps.plane_of(-(flat @ basis[:2] + 7).astype(np.float32))
    assert np.abs(mirrored.max(axis=0)) == pytest.approx(np.abs(xy.max(axis=0)), abs=1e-4)


MOVIES = '1::Toy Story (1995)::Animation|Children\'s\n2::Léon: The "Professional" (1994)::Crime\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("movies.dat", MOVIES.encode("latin-1")),
        ("movies.dat", MOVIES.encode()),
        (
            "u.item",
            MOVIES.replace("|", " ")
            .replace("::", "|")
            .replace('"', '""')
            .replace("Léon", '"Léon')
            .replace(")|Crime", ')"|Crime')
            .encode("latin-1"),
        ),
        (
            "movies.csv",
            'movieId,title,genres\n1,Toy Story (1995),x\n2,"Léon: The ""Professional"" (1994)",y\n'.encode(),
        ),
        ("movies.tsv", 'name\tid\nToy Story (1995)\t1\n"Léon: The ""Professional"" (1994)"\t2\n'.encode("utf-8-sig")),
    ],
)
def test_read_titles__of_text(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    expected = {1: "Toy Story (1995)", 2: 'Léon: The "Professional" (1994)'}
    assert read_titles(tmp_path / name, pa.int32()) == expected
    assert read_titles(tmp_path / name, pa.string()) == {str(id_): title for id_, title in expected.items()}


def test_read_titles__of_parquet(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet", {"item_id": [1, 2], "title": ["a", None], "name": ["c", "d"], "film": ["e", "f"]}
    )
    with pytest.raises(RatingsError, match="the title may be in 'title' or 'name'; say in which by title="):
        read_titles(path, pa.int64())
    assert read_titles(path, pa.int64(), title="title") == {1: "a"}
    assert read_titles(path, pa.uint8(), item="item_id", title="film") == {1: "e", 2: "f"}
    with pytest.raises(RatingsError, match="say by --item which column has the items; there are 'item_id', "):
        read_titles(path, pa.int64(), item="x", title="film")
    with pytest.raises(RatingsError, match="there are 'item_id', 'title', 'name', 'film'; did you mean 'title'?"):
        read_titles(path, pa.int64(), title="titel")
    with pytest.raises(RatingsError, match="items that are no int32"):
        read_titles(path, pa.int32(), item="name", title="film")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(RatingsError, match="items and titles need a column each"):
        read_titles(tmp_path / "empty.csv", pa.int32())
    (tmp_path / "short.csv").write_text("1,a\n2\n")
    with pytest.raises(RatingsError, match="no title in the line that begins with '2'"):
        read_titles(tmp_path / "short.csv", pa.int32())


# Pixels in colour: axes and words are grey.
COLOURED = """canvases => canvases.map(canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
    let n = 0
    for (let i = 0; i < data.length; i += 4)
    {
        const [red, green, blue, alpha] = data.slice(i, i + 4)
        n += alpha > 60 && Math.max(red, green, blue) - Math.min(red, green, blue) > 25
    }
    return n
}).reduce((a, b) => Math.max(a, b), 0)"""


@in_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_report__is_drawn(width: int, mf: MatrixFactorization, tmp_path: Path) -> None:
    drawn = charts_in(html_of(mf, tmp_path, TITLES))
    with opened(tmp_path / "r.html", width) as (browser, problems):
        browser.screenshot(path=tmp_path / "r.png", full_page=True)
        for name in (name for name, is_drawn in drawn.items() if is_drawn):
            canvases = browser.locator(f"section#{name} canvas")
            assert canvases.evaluate_all(COLOURED) > 300, name
            box, section = canvases.first.bounding_box(), browser.locator(f"section#{name}").bounding_box()
            assert (
                section["x"] <= box["x"] < box["x"] + box["width"] <= section["x"] + section["width"] + 1 <= width + 1
            )
            assert box["width"] > 0.4 * min(width, 700)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        roots = browser.evaluate("Bokeh.documents[0].roots().length")
    assert roots == sum(drawn.values()) == 9
    assert problems == []
    assert (tmp_path / "r.png").stat().st_size > 50_000


# Where on the page the item with an id lies.
PLACE_OF = """id => {
    const figure = Bokeh.documents[0].roots().find(root => root.renderers.some(r => r.data_source.data.id))
    const view = Bokeh.index.get_by_id(figure.id)
    const data = figure.renderers.find(r => r.data_source.data.id).data_source.data
    const n = Array.from(data.id).indexOf(id)
    const box = view.el.getBoundingClientRect()
    return [box.x + view.frame.x_scale.compute(data.x[n]), box.y + view.frame.y_scale.compute(data.y[n])]
}"""


@in_chromium
def test_report__shows_titles_on_hover_as_text(mf: MatrixFactorization, tmp_path: Path) -> None:
    html_of(mf, tmp_path, dict.fromkeys(range(150), EVIL))
    with opened(tmp_path / "r.html", 1280, 5000) as (browser, problems):
        browser.mouse.move(*browser.evaluate(PLACE_OF, "0"))
        tooltip = browser.locator(".bk-tooltip-row-value").first
        tooltip.wait_for()
        assert EVIL in browser.locator(".bk-tooltip-row-value").all_inner_texts()
    assert problems == []


@in_chromium
def test_report__that_asks_the_network_would_be_seen(mf: MatrixFactorization, tmp_path: Path) -> None:
    html = html_of(mf, tmp_path)
    (tmp_path / "r.html").write_text(html.replace("<main>", '<main><img src="https://example.org/x.png">'))
    with opened(tmp_path / "r.html", 1280) as (_, problems):
        pass
    assert any("example.org" in problem for problem in problems)
