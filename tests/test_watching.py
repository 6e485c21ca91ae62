"""The live view: on a real terminal, as HTML for notebooks, and that there is none anywhere else."""

import fcntl
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest

import distmf
from distmf import MatrixFactorization, watch
from distmf.progress import Dashboard, Share, Trained, tell, told
from distmf.watching import _InNotebook
from tests.clusters import cluster
from tests.helpers import blocks_in, random_ratings, write

COLUMNS, LINES, SECONDS = 80, 40, 120


def on_terminal(
    command: list[Any], act: Callable[[str, int], None] = lambda shown, pid: None, columns: int = COLUMNS, **more: str
) -> tuple[str, str]:
    """Run a command on a terminal; return what the terminal shows at the end, and all that was written to it."""
    screen = pyte.Screen(columns, LINES)
    stream, written = pyte.ByteStream(screen), b""
    terminal, of_process = pty.openpty()
    fcntl.ioctl(of_process, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    variables = {**os.environ, "TERM": "xterm-256color", **more}
    for name in "COLUMNS", "LINES":  # of the terminal that the tests run on
        variables.pop(name, None)
    words, streams = [sys.executable, *map(str, command)], dict.fromkeys(("stdin", "stdout", "stderr"), of_process)
    with subprocess.Popen(words, env=variables, start_new_session=True, **streams) as process:  # type: ignore[call-overload]
        os.close(of_process)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    data = os.read(terminal, 1 << 16)
                except OSError:  # Linux says so when the process has ended
                    break
                written += data
                stream.feed(data)
                act("\n".join(screen.display), process.pid)
        process.kill()
    os.close(terminal)
    return "\n".join(line.rstrip() for line in screen.display), written.decode(errors="replace")


def test_train__on_a_terminal_shows_a_bar_and_curves_and_then_the_result(tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path, 6000, 200, 150)
    shown, written = on_terminal(["-m", "distmf", "train", blocks.path, tmp_path / "m", "--epochs", 7, "--patience", 0])
    history = distmf.load(tmp_path / "m").history_
    assert re.search(r"━+ 100 % ended after 7 of 7 epochs, \d+\.\d M ratings/s\n", shown), shown
    assert f"● train RMSE {history[-1].train_error:.4f}  ○ holdout RMSE {history[-1].holdout_error:.4f}" in shown
    curve = shown[shown.index("100 %") : shown.index("● train RMSE")]
    assert f"{max(epoch.train_error for epoch in history):.4f} │" in curve
    assert 5 <= curve.count("●") + curve.count("○") <= 14  # one may hide another
    assert curve.count("│") == 8
    assert shown.count("● train RMSE") == 1  # it is drawn over, not again and again
    end = shown[shown.index("● train RMSE") :].splitlines()
    assert end[1].startswith("stopped after 7 epochs")
    assert [line[:9] for line in end].count("saved in ") == 1
    assert "epoch 1/7" not in written  # these are the lines for where there is no terminal
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is there again


def test_train__on_a_narrow_terminal_of_ascii_shows_the_same_in_other_marks(tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path, 6000, 200, 150)
    command = ["-m", "distmf", "train", blocks.path, tmp_path / "m", "--epochs", 90, "--patience", 3]
    shown, _ = on_terminal(command, columns=60, PYTHONIOENCODING="ascii")
    history = distmf.load(tmp_path / "m").history_
    assert len(history) < 90
    assert f"ended after {len(history)} of 90 epochs" in shown
    assert re.search(r"(\n *[\d.]* \|[^\n]*){8}\n\* train RMSE [\d.]+  o holdout RMSE [\d.]+\n", shown), shown


def test_train__interrupted_on_a_terminal_leaves_it_in_order(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(20000, 400, 300))
    sent: list[int] = []

    def interrupt(shown: str, pid: int) -> None:
        if re.search(r"epoch \d{3,} of", shown) and not sent:
            sent.append(pid)
            os.kill(pid, signal.SIGINT)

    command = ["-m", "distmf", "train", source, tmp_path / "m", "--epochs", 100000, "--tol", 0, "--rank", 64]
    shown, written = on_terminal(command, interrupt)
    assert "is saved in" in shown
    assert re.search(r"epoch \d+ of 100000, \d+\.\d M ratings/s, \d+ s left", written)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_block__on_a_terminal_shows_what_it_does(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(20000, 400, 300))
    shown, _ = on_terminal(["-m", "distmf", "block", source, tmp_path / "b"])
    assert "100 % merging 20,000 ratings" in shown
    assert "400 (int64)" in shown


def test_watch__without_a_terminal_shows_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = blocks_in(tmp_path, 3000, 100, 80)
    level = logging.getLogger("distmf").level
    with watch():
        MatrixFactorization(2, epochs=3, patience=0).fit(blocks)
    lines = capfd.readouterr().err.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    with watch(quiet=True):
        MatrixFactorization(2, epochs=3).fit(blocks)
    MatrixFactorization(2, epochs=3).fit(blocks)
    assert capfd.readouterr().err == ""
    assert logging.getLogger("distmf").level == level


def test_watch__says_warnings_beside_the_view(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with watch() as rest:
        tell(Share("counting", 5, 20, "ratings"))
        logging.getLogger("distmf.trainer").warning("look out")
        rest()
    shown = capfd.readouterr().err
    assert "look out" in shown
    assert "25 % counting 20 ratings" in shown


def test_page__of_a_notebook_has_bar_curves_and_link() -> None:
    view = _InNotebook()
    assert view.page() == '<progress value="0.000" max="1"></progress> 0 %, beginning'
    monkey: list[str] = []
    view.show = lambda: monkey.append(view.page())  # type: ignore[method-assign]
    with told(view._take):
        tell(Dashboard('http://host:8787/status?"<'))
        tell(Trained(0.5, 4))
        assert "12 %, epoch 1 of 4" in monkey[-1]
        tell(Trained(1, 4, 0.9, 0.95, "RMSE", 2e6, 9.0))
        tell(Trained(2, 4, 0.8, 0.91, "RMSE", 2e6, 6.4))
    page = monkey[-1]
    assert '<progress value="0.500" max="1"></progress> 50 %, epoch 3 of 4, 2.0 M ratings/s, 6 s left' in page
    assert page.count("<polyline") == 2
    assert "train RMSE 0.8000" in page
    assert "holdout RMSE 0.9100" in page
    assert '<a href="http://host:8787/status?&quot;&lt;">' in page
    with told(view._take):
        tell(Trained(1, 4, 0.7, None, "RMSE", 2e6, 6.4))  # another training: its curve begins anew
    assert "<polyline" not in monkey[-1]


def test_told__hears_of_every_block_in_threads(tmp_path: Path) -> None:
    blocks, heard = blocks_in(tmp_path, 3000, 100, 80), []
    with told(heard.append):
        MatrixFactorization(2, epochs=3, patience=0, tol=0).fit(blocks)
    visits = [event.epochs for event in heard if isinstance(event, Trained) and event.train_error is None]
    np.testing.assert_allclose(visits, np.arange(1, 49) / 16)
    ends = [event for event in heard if isinstance(event, Trained) and event.train_error is not None]
    assert [event.epochs for event in ends] == [1, 2, 3]


def test_fit__on_a_cluster_tells_of_its_dashboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocks, heard = blocks_in(tmp_path, 3000, 100, 80), []
    with cluster(1, tmp_path) as client, told(heard.append), caplog.at_level(logging.INFO, "distmf"):
        has_one = "dashboard" in client.scheduler_info()["services"]
        MatrixFactorization(2, epochs=2).fit(blocks, client=client)
        link = client.dashboard_link
    urls = [event.url for event in heard if isinstance(event, Dashboard)]
    assert urls == ([link] if has_one else [])
    assert (f"dashboard: {link}" in caplog.messages) == has_one
