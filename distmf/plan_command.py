"""The command `plan`: its options -> rates, measured or given, and a plan."""

import logging
import os
from dataclasses import replace
from typing import Any

import click

from distmf.blocks import CACHE_BYTES
from distmf.describe_plan import describe_plan
from distmf.footprint import Inputs, Rates
from distmf.grid import Shape
from distmf.options import Count, Grid, Number, Rate, Size, options, output_options, rank_option, reporting
from distmf.plan import choose_shape, make_plan
from distmf.rates import measure_disk, measure_kernel, measure_scheduler

logger = logging.getLogger(__name__)

# What is assumed where it is neither given nor measured; what choosing a first grid to measure on starts from.
ASSUMED = Rates(kernel=50e6, copy=4e9, disk=1e9, network=1.25e9, scheduler=3000, task=0.003)

RATES = {
    "kernel": "kernel_rate",
    "copy": "copy_rate",
    "disk": "disk",
    "network": "network",
    "scheduler": "scheduler_rate",
}  # and the option that gives it

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
@click.option("--workers", type=click.IntRange(1, 100_000), help="Worker processes.  [default: a core each]")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of a worker.")
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
    with reporting(as_json=as_json, quiet=quiet) as report:
        inputs, sources = _rated(_inputs(given), given)
        report(*describe_plan(make_plan(inputs), sources))


def _inputs(given: dict[str, Any]) -> Inputs:
    """Return what is to be planned, with assumed rates where none is given."""
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rates = {name: given[option] for name, option in RATES.items() if given[option]}
    return Inputs(
        n_ratings=given["n_ratings"],
        n_users=given["n_users"],
        n_items=given["n_items"],
        rank=given["rank"] or 64,
        workers=given["workers"] or cores,
        threads=given["threads"],
        memory=given["memory"] or given["threads"] * memory // cores,
        rates=ASSUMED._replace(**rates),
        cache=CACHE_BYTES,
        value_bytes=2 if given["float_ratings"] else 1,
        shape=_shape(given),
    )


def _shape(given: dict[str, Any]) -> Shape | None:
    """Return the grid that is given, if it has a line for every block."""
    if given["grid"] is None:
        return None
    shape = Shape(*given["grid"])
    if shape.rows > given["n_users"] or shape.cols > given["n_items"]:
        raise click.UsageError(
            f"--grid {shape.rows}x{shape.cols}: there are {given['n_users']:,} users and {given['n_items']:,} items; "
            "every block needs at least one of each"
        )
    return shape


def _rated(inputs: Inputs, given: dict[str, Any]) -> tuple[Inputs, dict[str, str]]:
    """Return the inputs with the rates of this machine where none are given, and where each rate comes from."""
    missing = {name for name in Rates._fields if name not in RATES or given[RATES[name]] is None}
    found: dict[str, float] = {}
    sources = {name: "assumed" if name in missing else "given" for name in Rates._fields}
    if missing & {"kernel", "copy"}:
        logger.info("measuring the kernel")
        what = inputs.n_ratings, inputs.n_users, inputs.n_items, inputs.rank
        found |= measure_kernel(*what, choose_shape(inputs), inputs.workers, inputs.threads)._asdict()
    if "disk" in missing:
        disk = measure_disk()
        found["disk"] = disk.rate
    if given["measure_scheduler"]:
        logger.info("measuring the scheduler")
        found |= measure_scheduler()._asdict()
    found = {name: rate for name, rate in found.items() if name in missing}
    sources |= dict.fromkeys(found, "measured here")
    if "disk" in missing and not disk.from_disk:
        sources["disk"] = "measured here, in the page cache: the disk is slower"
    return replace(inputs, rates=inputs.rates._replace(**found)), sources
