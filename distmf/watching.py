"""What work tells of itself -> a live view on a terminal or in a notebook, or plain lines anywhere else."""

import contextlib
import html
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distmf.progress import SHOWN, Dashboard, Event, Share, Trained, told

WIDTH, HEIGHT = 60, 8  # of the curve, in characters, on terminals that are as wide
BAR = 20  # characters
MARKS = {"train": "●", "holdout": "○"}
PLAIN_MARKS = {"train": "*", "holdout": "o"}  # where there is ASCII only
COLOURS = {"train": "#0072b2", "holdout": "#d55e00"}  # which people who see few colours tell apart, too
SECONDS_BETWEEN_VIEWS = 0.25  # in a notebook


Curves = dict[str, list[tuple[float, float]]]  # epochs and errors, by what they are over


@contextlib.contextmanager
def watch(*, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Show how far blocking, training and all else is that takes long, while the block of `with` runs.

    On a terminal and in a notebook that is a live view: a bar, the curve of the errors, ratings per second, the time
    that is left, and on a cluster the link to its dashboard. Anywhere else it is the lines of the logger `distmf`, on
    standard error.

    Parameters
    ----------
    quiet : bool
        Show warnings only.

    Yields
    ------
    callable
        Ends the live view: to be called before something else is printed. It begins anew when there is more to show.

    Examples
    --------
    >>> import distmf, numpy as np
    >>> with distmf.watch(quiet=True):
    ...     mf = distmf.MatrixFactorization(rank=1, epochs=3).fit(np.array([[5, 3, 1], [4, 2, 1]]))
    """
    package = logging.getLogger("distmf")
    level, propagates, view = package.level, package.propagate, None if quiet else _view()
    handler = logging.StreamHandler() if view is None else _Aside(view)
    package.addHandler(handler)
    package.setLevel(logging.WARNING if quiet else logging.INFO)
    package.propagate = False  # else a handler of the root would say all of it again
    try:
        with contextlib.nullcontext() if view is None else view:
            yield (lambda: None) if view is None else view.end
    finally:
        package.setLevel(level)
        package.propagate = propagates
        package.removeHandler(handler)


def _view() -> "_View | None":
    """Return the view for where this runs, None for plain lines."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and hasattr(shell, "kernel"):
        return _InNotebook()
    return _OnTerminal() if sys.stderr.isatty() else None


class _Aside(logging.Handler):
    """Puts what is logged beside a view, but for what the view shows itself."""

    def __init__(self, view: "_View") -> None:
        super().__init__()
        self.view = view

    def emit(self, record: logging.LogRecord) -> None:
        if not SHOWN.keys() <= record.__dict__.keys():
            self.view.say(self.format(record))


class Point(NamedTuple):
    """The errors of an epoch."""

    epoch: float
    train: float
    holdout: float | None


class _View:
    """What is known of the work under way; a context manager."""

    def __init__(self) -> None:
        self.share: Share | None = None
        self.trained: Trained | None = None
        self.last: Trained | None = None  # epoch that is over
        self.points: list[Point] = []
        self.dashboard = ""
        self.is_over = False

    def __enter__(self) -> "_View":
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(told(self._take))
        return self

    def __exit__(self, *problem: Any) -> None:
        self.stack.close()
        self.end()

    def end(self) -> None:
        """Leave what is shown as it is."""
        self.is_over = True
        self.leave()

    def _take(self, event: Event) -> None:
        self.is_over = False
        match event:
            case Share():
                self.share, self.trained, self.last, self.points = event, None, None, []
            case Dashboard(url):
                self.dashboard = url
            case Trained():
                if event.epochs < (self.trained.epochs if self.trained else 0):  # a roll-back, or another training
                    self.points = [point for point in self.points if point.epoch < event.epochs]
                self.share, self.trained = None, event
                if event.train_error is not None:
                    self.last = event
                    self.points.append(Point(event.epochs, event.train_error, event.holdout_error))
        self.show()

    def heading(self) -> tuple[float, str]:
        """Return which share is done, and that in words."""
        if self.share is not None:
            verb, done, total, what = self.share
            return done / total if total else 1.0, f"{verb} {total:,} {what}"
        if self.trained is None:
            return 0.0, "beginning"
        epochs, of, last = self.trained.epochs, self.trained.of, self.last
        rate = [] if last is None else [f"{last.ratings_per_second / 1e6:.1f} M ratings/s"]
        if self.is_over:
            words = [f"ended after {0 if last is None else int(last.epochs)} of {of} epochs", *rate]
        else:
            left = [] if last is None else [f"{last.seconds_left:.0f} s left"]
            words = [f"epoch {min(int(epochs) + 1, of)} of {of}", *rate, *left]
        return epochs / of, ", ".join(words)

    def errors(self) -> Curves:
        """Return the curves: epochs and errors, by what they are over."""
        curves = {
            "train": [(point.epoch, point.train) for point in self.points],
            "holdout": [(point.epoch, point.holdout) for point in self.points if point.holdout is not None],
        }
        return {name: curve for name, curve in curves.items() if curve}

    def legend(self) -> list[tuple[str, str]]:
        """Return each curve's name, and its last error in words."""
        assert self.last is not None
        return [(name, f"{name} {self.last.measure} {curve[-1][1]:.4f}") for name, curve in self.errors().items()]

    def say(self, text: str) -> None:
        """Show a line beside the view."""
        raise NotImplementedError

    def show(self) -> None:
        """Show what is known now."""
        raise NotImplementedError

    def leave(self) -> None:
        """Show what is known in the end, and draw no more."""
        raise NotImplementedError


class _OnTerminal(_View):
    """Lines that are drawn again and again, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.live: Live | None = None

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def show(self) -> None:
        if self.live is None:
            self.live = Live(console=self.console, get_renderable=self._lines, refresh_per_second=8)
            self.live.start()

    def leave(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _lines(self) -> Any:
        share, words = self.heading()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1.0, completed=min(1.0, share), width=BAR), f"{100 * share:3.0f} %", words)
        lines: list[Any] = [bar]
        if len(self.points) > 1 and self.trained is not None:
            options = self.console.options
            marks, line = (PLAIN_MARKS, "|") if options.ascii_only else (MARKS, "│")
            lines += curve_lines(self.errors(), self.trained.of, min(WIDTH, options.max_width - 12), marks, line)
            lines.append(Text("  ").join(Text(f"{marks[name]} {said}", COLOURS[name]) for name, said in self.legend()))
        if self.dashboard:
            lines.append(Text(f"dashboard {self.dashboard}", "dim"))
        return Group(*lines)


def placed(curves: Curves, n_epochs: int) -> tuple[Curves, tuple[float, float]]:
    """Return curves of errors by epoch in a square of 1, from the upper left, and its highest and lowest error."""
    errors = [error for curve in curves.values() for _, error in curve]
    low, high = min(errors), max(errors)
    found = {
        name: [((epoch - 1) / max(1, n_epochs - 1), (high - error) / (high - low or 1)) for epoch, error in curve]
        for name, curve in curves.items()
    }
    return found, (high, low)


def curve_lines(curves: Curves, n_epochs: int, width: int, marks: dict[str, str], line: str) -> list[Any]:
    """Return curves of errors by epoch as lines of text, between the lowest and the highest error."""
    places, (high, low) = placed(curves, n_epochs)
    rows: list[list[tuple[str, str]]] = [[(" ", "")] * width for _ in range(HEIGHT)]
    for name, curve in places.items():
        for x, y in curve:
            rows[round(y * (HEIGHT - 1))][round(x * (width - 1))] = marks[name], COLOURS[name]
    ends = {0: f"{high:.4f}", HEIGHT - 1: f"{low:.4f}"}
    longest = max(map(len, ends.values()))
    return [Text.assemble(f"{ends.get(n, ''):>{longest}} {line}", *cells) for n, cells in enumerate(rows)]


class _InNotebook(_View):
    """HTML under the cell, without widgets: it stays when the notebook is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.handle: Any = None
        self.shown = 0.0

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)  # noqa: T201 (where notebooks show what is logged)

    def show(self) -> None:
        if time.monotonic() - self.shown >= SECONDS_BETWEEN_VIEWS:
            self._display()

    def leave(self) -> None:
        if self.handle is not None:
            self._display()

    def _display(self) -> None:
        from IPython.display import HTML, display  # noqa: PLC0415 (there is one in notebooks only)

        self.shown = time.monotonic()
        if self.handle is None:
            self.handle = display(HTML(self.page()), display_id=True)
        else:
            self.handle.update(HTML(self.page()))

    def page(self) -> str:
        """Return what is known now as HTML."""
        share, words = self.heading()
        parts = [
            f'<progress value="{min(1.0, share):.3f}" max="1"></progress> {100 * share:.0f} %, {html.escape(words)}'
        ]
        if len(self.points) > 1 and self.trained is not None:
            parts.append(curve_svg(self.errors(), self.trained.of))
            said = (
                f'<span style="color: {COLOURS[name]}">{html.escape(words)}</span>' for name, words in self.legend()
            )
            parts.append(", ".join(said))
        if self.dashboard:
            link = html.escape(self.dashboard, quote=True)
            parts.append(f'<a href="{link}">{link}</a>')
        return "<br>".join(parts)


def curve_svg(curves: Curves, n_epochs: int, width: int = 480, height: int = 120) -> str:
    """Return curves of errors by epoch as a picture, between the lowest and the highest error."""
    places, (high, low) = placed(curves, n_epochs)
    lines = []
    for name, curve in places.items():
        points = " ".join(f"{60 + x * (width - 70):.1f},{10 + y * (height - 20):.1f}" for x, y in curve)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
    ends = "".join(
        f'<text x="52" y="{y}" text-anchor="end" font-size="12" fill="currentColor">{error:.4f}</text>'
        for y, error in ((14, high), (height - 6, low))
    )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{ends}{"".join(lines)}</svg>'
