"""A trained model and titles of its items -> the page of a report: its numbers, words, charts and settings."""

import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup

from distmf import charts, maps
from distmf.drawing import Chart
from distmf.factorization import MatrixFactorization
from distmf.model import Model
from distmf.options import in_words
from distmf.parameters import checked
from distmf.run import Run
from distmf.sizes import counted

WIDE = "learning-curves", "timetable", "items"
TEMPORARY = ".tmp-", "memory:"  # in paths of blocks that are gone when training ends


class Number(NamedTuple):
    """One of the main numbers."""

    name: str
    value: str
    note: str = ""


def page(mf: MatrixFactorization, titles: Mapping[Any, str]) -> str:
    """Return the report as HTML, with all that it needs in it."""
    model = mf.model_
    shown = charts_of(mf, titles)
    script, divs = components({chart.name: chart.figure for chart in shown if chart.figure}, wrap_script=True)
    template = Environment(autoescape=True).from_string(files("distmf").joinpath("report.html").read_text("utf-8"))
    return template.render(
        title=f"Matrix factorization of {counted(_n_ratings(model), 'rating')}",
        subtitle=f"S{model.history.summary()[1:]}.",
        numbers=numbers_of(mf),
        diagnosis=str(mf.diagnose()).splitlines(),
        charts=shown,
        wide=WIDE,
        divs={name: Markup(div) for name, div in divs.items()},
        about_codes=_about_codes(model),
        codes=codes_of(mf),
        tables=tables_of(mf),
        bokeh=Markup(Resources("inline", components=["bokeh"]).render_js()),
        script=Markup(script),
    )


def charts_of(mf: MatrixFactorization, titles: Mapping[Any, str]) -> list[Chart]:
    """Return the charts of a model, in their order; each without a figure if there is nothing to draw."""
    model = mf.model_
    history, run = model.history, model.run
    which = "held out" if history[-1].holdout_error is not None else "trained on"
    chain = mf.hyperparameters["epochs"] if mf.posterior_samples else 0
    found = [charts.learning_curves(history, chain)]
    if run is None or run.residuals is None or not run.residuals.n:
        why = "no record of its training" if run is None else "no errors of single ratings: training did not end"
        found.append(Chart("residuals", "Errors", None, f"Beside the model there is {why}."))
    else:
        found += [
            charts.residual_histogram(run.residuals, model.rating_range, which, is_weighted=run.blocks["weights"]),
            charts.error_by_rating(run.residuals),
            charts.error_by_count(run.residuals.by_item, "item", run.residuals.rmse),
            charts.error_by_count(run.residuals.by_user, "user", run.residuals.rmse),
        ]
    found.append(maps.item_map(model.items, titles))
    found.append(charts.step_sizes(history, adapts=mf.step_size == "auto" and not mf.posterior_samples))
    if run is None:
        found.append(Chart("grid", "Grid and times", None, "Beside the model there is no record of its training."))
    else:
        found += [maps.ratings_per_block(run.counts), maps.timetable(run.visits, run.n_threads)]
    return found


def numbers_of(mf: MatrixFactorization) -> list[Number]:
    """Return the main numbers."""
    model = mf.model_
    history, run = model.history, model.run
    errors = {"holdout": history.holdout_error, "train": history.train_error}
    notes = {"holdout": "on ratings held out", "train": "on the ratings trained on"}
    found = [
        Number(f"{name} {history.measure}", f"{error:.4f}", notes[name])
        for name, error in errors.items()
        if error is not None
    ]
    if (simpler := history.compared) is not None:
        note = f"{simpler.on} {history.measure}"
        found += [
            Number("mean only", f"{simpler.mean:.4f}", note),
            Number("biases only", f"{simpler.biases:.4f}", note),
        ]
    if history.noise is not None:
        found.append(Number("noise", f"{history.noise:.4f}", "no model gets below"))
    if model.noise_std is not None:
        found.append(Number("noise", f"{model.noise_std:.4f}", "of ratings, as the model sees it"))
    found += [
        Number("ratings", f"{_n_ratings(model):,}", "to train on"),
        Number("users", f"{len(model.users.ids):,}"),
        Number("items", f"{len(model.items.ids):,}"),
        Number("rank", str(mf.rank), "factors of a user or an item"),
    ]
    if run is not None:
        found.append(Number("training", f"{run.seconds:.3g} s", counted(len(history), "epoch")))
        if run.ratings_per_second:
            where = "threads of a cluster" if run.is_cluster else "threads"
            per_second = run.ratings_per_second
            speed = f"{per_second / 1e6:.3g} M/s" if per_second >= 1e6 else f"{per_second:,.0f}/s"
            found.append(Number("speed", speed, f"ratings, {run.n_threads} {where}"))
    return found


def codes_of(mf: MatrixFactorization) -> list[tuple[str, str]]:
    """Return what trains the same model again, in Python and on the command line; RATINGS is what only the user has."""
    blocking = _blocking(mf.model_.run)
    untrained = MatrixFactorization(posterior_samples=mf.posterior_samples)
    plain, defaults = checked(mf.hyperparameters), MatrixFactorization().get_params()
    if plain["epochs"] == untrained.hyperparameters["epochs"]:
        plain["epochs"] = None
    given = {name: value for name, value in plain.items() if value != defaults[name]}
    python = [
        "import distmf",
        "",
        f"blocks = distmf.block_ratings({_call(['RATINGS', repr('blocks')], blocking)})",
        f"mf = distmf.MatrixFactorization({_call([], given)})",
        "mf.fit(blocks)",
    ]
    block, train = ["distmf", "block", "RATINGS", "blocks"], ["distmf", "train", "blocks", "model"]
    block += [word for option in blocking.items() for word in in_words(*option)]
    train += [word for option in given.items() for word in in_words(*option)]
    return [("In Python", "\n".join(python)), ("On the command line", f"{shlex.join(block)}\n{shlex.join(train)}")]


def tables_of(mf: MatrixFactorization) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return all settings, what tells the ratings from others, and with what it was trained, by name."""
    run, low_high = mf.model_.run, mf.model_.rating_range
    settings = [(name.replace("_", " "), _said(value)) for name, value in checked(mf.hyperparameters).items()]
    found = [("Hyperparameters", settings)]
    values = ("values", f"{low_high[0]:g} to {low_high[1]:g}")
    if run is None:
        return [*found, ("Ratings", [values])]
    blocks = {name.removesuffix(" of the blocks"): _said(value) for name, value in run.blocks.items()}
    blocks["ratings that repeat a pair"] = blocks.pop("n_duplicates")
    blocks |= {name: f"{run.blocks[name]:,}" for name in ("users", "items", "ratings")}
    if any(mark in blocks["path"] for mark in TEMPORARY):
        del blocks["path"]
    where = f"{run.n_threads} {'threads of a cluster' if run.is_cluster else 'threads'}"
    machine = {"ended": run.ended.replace("T", " ").replace("+00:00", " UTC"), "where": where, **run.machine}
    return [*found, ("Ratings", [values, *blocks.items()]), ("Machine", list(machine.items()))]


def _about_codes(model: Model) -> str:
    """Return what the settings cannot know."""
    text = "RATINGS are those that the model was trained on. How their columns are called is not kept beside it."
    if model.run is None:
        return f"{text} Nor is how they were blocked."
    if model.run.blocks["weights"]:
        text += " They have weights; WEIGHT stands for the name of their column."
    others = _n_ratings(model) - model.run.blocks["ratings"]
    if others and model.run.blocks["duplicates of the blocks"] != "mean":  # several ratings became one
        text += (
            f" It knows {others:,} ratings more, of a model that training went on from (start, --start) or of users "
            "that were folded in: that part is not in these lines."
        )
    return text


def _blocking(run: Run | None) -> dict[str, Any]:
    """Return the options that give the same blocks."""
    if run is None:
        return {}
    names = {"holdout": 0.0, "duplicates": "keep", "seed": 0}  # and their defaults
    found = {name: run.blocks[f"{name} of the blocks"] for name in names}
    weight = {"weight": "WEIGHT"} if run.blocks["weights"] else {}
    others = {name: found[name] for name in names if found[name] != names[name]}
    return {"grid": tuple(run.blocks["grid"]), **weight, **others}


def _call(arguments: list[str], options: Mapping[str, Any]) -> str:
    return ", ".join([*arguments, *(f"{name}={value!r}" for name, value in options.items())])


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value))
    return str(value)


def _n_ratings(model: Model) -> int:
    return int(model.users.counts.sum())
