"""A plan -> numbers for a program, and words for a person."""

from collections.abc import Mapping
from typing import Any

from distmf.memory import TrainingBytes
from distmf.plan import Change, Plan, full_shape, tasks
from distmf.sizes import format_bytes, format_rate

REASONS = {
    "kernel": "threads are at work on ratings; that is as it should be",
    "copy": "a task copies P_i and Q_j before it changes them",
    "disk": "factors are saved, and ratings read again in each epoch where the cache of blocks does not hold them",
    "network": "every column block visits every worker in each epoch",
    "scheduler": "tasks take time of scheduler and workers besides their work, and wait for messages",
}
NAMES = {"copy": "copies", "reading": "blocks being read", "cache": "cache of blocks"}
MOVES = 0.97  # a change that takes off less than 3 % moves nothing


def describe_plan(plan: Plan, sources: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return a plan in numbers and in words.

    Parameters
    ----------
    plan : Plan
        What was planned.
    sources : mapping
        For each rate, where it comes from: "measured", "given", "assumed" …
    """
    return _in_numbers(plan, sources), _in_words(plan, sources)


def _in_numbers(plan: Plan, sources: Mapping[str, str]) -> dict[str, Any]:
    inputs, epoch = plan.inputs, plan.epoch
    return {
        "n_ratings": inputs.n_ratings,
        "n_users": inputs.n_users,
        "n_items": inputs.n_items,
        "rank": inputs.rank,
        "workers": inputs.workers,
        "threads": inputs.threads,
        "memory": inputs.memory,
        "grid": list(plan.shape),
        "threads_used": _threads_used(plan),
        "bytes_per_worker": {**plan.memory._asdict(), "total": plan.memory.total},
        "bytes_of_driver": plan.driver_bytes,
        "bytes_without_a_cluster": {
            name: {**needs._asdict(), "total": needs.total} for name, needs in plan.alone.items()
        },
        "bytes_of_scheduler": plan.scheduler_bytes,
        "tasks_per_epoch": plan.n_tasks,
        "seconds_per_epoch": epoch.seconds,
        "seconds": epoch.split._asdict(),
        "busy": epoch.loads._asdict(),
        "bottleneck": plan.bottleneck,
        "changes": [
            {"change": change.what, "grid": change.shape, "seconds_per_epoch": change.seconds, "ratio": change.ratio}
            for change in plan.changes
        ],
        "rates": {name: {"value": value, "source": sources[name]} for name, value in inputs.rates._asdict().items()},
        "subepochs_simulated": epoch.n_subepochs,
    }


def _in_words(plan: Plan, sources: Mapping[str, str]) -> str:
    inputs, epoch, memory = plan.inputs, plan.epoch, plan.memory
    rows, cols = plan.shape
    size = max(plan.shape)
    n_epochs, rest = divmod(epoch.n_subepochs, size)
    names = {name: NAMES.get(name, name) for name in (*memory._fields, *epoch.split._fields)}
    parts = ", ".join(f"{names[name]} {format_bytes(n)}" for name, n in memory._asdict().items())
    split = sorted(epoch.split._asdict().items(), key=lambda item: -item[1])
    loads = sorted(epoch.loads._asdict().items(), key=lambda item: -item[1])
    helps = sorted((change for change in plan.changes if _helps(change)), key=lambda change: change.ratio or 0)
    others = [change for change in plan.changes if change not in helps]
    rates = {
        "kernel": f"{_count(inputs.rates.kernel)} updates/s a thread",
        "scheduler": f"{inputs.rates.scheduler:,.0f} tasks/s",
        "task": f"{1000 * inputs.rates.task:.3g} ms of a core beside its work",
        **{name: format_rate(getattr(inputs.rates, name)) for name in ("copy", "disk", "network")},
    }
    lines = [
        ("grid", f"{rows} × {cols} blocks of {_count(inputs.n_ratings / (rows * cols))} ratings: --grid {rows}x{cols}"),
        *_column("threads", _threads(plan)),
        ("tasks", f"{plan.n_tasks:,} an epoch, {rows * cols:,} of them visits to blocks"),
        ("memory", f"{format_bytes(memory.total)} of {format_bytes(inputs.memory)} a worker: {parts}"),
        ("", f"driver at the end {_driver(plan)}, scheduler {format_bytes(plan.scheduler_bytes)}"),
        *_column("alone", [_alone(name, needs) for name, needs in plan.alone.items()]),
        ("epoch", f"{_seconds(epoch.seconds)}: " + ", ".join(f"{names[name]} {_seconds(s)}" for name, s in split)),
        ("busy", ", ".join(f"{name} {share:.0%}" for name, share in loads)),
        ("bottleneck", f"{names[plan.bottleneck]}: {REASONS[plan.bottleneck]}"),
        *_column("would help", [_change(change, plan) for change in helps] or ["nothing of what was tried"]),
        ("would not", "; ".join(_change(change, plan) for change in others)),
        *_column("rates", [f"{names.get(name, name)} {text} ({sources[name]})" for name, text in rates.items()]),
        (
            "simulated",
            f"{n_epochs} epochs" if not rest else f"{epoch.n_subepochs} of the {size:,} sub-epochs of an epoch",
        ),
    ]
    title = (
        f"Plan for {inputs.n_ratings:,} ratings by {inputs.n_users:,} users of {inputs.n_items:,} items at rank "
        f"{inputs.rank}\non {inputs.workers:,} worker{'s' * (inputs.workers > 1)} of {inputs.threads} "
        f"thread{'s' * (inputs.threads > 1)}"
    )
    return "\n".join([title, *(f"  {name:<10}  {text}" for name, text in lines)])


def _alone(name: str, needs: TrainingBytes) -> str:
    """Return what one process takes without a cluster."""
    parts = ", ".join(f"{NAMES.get(part, part)} {format_bytes(n)}" for part, n in needs._asdict().items())
    where = "without a cluster, all in memory" if name == "in_memory" else "with the user factors on disk"
    return f"{where} {format_bytes(needs.total)}: {parts}"


def _driver(plan: Plan) -> str:
    """Return the driver's memory, and whether a machine such as those of the workers has it."""
    needed = format_bytes(plan.driver_bytes)
    return needed if plan.driver_bytes <= plan.inputs.memory else f"{needed} (!), more than a worker has"


def _threads_used(plan: Plan) -> int:
    """Return how many threads can be at work at the same time."""
    return min(plan.inputs.slots, *plan.shape)


def _threads(plan: Plan) -> list[str]:
    """Return how many threads the grid has something to do for, and what it would take to use them all."""
    inputs, used, full = plan.inputs, _threads_used(plan), full_shape(plan.inputs)
    if used == inputs.slots:
        return [f"all {used:,} have something to do" if used > 1 else "the only one has something to do"]
    n_tasks = tasks(inputs, full)
    return [
        f"{used:,} of {inputs.slots:,} have something to do; {-(-used // inputs.workers):,} a worker would be enough",
        f"two blocks for each of them, {full.rows} × {full.cols}, would be {n_tasks:,} tasks an epoch: "
        f"{_seconds(n_tasks / inputs.rates.scheduler)} in the scheduler alone",
    ]


def _helps(change: Change) -> bool:
    return change.ratio is not None and change.ratio < MOVES


def _change(change: Change, plan: Plan) -> str:
    if change.seconds is None or change.shape is None:
        return f"{change.what}: does not fit in memory"
    is_other = change.shape != plan.shape and "grid" not in change.what
    grid = f" on a grid of {change.shape.rows} × {change.shape.cols}" if is_other else ""
    return f"{change.what}: {_seconds(change.seconds)}{grid}"


def _count(number: float) -> str:
    return f"{number / 1e6:,.3g} M" if number >= 1e6 else f"{number:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s" if seconds >= 0.001 else "0 s"


def _column(title: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(title if n == 0 else "", text) for n, text in enumerate(texts)]
