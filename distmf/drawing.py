"""What the charts of a report have in common: how they look, and the words and keys that come with them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bokeh.models import HoverTool, Label
from bokeh.palettes import Blues256, Cividis256
from bokeh.plotting import figure

# Told apart by people who do not see all colours: from Paul Tol's bright scheme, cividis, and one colour.
BLUE, RED, GREEN, GREY, INK = "#4477aa", "#ee6677", "#228833", "#9aa0a6", "#22272e"
RAMP = [str(colour) for colour in Cividis256]
AMOUNTS = [str(colour) for colour in reversed(Blues256)]  # more is darker
HEIGHT = 320
MOST_SHOWN = 4  # of points under the mouse
RATINGS = "in units of the ratings"
TEXT = {"text_font_size": "12px", "text_color": INK}


class Key(NamedTuple):
    """What a colour stands for: `kind` is line, dash, dot or ramp."""

    kind: str
    colour: str
    text: str


class Chart(NamedTuple):
    """A chart, or why there is none.

    Attributes
    ----------
    name, title : str
        For links, and for people.
    figure : bokeh figure or None
        None where there is nothing to draw.
    text : str
        How to read it, or why it is not there.
    keys : sequence of Key
        What its colours stand for.
    """

    name: str
    title: str
    figure: Any
    text: str
    keys: Sequence[Key] = ()


def new_figure(x: str, y: str, *, height: int = HEIGHT, tools: str = "", **options: Any) -> Any:
    """Return a chart as wide as the page, with these axes and nothing on it yet; options are those of Bokeh."""
    found = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_label=y,
        tools=tools,
        toolbar_location="above" if tools else None,
        active_drag=None,  # a finger scrolls the page
        active_scroll=None,
        **options,
    )
    found.toolbar.logo = None
    found.outline_line_color = None
    found.grid.grid_line_color = "#e6e8eb"
    found.min_border_right = 18
    if x == "epoch":
        found.xaxis.ticker.min_interval = 1
    for axis in found.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = GREY
        axis.minor_tick_line_color = None
    return found


def show_on_hover(figure: Any, renderers: list[Any], mode: str | None, **shown: str) -> None:
    """Show values by name, where the mouse is over something drawn; with the mode vline above or below it, too."""
    tooltips = [(name.replace("_", " "), value) for name, value in shown.items()]
    figure.add_tools(HoverTool(renderers=renderers, tooltips=tooltips, mode=mode or "mouse", limit=MOST_SHOWN))


def label(figure: Any, x: float, y: float, text: str, *, above: bool) -> None:
    """Write text above or below the end of a line."""
    place = {"text_baseline": "bottom", "y_offset": 3} if above else {"text_baseline": "top", "y_offset": -3}
    figure.add_layout(Label(x=x, y=y, text=text, text_align="right", **place, **TEXT))


def ramp(palette: Sequence[str]) -> str:
    """Return a palette as CSS has it."""
    return f"linear-gradient(90deg, {', '.join(palette[::51])})"
