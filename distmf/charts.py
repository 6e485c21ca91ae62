"""The history of a training and its errors -> charts, each with a sentence that says how to read it."""

import math

import numpy as np
from bokeh.models import FactorRange, FixedTicker, NumeralTickFormatter, Span

from distmf.drawing import BLUE, GREEN, GREY, INK, RATINGS, RED, TEXT, Chart, Key, label, new_figure, show_on_hover
from distmf.history import History
from distmf.residuals import COUNTS, Floats, Residuals, buckets
from distmf.sizes import counted

MARKED = 60  # epochs, up to which each is a point on its line


def learning_curves(history: History, chain: int = 0) -> Chart:
    """Return the errors of each epoch, between those of simpler models and the noise; of chains of so many epochs."""
    figure = new_figure("epoch", _error_name(history.measure), height=380)
    figure.y_range.range_padding = 0.15
    epochs = [epoch.epoch for epoch in history]
    x_end = (history.best_epoch or len(history)) + history.cooled
    keys = []
    sides = (
        ("ratings trained on", BLUE, [epoch.train_error for epoch in history], history.train_error),
        ("holdout", RED, [epoch.holdout_error for epoch in history], history.holdout_error),
    )
    for name, colour, errors, at_end in sides:
        if errors[0] is not None:
            source = {"epoch": epochs, "error": errors, "on": [name] * len(epochs)}
            line = figure.line("epoch", "error", source=source, color=colour, line_width=2)
            if len(epochs) <= MARKED:
                line = figure.scatter("epoch", "error", source=source, color=colour, size=6)
            show_on_hover(figure, [line], "vline", on="@on", epoch="@epoch", error="@error{0.0000}")
            keys.append(Key("line", colour, name))
        if at_end is not None:
            source = {"epoch": [x_end], "error": [at_end], "on": [name]}
            points = figure.scatter(
                "epoch", "error", source=source, color=colour, size=13, marker="diamond", line_color="white"
            )
            show_on_hover(figure, [points], None, on="@on", exact="@error{0.0000}")
    if history.train_error is not None or history.holdout_error is not None:
        keys.append(Key("diamond", GREY, "exact errors of the model"))
    simpler = history.compared
    lines = {} if simpler is None else {"mean only": simpler.mean, "biases only": simpler.biases}
    last = max(x_end, len(history))
    begin, end = (1.0, last) if last > 1 else (0.5, 1.5)
    if history.noise is not None:
        lines["noise"] = history.noise
    highest = max(lines, key=lambda name: lines[name], default="")
    for name, value in lines.items():
        figure.line([begin, end], [value, value], color=GREY, line_width=1.5, line_dash="dashed")
        label(figure, end, value, f"{name} {value:.4f}", above=name == highest)
    if history.best_epoch is not None:
        figure.add_layout(
            Span(location=history.best_epoch, dimension="height", line_color=INK, line_dash="dotted", line_width=1)
        )
        keys.append(Key("dots", INK, f"best on the holdout: epoch {history.best_epoch}"))
    text = (
        "Lower is better. Points are seen on the way through an epoch, while the factors change. Where the blue line "
        "falls and the red one rises, the model learns its ratings by heart."
        if history[-1].holdout_error is not None
        else "Lower is better. There is no holdout (--holdout 0.1): the error on the ratings trained on says little of "
        "that on others."
    )
    if chain:
        text += (
            f" Every {counted(chain, 'epoch')} a chain of draws begins anew; the model is the mean over all of them."
        )
    return Chart("learning-curves", "Learning curves", figure, text, keys)


def step_sizes(history: History, *, adapts: bool) -> Chart:
    """Return the step size of each epoch, and whether it adapts to the errors."""
    figure = new_figure("epoch", "step size")
    source = {"epoch": [epoch.epoch for epoch in history], "step": [epoch.step_size for epoch in history]}
    line = figure.line("epoch", "step", source=source, color=GREEN, line_width=2)
    if len(history) <= MARKED:
        line = figure.scatter("epoch", "step", source=source, color=GREEN, size=6)
    figure.y_range.start = 0
    show_on_hover(figure, [line], "vline", epoch="@epoch", step="@step{0.0000}")
    text = "How far one rating moves the factors of its user and its item."
    if adapts:
        text += " It grows a little while errors fall, is halved when they rise, and goes to zero with the last epoch."
    if history.rollbacks:
        text += f" {counted(history.rollbacks, 'time')} an epoch was undone and done again with half the step."
    return Chart("step-sizes", "Step size", figure, text)


def residual_histogram(
    residuals: Residuals, rating_range: tuple[float, float], which: str, *, is_weighted: bool
) -> Chart:
    """Return the number of ratings by their error; `which` says in words what these are."""
    by_weight = "by weight and " if is_weighted else ""
    low, high = rating_range
    width = high - low or 1.0
    counts, n = residuals.by_error, residuals.n
    mean, std = moments_of(residuals)
    edges = np.linspace(-width, width, len(counts) + 1)
    figure = new_figure(f"rating less prediction, {RATINGS}", "ratings")
    filled = np.flatnonzero(counts)
    some = slice(filled[0], filled[-1] + 1)
    source = {"left": edges[:-1][some], "right": edges[1:][some], "n": counts[some], "share": counts[some] / n}
    bars = figure.quad(
        left="left",
        right="right",
        top="n",
        bottom=0,
        source=source,
        fill_color=BLUE,
        fill_alpha=0.75,
        line_color="white",
    )
    show_on_hover(figure, [bars], None, error="@left{0.00} to @right{0.00}", ratings="@n{0,0}", share="@share{0.0 %}")
    keys = [Key("box", BLUE, "ratings")]
    if std > 0:
        x = np.linspace(edges[some.start], edges[some.stop], 200)
        density = np.exp(-np.square((x - mean) / std) / 2) / (std * math.sqrt(2 * math.pi))
        figure.line(x, density * n * (edges[1] - edges[0]), color=RED, line_width=2)
        keys.append(Key("line", RED, "normal distribution of the same mean and spread"))
    figure.yaxis.formatter = NumeralTickFormatter(format="0,0")
    figure.yaxis.ticker.min_interval = 1
    text = (
        f"{counted(n, 'rating')} {which}, with predictions clipped to {low:g} to {high:g}: RMSE {residuals.rmse:.4f}, "
        f"mean error {mean:+.4f}; the numbers on top are {by_weight}without clipping. "
        "Right of 0 are ratings that were better than predicted. Bars above the curve far from 0 are outliers."
    )
    return Chart("residuals", "How large the errors are", figure, text, keys)


def moments_of(residuals: Residuals) -> tuple[float, float]:
    """Return the mean and the standard deviation of the errors."""
    n, _, errors, squares = residuals.by_rating.sum(axis=0).tolist()
    return errors / n, math.sqrt(max(0.0, squares / n - (errors / n) ** 2))


def error_by_rating(residuals: Residuals) -> Chart:
    """Return the mean error and the RMSE of the ratings of each value."""
    n, ratings, errors, squares = residuals.by_rating[residuals.by_rating[:, 0] > 0].T
    source = {"rating": ratings / n, "bias": errors / n, "rmse": np.sqrt(squares / n), "n": n}
    gap = float(np.diff(source["rating"]).min()) if len(n) > 1 else 1.0
    figure = new_figure("rating", f"error, {RATINGS}")
    bars = figure.vbar("rating", 0.7 * gap, "bias", source=source, color=BLUE, fill_alpha=0.75, line_color=None)
    figure.line("rating", "rmse", source=source, color=RED, line_width=2)
    points = figure.scatter("rating", "rmse", source=source, color=RED, size=7)
    figure.add_layout(Span(location=0, dimension="width", line_color=INK, line_width=1))
    if len(n) <= 10:
        figure.xaxis.ticker = FixedTicker(ticks=source["rating"].round(4).tolist())
    show_on_hover(
        figure,
        [bars, points],
        None,
        rating="@rating{0.00}",
        mean_error="@bias{+0.0000}",
        RMSE="@rmse{0.0000}",
        ratings="@n{0,0}",
    )
    keys = [Key("box", BLUE, "mean error"), Key("line", RED, "RMSE")]
    text = (
        "Bars above 0: such ratings are predicted too low; below 0: too high. A model that is unsure predicts near the "
        "mean, so low ratings have bars below and high ones above; the fewer there are of a value, the larger they are."
    )
    return Chart("by-rating", "Error by rating", figure, text, keys)


def error_by_count(sums: Floats, side: str, rmse: float) -> Chart:
    """Return the RMSE for users, or items, by the number of ratings that they were trained on."""
    found = buckets(sums)
    names = [_bucket(bucket["at_least"]) for bucket in found]
    source = {
        "name": names,
        "rmse": [bucket["rmse"] for bucket in found],
        "mae": [bucket["mae"] for bucket in found],
        "n": [bucket["n"] for bucket in found],
        "text": [f"{bucket['rmse']:.4f}, {counted(bucket['n'], 'rating')}" for bucket in found],
    }
    figure = new_figure(
        f"RMSE, {RATINGS}",
        f"ratings of the {side}",
        height=max(200, 110 + 30 * len(names)),
        y_range=FactorRange(*names[::-1]),
    )
    colour = BLUE if side == "item" else GREEN
    bars = figure.hbar("name", 0.8, "rmse", source=source, color=colour, fill_alpha=0.35, line_color=None)
    shown = {"RMSE": "@rmse{0.0000}", "MAE": "@mae{0.0000}", "of": "@n{0,0} ratings"}
    show_on_hover(figure, [bars], None, **{f"ratings of the {side}": "@name"}, **shown)
    figure.text(0, "name", "text", source=source, x_offset=6, text_baseline="middle", **TEXT)
    figure.add_layout(Span(location=rmse, dimension="height", line_color=INK, line_dash="dashed", line_width=1))
    figure.x_range.start = 0
    figure.ygrid.visible = False
    what, few, many = {"item": ("popularity of the item", "rare", "popular")}.get(
        side, ("activity of the user", "new", "active")
    )
    text = (
        f"A bar is of all {side}s with so many ratings to train on: {few} ones are on top, {many} ones at the bottom. "
        f"The dashed line is the RMSE of all together, {rmse:.4f}."
    )
    return Chart(f"by-{side}", f"Error by {what}", figure, text)


def _error_name(measure: str) -> str:
    return f"{measure}, {RATINGS}" if measure in ("RMSE", "MAE") else measure


def _bucket(at_least: int) -> str:
    above = next((other for other in COUNTS if other > at_least), None)
    if above is None:
        return f"{at_least:,} or more"
    return f"{at_least:,}" if above == at_least + 1 else f"{at_least:,} to {above - 1:,}"
