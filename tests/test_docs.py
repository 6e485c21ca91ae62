"""The documentation: what its pages say runs, its links lead somewhere, and the site builds without a warning."""

import contextlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import distmf
from distmf import blocks, checkpoint, halving, model, recommending
from tests.clusters import processes, start_scheduler, start_worker
from tests.documents import is_external, links, read_blocks, run_commands, run_python, runnable, write_inputs

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READ = [*PAGES, ROOT / "README.md"]  # whose code runs
DOCUMENTS = [*PAGES, *ROOT.glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
DATA = Path(os.environ["DISTMF_TEST_DATA"]) if "DISTMF_TEST_DATA" in os.environ else None


def with_blocks(*languages: str, needs_data: bool = False) -> list[Path]:
    """Return the pages with blocks of some languages; or those with blocks that need test data."""
    return [
        page
        for page in READ
        if any(
            block.language in languages and block.not_run is None and (block.needs or not needs_data)
            for block in read_blocks(page)
        )
    ]


@contextlib.contextmanager
def cluster_for(page: Path, folder: Path) -> Iterator[None]:
    """Run a scheduler with its file in the folder, and two workers, if the page speaks of one."""
    with processes() as started:
        if "scheduler.json" in page.read_text():
            start_scheduler(started, folder)
            for name in ("a", "b"):
                start_worker(started, folder, name)
        yield


@pytest.mark.parametrize("page", with_blocks("python", "pycon"), ids=lambda page: page.stem)
def test_python__of_each_page_runs(page: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    with cluster_for(page, tmp_path):
        run_python(runnable(read_blocks(page), None), tmp_path)


@pytest.mark.parametrize("page", with_blocks("sh"), ids=lambda page: page.stem)
def test_commands__of_each_page_run(page: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    with cluster_for(page, tmp_path):
        run_commands(runnable(read_blocks(page), None), tmp_path)


@pytest.mark.parametrize("page", with_blocks("python", "pycon", "sh", needs_data=True), ids=lambda page: page.stem)
def test_blocks__that_need_real_ratings_run(page: Path, tmp_path: Path) -> None:
    found = read_blocks(page)
    missing = {block.needs for block in found if block.needs and not (DATA and (DATA / block.needs).exists())}
    if missing:
        pytest.skip(f"no {', '.join(map(str, missing))}; set DISTMF_TEST_DATA to a folder with MovieLens as Parquet")
    write_inputs(tmp_path, DATA)
    run_python(runnable(found, DATA), tmp_path)
    run_commands([block for block in found if block.needs], tmp_path)


def test_blocks__that_are_never_run_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    code = [block for page in READ for block in read_blocks(page) if block.language in ("python", "pycon", "sh")]
    left_out = [block for block in code if block.not_run is not None]
    with capsys.disabled():
        sys.stdout.write(f"\n{len(left_out)} of {len(code)} blocks of code in docs/ and the README are not run:\n")
        sys.stdout.writelines(f"  {block}: {block.not_run}\n" for block in left_out)
    assert all(block.not_run for block in left_out)
    assert len(left_out) < len(code) / 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links__within_the_project_lead_to_files(document: Path) -> None:
    for link in links(document):
        if not is_external(link) and not link.startswith("#"):
            assert (document.parent / urlsplit(link).path).exists(), link


def test_links__to_elsewhere_are_well_formed(capsys: pytest.CaptureFixture[str]) -> None:
    found = sorted({link for page in PAGES for link in links(page) if is_external(link)})
    with capsys.disabled():
        sys.stdout.write("\n  ".join([f"\n{len(found)} links of docs/ lead elsewhere:", *found]) + "\n")
    assert found
    for link in found:
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(:\d+)?(/[^\s]*)?", link), link


def test_reference__has_every_public_name() -> None:
    entries = set(re.findall(r"^\.\. auto\w+:: (?:distmf\.)?(\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    functions = {name for name in distmf.__all__ if callable(getattr(distmf, name))}
    kinds = {
        f"errors.{name}"
        for name, value in vars(distmf.errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert functions | kinds | {"datasets.planted_ratings", "datasets.Planted"} <= entries


def test_file_formats__are_of_the_versions_that_are_written() -> None:
    said = dict(re.findall(r"^## (\w+), version (\d+)$", (ROOT / "docs/file-formats.md").read_text(), re.MULTILINE))
    kinds = blocks.KIND, checkpoint.KIND, halving.KIND, model.KIND, recommending.KIND
    assert said == {kind.name.removeprefix("distmf ").capitalize(): str(kind.version) for kind in kinds}


def test_site__is_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser", "numpydoc", "sphinx_click"):
        pytest.importorskip(package, reason=f"no {package}: pip install '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-d", "doctrees", "-b", "html"]
    done = subprocess.run([*command, ROOT / "docs", "html"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "html").glob("*.html")}
    assert {page.stem for page in PAGES} <= pages
    for page in (tmp_path / "html").glob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert loaded == [], f"{page.name} needs the network"
