"""Blocks, visits and factors of a training -> charts, each with a sentence that says how to read it.

Where there is nothing to draw, the sentence says why.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from bokeh.core.properties import field
from bokeh.models import FactorRange, FixedTicker, LinearColorMapper

from distmf.drawing import AMOUNTS, RAMP, TEXT, Chart, Key, new_figure, ramp, show_on_hover
from distmf.residuals import Floats
from distmf.sides import Side
from distmf.sizes import counted

MOST_VISITS, MOST_ITEMS, NAMED_ITEMS = 4000, 2000, 16
LONGEST = 24  # characters of a title in the map
LINE, MOST_LINES = 26, 24  # pixels of a thread, and threads with names beside them


def ratings_per_block(counts: Sequence[Sequence[int]]) -> Chart:
    """Return the heat map of the grid."""
    name, title, table = "grid", "Ratings per block", np.array(counts, dtype=np.float32)
    rows, cols = table.shape
    if table.size == 1:
        return Chart(name, title, None, f"The grid has one block, with {counted(int(table[0, 0]), 'rating')}.")
    most, mean = float(table.max()), float(table.mean())
    figure = new_figure(
        "column block (items)", "row block (users)", height=320, x_range=(-0.5, cols - 0.5), y_range=(rows - 0.5, -0.5)
    )
    mapper = LinearColorMapper(palette=AMOUNTS, low=0, high=2 * mean)
    image = figure.image([table], x=-0.5, y=-0.5, dw=cols, dh=rows, color_mapper=mapper)
    if cols <= 6 and rows <= 12:
        places = np.indices(table.shape).reshape(2, -1)
        figure.text(
            *places[::-1],
            [f"{count:,.0f}" for count in table.ravel()],
            text_align="center",
            text_baseline="middle",
            background_fill_color="white",
            background_fill_alpha=0.7,
            padding=2,
            **TEXT,
        )
    figure.grid.visible = False
    _whole(figure.xaxis, cols)
    _whole(figure.yaxis, rows)
    show_on_hover(figure, [image], None, row_block="$y{0}", column_block="$x{0}", ratings="@image{0,0}")
    text = (
        f"{rows} × {cols} blocks; an even colour means even work for the workers. The largest has {most:,.0f} ratings, "
        f"{most / mean:.2f} times as many as there are on average."
    )
    return Chart(name, title, figure, text, [Key("ramp", ramp(AMOUNTS), f"0 to {2 * mean:,.0f} ratings or more")])


def timetable(visits: Sequence[Mapping[str, Any]], n_threads: int) -> Chart:
    """Return the Gantt chart of an epoch: which block was visited when, and by which worker."""
    name, title = "timetable", "The last epoch, by worker"
    if not visits:
        return Chart(name, title, None, "There are no times of an epoch: none was trained.")
    lanes = lanes_of(visits)
    names = sorted(set(lanes), key=_natural)
    shown = visits[:MOST_VISITS]
    end, last = max(visit["end"] for visit in visits), max(visit["subepoch"] for visit in shown)
    scale, unit = (1000, "ms") if end < 1 else (1, "s")
    source: dict[str, Any] = {
        "lane": lanes[: len(shown)],
        "where": [f"{visit['process']}, thread {visit['thread']}" for visit in shown],
        "begin": np.array([scale * visit["begin"] for visit in shown], dtype=np.float32),
        "end": np.array([scale * visit["end"] for visit in shown], dtype=np.float32),
        **{key: np.array([visit[key] for visit in shown], dtype=np.int32) for key in ("subepoch", "row", "col")},
    }
    figure = new_figure(
        f"time since the epoch began, in {unit}",
        "",
        height=110 + LINE * min(len(names), MOST_LINES),
        y_range=FactorRange(*names[::-1]),
        tools="xpan,xwheel_zoom,xbox_zoom,reset",
    )
    colour = field("subepoch", LinearColorMapper(palette=RAMP, low=0, high=max(last, 1)))
    # The line in the same colour shows what is less than a pixel wide.
    bars = figure.hbar("lane", 0.8, "end", "begin", source=source, fill_color=colour, line_color=colour)
    figure.ygrid.visible = False
    figure.yaxis.major_label_text_font_size = "12px" if len(names) <= MOST_LINES else "0px"
    figure.x_range.start = 0
    times = f"@begin{{0.00}} to @end{{0.00}} {unit}"
    show_on_hover(
        figure, [bars], None, block="row @row, column @col", sub_epoch="@subepoch", time=times, where="@where"
    )
    busy = sum(visit["end"] - visit["begin"] for visit in visits) / (end * max(n_threads, len(names))) if end else 1.0
    text = (
        f"A bar is a visit to a block; in a gap, a thread waits, reads or copies. {100 * busy:.0f} % of the time of "
        f"{counted(max(n_threads, len(names)), 'thread')} went into such visits. Blocks of one colour share no users "
        "and no items, so that they can be trained at once."
    )
    if len(shown) < len(visits):
        text += f" Shown are the first {len(shown):,} of {len(visits):,} visits."
    return Chart(name, title, figure, text, [Key("ramp", ramp(RAMP), f"sub-epoch 0 to {last}")])


def lanes_of(visits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the line that each visit is drawn on: the first one of its process that is free, "worker 1, thread 2".

    A pool gives the next visit to any of its threads, of which there may be more than work at once.
    """
    processes = {process: 1 + n for n, process in enumerate(sorted({visit["process"] for visit in visits}))}
    free_at: dict[str, list[float]] = {process: [] for process in processes}
    names = []
    for visit in visits:
        ends = free_at[visit["process"]]
        lane = next((n for n, end in enumerate(ends) if end <= visit["begin"]), len(ends))
        ends[lane : lane + 1] = [visit["end"]]
        worker = f"worker {processes[visit['process']]}, " if len(processes) > 1 else ""
        names.append(f"{worker}thread {lane + 1}")
    return names


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def item_map(items: Side, titles: Mapping[Any, str]) -> Chart:
    """Return the items with the most ratings, where their factors put them in two dimensions."""
    name, title = "items", "Map of the items"
    known = np.flatnonzero(items.counts > 0)
    places = known[np.argsort(-items.counts[known], kind="stable")][:MOST_ITEMS]
    if items.factors.shape[1] < 2:
        return Chart(name, title, None, "The model has rank 1: its items lie on a line, and there is no map of them.")
    if len(places) < 3:
        return Chart(name, title, None, f"{counted(len(places), 'item')} make no map.")
    xy, shares = plane_of(items.factors[places])
    ids = items.ids.take(places).to_pylist()
    counts, biases = items.counts[places], items.biases[places].astype(np.float64)
    low, high = np.quantile(biases, [0.02, 0.98]).tolist()
    source = {
        "x": xy[:, 0].astype(np.float32),
        "y": xy[:, 1].astype(np.float32),
        "size": (4 + 14 * np.sqrt(counts / counts.max())).astype(np.float32),
        "bias": biases.astype(np.float32),
        "count": counts,
        "id": [str(id_) for id_ in ids],
        "title": [titles.get(id_, "") for id_ in ids],
    }
    across, up = (f"direction {n + 1} ({100 * share:.0f} % of the spread)" for n, share in enumerate(shares))
    figure = new_figure(across, up, height=520, tools="pan,wheel_zoom,box_zoom,reset")
    mapper = LinearColorMapper(palette=RAMP, low=low, high=high if high > low else low + 1)
    colour = field("bias", mapper)
    points = figure.scatter(
        "x", "y", size="size", source=source, fill_color=colour, fill_alpha=0.8, line_color="white", line_width=0.5
    )
    named = {"title": "@title"} if titles else {}
    show_on_hover(figure, [points], None, **named, id="@id", ratings="@count{0,0}", bias="@bias{+0.00}")
    _name_some(figure, xy, [titles.get(id_, "") for id_ in ids])
    which = f"The {len(places):,} items with the most ratings" if len(places) < len(known) else "The items"
    no_titles = "" if titles else " Without --titles FILE they are shown by their ids."
    text = (
        f"{which}, seen from where their factors differ most. Near each other are items that the same users like. "
        f"Larger points have more ratings. The two directions show {100 * sum(shares):.0f} % of what the factors tell "
        f"apart.{no_titles}"
    )
    return Chart(
        name,
        title,
        figure,
        text,
        [Key("ramp", ramp(RAMP), f"bias {low:+.2f} (rated low) to {high:+.2f} (rated high)")],
    )


def plane_of(factors: npt.NDArray[np.float32]) -> tuple[Floats, list[float]]:
    """Return places in the plane in which points differ most, and the share of their spread along its directions.

    Each direction points to where the larger of its extremes lies, so that equal factors give equal maps.
    """
    centred = factors.astype(np.float64) - factors.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    xy = centred @ directions[:2].T
    xy *= np.where(xy.max(axis=0) < -xy.min(axis=0), -1, 1)
    total = float(np.square(sizes).sum()) or 1.0
    return xy, [float(size) ** 2 / total for size in sizes[:2]]


def _name_some(figure: Any, xy: Floats, titles: Sequence[str]) -> None:
    """Write titles beside the points with the most ratings, at heights of their own, so that none covers another."""
    gap = np.ptp(xy[:, 1]) / NAMED_ITEMS
    named: list[int] = []
    for n, title in enumerate(titles):
        if title and all(abs(xy[n, 1] - xy[m, 1]) >= gap for m in named):
            named.append(n)
    middle = (xy[:, 0].min() + xy[:, 0].max()) / 2
    for align, offset in (("left", 8), ("right", -8)):
        some = [n for n in named if (xy[n, 0] <= middle) == (align == "left")]
        source = {"x": xy[some, 0], "y": xy[some, 1], "text": [_short(titles[n]) for n in some]}
        figure.text(
            *("x", "y", "text"),
            source=source,
            text_align=align,
            text_baseline="middle",
            x_offset=offset,
            background_fill_color="white",
            background_fill_alpha=0.75,
            padding=1,
            **TEXT,
        )


def _short(title: str) -> str:
    return title if len(title) <= LONGEST else f"{title[: LONGEST - 1].rstrip()}…"


def _whole(axis: Any, n: int) -> None:
    axis.ticker = FixedTicker(ticks=list(range(0, n, max(1, n // 8))))
