"""The command `plan`: its options -> a plan, in words."""

from typing import Any

import click

from distmf.options import Count, Grid, Number, Rate, Size, Whole, options, output_options, rank_option, reporting

rate_options = options(
    click.option(
        "--kernel-rate", type=Number(0, min_open=True), help="Updates per second of a thread.  [default: measured]"
    ),
    click.option("--copy-rate", type=Rate(), help="Copying of factors, a thread.  [default: measured]"),
    click.option("--disk", type=Rate(), help="Reading of blocks, a worker.  [default: measured]"),
    click.option("--network", type=Rate(), help="Into and out of a worker.  [default: 10Gbit]"),
    click.option("--scheduler-rate", type=Number(0, min_open=True), help="Tasks per second.  [default: 3000]"),
    click.option(
        "--measure-scheduler", is_flag=True, help="Measure what tasks take on this machine; some seconds more."
    ),
)


@click.command()
@click.option("--ratings", "n_ratings", type=Count(), required=True, help="Number of ratings, such as 1e11.")
@click.option("--users", "n_users", type=Count(), required=True, help="Number of users.")
@click.option("--items", "n_items", type=Count(), required=True, help="Number of items.")
@rank_option
@click.option("--workers", type=Whole(1, 100_000), help="Worker processes.  [default: a core each]")
@click.option("--threads", type=Whole(1, 1024), default=1, show_default=True, help="Threads of a worker.")
@click.option("--memory", type=Size(), help="Memory of a worker.  [default: what this machine has for so many cores]")
@click.option("--grid", type=Grid(), help="Plan for this grid.  [default: one that fits and is about the fastest]")
@click.option("--float-ratings", is_flag=True, help="There are more than 256 distinct ratings: 2 bytes each, not 1.")
@rate_options
@output_options
def plan(as_json: bool, quiet: bool, **given: Any) -> None:
    """Say what training on a Dask cluster takes, before there is one.

    The plan has the grid, the memory of a worker, the tasks of an epoch, its seconds and where they go, what the
    bottleneck is, and what would move it. It comes from an event simulation of the schedule with the rates that are
    given, and for the others with those of this machine, measured in a few seconds.

    \b
    distmf plan --ratings 1e11 --users 1e9 --items 1e7 --rank 64 \\
                --workers 64 --threads 16 --memory 64GiB --network 10Gbit
    """  # noqa: D301 (click reads the \b)
    from distmf.describe_plan import describe_plan
    from distmf.plan import make_plan
    from distmf.plan_inputs import planned, rated

    with reporting(as_json=as_json, quiet=quiet) as report:
        inputs, sources = rated(planned(given), given)
        report(*describe_plan(make_plan(inputs), sources))
