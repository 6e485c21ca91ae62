"""A Markdown file -> the blocks of code in it; and those run as a reader would: in order, in one folder.

A comment right above a block, of HTML or of MyST, says what a test cannot give it:

    <!-- not run: it needs a cluster -->     % not run: it needs a cluster
    <!-- needs: ml-1m.parquet -->            run only where this file is among the test data
"""

import contextlib
import doctest
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from distmf.cli import main

COMMENT = re.compile(r"(?:<!--|%)\s*(not run|needs):\s*(.*?)\s*(?:-->)?")
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)|<(https?:[^>\s]+)>")


class Block(NamedTuple):
    """A fenced block of code.

    Attributes
    ----------
    path : Path
        The file that it is in.
    line : int
        Number of its first line of code.
    language : str
        As the fence says: "python", "pycon" (with prompts and output), "sh", ….
    code : str
        What stands in it.
    not_run : str or None
        Why it is never run.
    needs : str or None
        The file of test data without which it is not run.
    """

    path: Path
    line: int
    language: str
    code: str
    not_run: str | None
    needs: str | None

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def read_blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file, those without a language and directives of MyST left out."""
    found: list[Block] = []
    lines = path.read_text().splitlines()
    inside = False
    for number, line in enumerate(lines):
        if inside and line == "```":
            inside = False
        elif not inside and line.startswith("```"):
            inside, end = True, lines.index("```", number + 1)
            above = COMMENT.fullmatch(lines[number - 1]) if number else None
            marks = {} if above is None else {above[1].replace(" ", "_"): above[2]}
            code = "\n".join(lines[number + 1 : end]) + "\n"
            if re.fullmatch(r"```\w+", line):
                found.append(Block(path, number + 2, line[3:], code, marks.get("not_run"), marks.get("needs")))
    return found


def run_python(blocks: Iterable[Block], folder: Path) -> dict[str, Any]:
    """Run the blocks of Python in one namespace, which is returned, in a folder.

    What stands behind prompts is compared with what comes, where "..." stands for anything.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder), dask.config.set({"temporary-directory": str(folder)}):  # of a LocalCluster
        for block in blocks:
            if block.language == "python":
                at_its_line = "\n" * (block.line - 1) + block.code
                exec(compile(at_its_line, str(block.path), "exec"), names)
            elif block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(block.code, {}, str(block), str(block.path), block.line - 1)
                test.globs, said = names, []
                runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
                runner.run(test, out=said.append, clear_globs=False)
                assert not runner.failures, "".join(said)
    return names


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of distmf in a block of shell code, each as its words."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["distmf"]:
            others = [word for word in words if re.search(r"[|&;<>$`]", word)]
            assert not others, f"{block}: a shell would have to see to {others}; mark the block as not run"
            yield words


def run_commands(blocks: Iterable[Block], folder: Path) -> list[str]:
    """Run the commands of distmf in the blocks of shell code in a folder, and return what each printed."""
    found = []
    with contextlib.chdir(folder):
        for block in blocks:
            for words in commands(block) if block.language == "sh" else ():
                done = CliRunner().invoke(main, words[1:])
                assert done.exit_code == 0, f"{block}: {shlex.join(words)}\n{done.output}"
                found.append(done.stdout)
    return found


def runnable(blocks: Iterable[Block], data: Path | None) -> list[Block]:
    """Return the blocks that can be run with the test data in a folder, or without."""
    there = {None} if data is None else {None, *(path.name for path in data.iterdir())}
    return [block for block in blocks if block.not_run is None and block.needs in there]


def links(path: Path) -> list[str]:
    """Return where the links and pictures of a Markdown file lead, code left out."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [first or second for first, second in LINK.findall(re.sub(r"`[^`\n]*`", "", text))]


def is_external(link: str) -> bool:
    """Return whether a link leads out of the project."""
    return bool(urlsplit(link).scheme)


def write_inputs(folder: Path, data: Path | None = None) -> None:
    """Write small ratings under the names that documents use; and links to the test data in a folder."""
    rng = np.random.default_rng(0)
    n_users, n_items = 120, 40
    users, items = np.divmod(rng.permutation(n_users * n_items), n_items)
    signal = np.outer(np.sin(np.arange(n_users + 10)), np.cos(np.arange(n_items)))

    def table(rows: Any, cols: Any) -> pa.Table:
        noise = 0.3 * rng.standard_normal(len(rows))
        stars = np.clip(np.rint(3 + 1.5 * signal[rows, cols] + noise), 1, 5)
        weights = rng.uniform(0.5, 1.5, len(rows))
        return pa.table({"user_id": rows, "item_id": cols, "rating": stars.astype(np.float32), "w": weights})

    (folder / "ratings").mkdir()
    (folder / "new").mkdir()
    for n in range(2):
        pq.write_table(table(users[n:3000:2], items[n:3000:2]), folder / f"ratings/part-{n}.parquet")
    pq.write_table(table(users[3000:3500], items[3000:3500]), folder / "new/part-0.parquet")
    pq.write_table(table(users[3500:], items[3500:]), folder / "test.parquet")
    pq.write_table(table(users[3500:], items[3500:]).select(["user_id", "item_id"]), folder / "pairs.parquet")
    newcomers, of_items = np.divmod(np.arange(10 * n_items), n_items)
    pq.write_table(table(n_users + newcomers, of_items), folder / "new-users.parquet")
    clicks = table(users[:3000], items[:3000])
    is_liked = pa.array((clicks["rating"].to_numpy() > 3).astype(np.float32))
    pq.write_table(clicks.set_column(2, "rating", is_liked), folder / "clicks.parquet")
    pq.write_table(pa.table({"user_id": [7, 3, 11]}), folder / "users.parquet")
    timed = table(users[:3000], items[:3000]).append_column("timestamp", pa.array(rng.permutation(3000)))
    pq.write_table(timed, folder / "timed.parquet")
    if data is not None:
        for path in data.glob("*.parquet"):
            (folder / path.name).symlink_to(path.resolve())
