"""The command `plan`."""

import json
import os
from typing import Any

import pytest
from click.testing import CliRunner, Result

from distmf.cli import main

EXAMPLE = "--ratings 1e11 --users 1e9 --items 1e7 --rank 64 --workers 64 --threads 16 --memory 64GiB --network 10Gbit"
GIVEN = "--kernel-rate 2e7 --copy-rate 4GB/s --disk 500MB/s"
SMALL = "--ratings 100000 --users 1000 --items 500 --rank 8 --memory 2GiB"


def run(arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments.split()])


def as_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_plan__of_the_example_says_what_it_takes_and_what_would_help() -> None:
    found = as_json(run(f"{EXAMPLE} {GIVEN} --json"))
    assert (found["n_ratings"], found["n_users"], found["n_items"]) == (10**11, 10**9, 10**7)
    assert found["memory"] == 64 << 30
    assert found["rates"]["network"] == {"value": 1.25e9, "source": "given"}
    assert found["rates"]["scheduler"]["source"] == "assumed"
    assert found["rates"]["kernel"] == {"value": 2e7, "source": "given"}
    assert set(found["seconds"]) == {"kernel", "copy", "disk", "network", "scheduler"}
    assert found["bottleneck"] in found["seconds"]
    assert sum(found["seconds"].values()) == pytest.approx(found["seconds_per_epoch"])
    assert found["threads_used"] < 64 * 16  # a grid for all of them would have millions of tasks
    text = run(f"{EXAMPLE} {GIVEN}").stdout
    for word in (
        "10,000,000 items",
        "64 workers of 16 threads",
        "grid",
        "tasks",
        "memory",
        "bottleneck",
        "would help",
        "given",
    ):
        assert word in text
    assert f"{found['tasks_per_epoch']:,} an epoch" in text


def test_plan__measures_what_is_not_given() -> None:
    result = run(f"{SMALL} --scheduler-rate 1000 --json")
    found = as_json(result)
    sources = {name: rate["source"] for name, rate in found["rates"].items()}
    assert sources["kernel"] == sources["copy"] == "measured here"
    assert sources["disk"].startswith("measured here")
    assert (sources["network"], sources["scheduler"]) == ("assumed", "given")
    assert found["rates"]["kernel"]["value"] > 1e5
    assert "measuring the kernel" in result.stderr
    assert run(f"{SMALL} --json -q").stderr == ""


def test_plan__measures_nothing_over_what_is_given() -> None:
    found = as_json(run(f"{SMALL} --kernel-rate 12345 --json"))
    assert found["rates"]["kernel"] == {"value": 12345, "source": "given"}
    assert found["rates"]["copy"]["source"] == "measured here"


def test_plan__takes_every_option() -> None:
    found = as_json(run(f"{SMALL} {GIVEN} --grid 3x2 --float-ratings --workers 3 --threads 2 --json"))
    assert found["grid"] == [3, 2]
    assert (found["workers"], found["threads"]) == (3, 2)
    coded = as_json(run(f"{SMALL} {GIVEN} --grid 3x2 --workers 3 --threads 2 --json"))
    assert found["bytes_per_worker"]["cache"] > 1.3 * coded["bytes_per_worker"]["cache"]  # 4 bytes a rating, not 3


def test_plan__is_by_default_for_this_machine() -> None:
    found = as_json(run(f"--ratings 1e6 --users 1e4 --items 1000 {GIVEN} --json"))
    cores = len(os.sched_getaffinity(0))
    assert (found["workers"], found["threads"], found["rank"]) == (cores, 1, 64)
    assert found["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // cores


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ratings many", "'many' is not a whole number from 1 to 2^63 - 1; write for example 1e9"),
        ("--ratings 1e30", "'1e30' is not a whole number from 1 to 2^63 - 1"),
        ("--ratings 1.5", "'1.5' is not a whole number"),
        ("--users 0", "'0' is not a whole number from 1 to"),
        ("--items nan", "'nan' is not a whole number"),
        ("--items 1e30", "'1e30' is not a whole number"),
        ("--network fast", "'fast' is not a rate; write for example '10Gbit' for bits or '1.2GB/s'"),
        ("--network 10Gb", "'10Gb' is not a rate"),  # bits or bytes?
        ("--disk 1GB/min", "'1GB/min' is not a rate"),
        ("--memory 64", "a worker needs"),
        ("--memory lots", "'lots' is not an amount of memory"),
        ("--kernel-rate 0", "0.0 is not in the range x>0"),
        ("--rank 0", "0 is not in the range 1<=x<=512"),
        ("--grid 5", "'5' is not a grid"),
        ("--workers 0", "0 is not in the range"),
        ("--grid 1010x2", "--grid 1010x2: there are 1,000 users and 500 items; every block needs at least one of each"),
    ],
)
def test_plan__refuses_what_makes_no_sense(option: str, message: str) -> None:
    result = run(f"{SMALL} {GIVEN} {option}")
    assert result.exit_code == (1 if message == "a worker needs" else 2)
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_plan__says_what_is_missing() -> None:
    result = run("--ratings 1e6 --users 1e4")
    assert result.exit_code == 2
    assert "--items" in result.stderr
