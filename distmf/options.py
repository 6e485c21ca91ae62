"""What the commands share: kinds of values, groups of options, and how progress and results are shown.

Commands import what they need when they run: help and completion in a shell take a tenth of the time without.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from distmf.arguments import similar
from distmf.choices import MAX_BLOCKS, MAX_RANK
from distmf.losses import LOSSES
from distmf.sizes import parse_bytes, parse_rate


class Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """An amount of memory."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it in bytes."""
        try:
            return parse_bytes(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class Rate(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Bits or bytes per second."""

    name = "RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return it in bytes per second."""
        try:
            return value if isinstance(value, float) else parse_rate(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class Count(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A whole number from 1 on, also as people write large ones: 1e11."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            number = Decimal(str(value))
            is_count = number == number.to_integral_value() and 1 <= number < 2**63
        except ArithmeticError:  # not a number, or NaN
            is_count = False
        if not is_count:
            self.fail(
                f"{value!r} is not a whole number from 1 to 2^63 - 1; write for example 1e9 or 250000", param, ctx
            )
        return int(number)


class Choice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """One of some words; one that is like what was given is suggested."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return what is said of a word that is none of them."""
        meant, message = similar(value, self.choices), super().get_invalid_choice_message(value, ctx)
        return f"{message} Did you mean {meant!r}?" if meant else message


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "integer"


class Number(click.FloatRange):
    """A number in a range that is not NaN and not infinite."""

    name = "number"

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class CountOrShare(Number):
    """A whole number from 1 on, or a share between 0 and 1."""

    name = "N|SHARE"

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return an int or a float."""
        number = super().convert(value, param, ctx)
        return int(number) if number >= 1 and number == int(number) else number


class Grid(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Numbers of row blocks and column blocks."""

    name = "RxC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return both."""
        rows, _, cols = str(value).lower().partition("x")
        is_grid = rows.isdecimal() and cols.isdecimal() and max(len(rows), len(cols)) < 7
        if not (is_grid and 1 <= int(rows) <= MAX_BLOCKS and 1 <= int(cols) <= MAX_BLOCKS):
            self.fail(f"{value!r} is not a grid; write for example 8x8, at most {MAX_BLOCKS}x{MAX_BLOCKS}", param, ctx)
        return int(rows), int(cols)


class OneOrTwo(Number):
    """A number in a range, or two with a comma between: for users and for items; or, where it says so, auto."""

    def __init__(self, low: float, *, auto: bool = False) -> None:
        super().__init__(low)
        self.auto = auto
        self.name = "FLOAT[,FLOAT]" + ("|auto" if auto else "")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, a pair, or "auto"."""
        if self.auto and value == "auto":
            return value
        parts = [super(OneOrTwo, self).convert(part, param, ctx) for part in str(value).split(",")]
        if len(parts) > 2:
            self.fail(f"{value!r} are more than two numbers; one is for users, the other for items", param, ctx)
        return parts[0] if len(parts) == 1 else tuple(parts)


class NumberOrAuto(Number):
    """A number in a range, or auto."""

    name = "FLOAT|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "auto"."""
        return value if value == "auto" else super().convert(value, param, ctx)


Command = Callable[..., Any]


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a word as a file or a folder; what is a URL stays as it is."""
    return [CompletionItem(incomplete, type="file")]


def complete_folder(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a word as a folder."""
    return [CompletionItem(incomplete, type="dir")]


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds several options, shown in this order."""

    def add(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add


column_options = options(
    click.option("--user", metavar="COLUMN", help="Column of the user ids.  [default: user_id, or as it is called]"),
    click.option("--item", metavar="COLUMN", help="Column of the item ids.  [default: item_id, or as it is called]"),
)
rating_option = click.option(
    "--rating", metavar="COLUMN", help="Column of the ratings.  [default: rating, or as it is called]"
)
weight_option = click.option("--weight", metavar="COLUMN", help="Column of weights: how much each rating counts.")
seed_option = click.option("--seed", type=Whole(0, 2**63 - 1), help="Of everything random.  [default: 0]")
threads_option = click.option("--threads", type=Whole(1), help="Threads to use.  [default: all cores]")
memory_option = click.option(
    "--memory", type=Size(), help="Memory that this process may use.  [default: seven eighths of its limit]"
)
objective_options = options(
    click.option("--loss", type=Choice(list(LOSSES)), help="What is minimised.  [default: squared]"),
    click.option("--bounds", type=(float, float), metavar="LOW HIGH", help="Predict by a sigmoid between two ratings."),
    click.option("--nonnegative", is_flag=True, help="Keep factors from falling below zero."),
    click.option("--bias-reg", type=OneOrTwo(0), help="Regularisation of the biases, per rating.  [default: 0.02]"),
    click.option("--l1-reg", type=OneOrTwo(0), help="L1 penalty on the factors, per rating.  [default: 0]"),
    click.option(
        "--step-size", type=NumberOrAuto(0, min_open=True), help="SGD step on ratings of unit spread.  [default: auto]"
    ),
    click.option("--step-decay", type=Number(0, min_open=True), help="Factor on the step per epoch.  [default: 1]"),
    click.option("--tol", type=Number(0), help="Stop when the cost changes by less than this share.  [default: 1e-5]"),
    click.option(
        "--patience",
        type=Whole(0),
        help="Stop when the holdout is no better for so many epochs, and take the best; 0 never.  [default: 5]",
    ),
)
rank_option = click.option(
    "--rank", type=Whole(1, MAX_RANK), help=f"Number of latent factors, up to {MAX_RANK}.  [default: 64]"
)
block_options = options(
    column_options,
    rating_option,
    weight_option,
    click.option(
        "--holdout",
        type=Number(0, 1, max_open=True),
        help="Share of the ratings to validate on.  [default: 0; to tune 0.1]",
    ),
    click.option(
        "--grid", type=Grid(), help="Numbers of row and column blocks.  [default: as coarse as memory allows]"
    ),
    click.option("--memory-per-task", type=Size(), help="Memory for the data of one task.  [default: 1 GiB]"),
    click.option(
        "--duplicates",
        type=Choice(["keep", "mean", "error"]),
        help="What to do with several ratings of an item by a user.  [default: keep]",
    ),
)
cluster_options = options(
    click.option(
        "--scheduler",
        metavar="ADDRESS|FILE",
        shell_complete=complete_file,
        help="Run on the Dask cluster of this scheduler: tcp://host:8786, tls://…, or a scheduler file.",
    ),
    click.option("--workers", type=Whole(1), help="Run on so many processes of this machine instead of threads."),
    *(
        click.option(
            f"--tls-{name}",
            metavar="FILE",
            shell_complete=complete_file,
            help=f"{what} (PEM), for tls://… and --workers.",
        )
        for name, what in (
            ("ca-file", "Certificate of the authority"),
            ("cert", "Certificate of this process"),
            ("key", "Its private key"),
        )
    ),
)
output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
)


def in_words(name: str, value: Any) -> list[str]:
    """Return a parameter of the public interface as the words of a command line that give it."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    if name == "bounds":
        return [flag, *map(str, value)]
    if isinstance(value, tuple | list):
        return [flag, ("x" if name == "grid" else ",").join(map(str, value))]
    return [flag, str(value)]


def given_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given: the defaults of the others stand in the public interface, once."""
    return {name: value for name, value in given.items() if value is not None and value is not False}


@contextlib.contextmanager
def client_for(given: dict[str, Any]) -> Iterator[Any]:
    """Take the `cluster_options` out of what was given, and yield a client of that cluster, or None for threads."""
    scheduler, workers = given.pop("scheduler", None), given.pop("workers", None)
    files = {name: given.pop(f"tls_{name}", None) for name in ("ca_file", "cert", "key")}
    places = {"--scheduler": scheduler, "--workers": workers, "--threads": given.get("threads")}
    if len(chosen := [flag for flag, value in places.items() if value is not None]) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} exclude one another: they say where to run")
    missing = [f"--tls-{name.replace('_', '-')}" for name, file in files.items() if file is None]
    if 0 < len(missing) < len(files):
        raise click.UsageError(f"TLS needs all three files; {' and '.join(missing)} missing")
    if scheduler is None and workers is None:
        if not missing:
            raise click.UsageError("the --tls options are for --scheduler and --workers")
        yield None
        return
    from distmf import cluster

    logging.getLogger("distributed").setLevel(logging.ERROR)  # below, of what the engine mends or explains
    # What is over already, or has not begun, when Ctrl-C ends it in the middle.
    for name in "distributed.diskutils", "asyncio", "tornado.application":
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tls = None if missing else cluster.Tls(**files)
    with cluster.connect(scheduler, tls) if workers is None else cluster.local_cluster(workers, tls) as client:
        yield client


def say(text: str) -> None:
    """Print text: with numbers and paths in colour on a terminal, plain elsewhere, and never wrapped."""
    from rich.console import Console

    Console(soft_wrap=True, markup=False, emoji=False).print(text)


class Report(NamedTuple):
    """Prints on standard output, where nothing else is drawn meanwhile.

    Attributes
    ----------
    as_json : bool
        Whether results are one JSON object, and not text.
    rest : callable
        Ends what is drawn.
    """

    as_json: bool
    rest: Callable[[], None]

    def __call__(self, found: dict[str, Any], text: str) -> None:
        """Print a result."""
        self.rest()
        if self.as_json:
            click.echo(json.dumps(found, allow_nan=False))
        else:
            say(text)

    def say(self, text: str) -> None:
        """Print text on the way to a result."""
        self.rest()
        say(text)


@contextlib.contextmanager
def reporting(*, as_json: bool, quiet: bool) -> Iterator[Report]:
    """Show on standard error how far work is, and yield what prints results."""
    from distmf.watching import watch

    with watch(quiet=quiet) as rest:
        yield Report(as_json, rest)
