"""The command `report`: a model, and titles of its items -> a page."""

import click

import distmf
from distmf.options import complete_file, complete_folder, output_options, reporting


@click.command()
@click.argument("model", shell_complete=complete_folder)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    default="report.html",
    show_default=True,
    shell_complete=complete_file,
    help="What to write.",
)
@click.option(
    "--titles",
    metavar="FILE",
    shell_complete=complete_file,
    help="Parquet or text with titles of items, for the map of the items.",
)
@click.option("--item", metavar="COLUMN", help="Column of the item ids in --titles.  [default: as it is called]")
@click.option("--title", metavar="COLUMN", help="Column of the titles.  [default: as it is called]")
@output_options
def report(
    model: str, out: str, titles: str | None, item: str | None, title: str | None, as_json: bool, quiet: bool
) -> None:
    """Show how a model was trained and how good it is, in one HTML file.

    The file needs nothing else, and no network. It has learning curves, errors by size, by rating and by popularity,
    the grid and the times of the last epoch, a map of the items, the diagnosis, and the settings to train the same
    again. It takes Bokeh: pip install 'distmf[report]'.

    \b
    distmf report model -o report.html --titles movies.csv
    """  # noqa: D301 (click reads the \b)
    from distmf.titles import read_titles

    if titles is None and (item is not None or title is not None):
        raise click.UsageError("--item and --title are for --titles")
    with reporting(as_json=as_json, quiet=quiet) as said:
        mf = distmf.load(model)
        known = {} if titles is None else read_titles(titles, mf.model_.items.ids.type, item=item, title=title)
        n_titled = sum(id_ in known for id_ in mf.model_.items.ids.to_pylist()) if known else 0
        distmf.report(mf, out, titles=known)
        found = {"path": out, "n_titled": n_titled}
        words = "" if titles is None else f"; {n_titled:,} of {len(mf.item_ids_):,} items have a title in {titles}"
        said(found, f"the report is in {out}{words}")
