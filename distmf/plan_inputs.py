"""Options of the command `plan` -> what is to be planned, with rates that are given, measured here, or assumed."""

import logging
import os
from dataclasses import replace
from typing import Any

from distmf.blocks import CACHE_BYTES
from distmf.errors import ParameterError
from distmf.footprint import Inputs, Rates
from distmf.grid import Shape
from distmf.plan import choose_shape
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


def planned(given: dict[str, Any]) -> Inputs:
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
        raise ParameterError(
            f"--grid {shape.rows}x{shape.cols}: there are {given['n_users']:,} users and {given['n_items']:,} items; "
            "every block needs at least one of each"
        )
    return shape


def rated(inputs: Inputs, given: dict[str, Any]) -> tuple[Inputs, dict[str, str]]:
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
