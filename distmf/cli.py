"""The command line: arguments -> calls of the public interface; results -> text, or one JSON object."""

import contextlib
import io
import logging
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

import distmf
from distmf.arguments import similar
from distmf.choices import BOUNDS, FORMATS, MAX_SAMPLES, WAYS, Format
from distmf.clock import STARTED
from distmf.errors import DistMFError, NotFittedError, ParameterError
from distmf.options import (
    Choice,
    CountOrShare,
    Number,
    OneOrTwo,
    Whole,
    block_options,
    client_for,
    cluster_options,
    column_options,
    complete_file,
    complete_folder,
    given_options,
    memory_option,
    objective_options,
    output_options,
    rank_option,
    rating_option,
    reporting,
    seed_option,
    threads_option,
    weight_option,
)
from distmf.plan_command import plan
from distmf.progress import Progress
from distmf.report_command import report as report_model
from distmf.sizes import counted
from distmf.tune_command import tune

logger = logging.getLogger("distmf.cli")

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class _Group(click.Group):
    """Turns expected errors into exit codes: 1 for a problem, 2 for wrong usage, 130 for Ctrl-C."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as err:
            meant = similar(args[0], self.commands)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx) from err

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as err:
            there = [] if err.ctx is None else [each.name or "" for each in err.ctx.command.params]
            if err.possibilities or not (meant := similar(err.option_name, there)):
                raise
            hint = f"Did you mean '--{meant.replace('_', '-')}'?"
            raise click.UsageError(f"No such option {err.option_name!r}. {hint}", err.ctx) from err
        except ParameterError as err:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            message = str(err)
            if command is not None:
                ctx = click.Context(command, ctx, ctx.invoked_subcommand)
                message = _with_flags(message, command)
            raise click.UsageError(message, ctx) from err
        except (DistMFError, OSError) as err:
            click.echo(f"distmf: {err}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt as interrupt:
            click.echo(f"distmf: interrupted; {str(interrupt) or 'nothing was written'}", err=True)
            ctx.exit(INTERRUPTED)


def _with_flags(message: str, command: click.Command) -> str:
    """Return a message about parameters of the public interface, those that it begins with as options of a command."""
    flags = {parameter.name: parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"}
    begin = re.match(r"\w+(, \w+)*(?= (is|are|can|take)\b|:)", message)
    if begin is None or not flags.keys() >= set(names := begin[0].split(", ")):
        return message
    return ", ".join(flags[name] for name in names) + message[begin.end() :]


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="distmf")
def main() -> None:
    """Train biased matrix factorization on ratings that do not fit in memory.

    \b
    Try:    distmf demo
    Then:   distmf train ratings.parquet model --holdout 0.1
            distmf evaluate model test.parquet
            distmf recommend model recommendations
    """  # noqa: D301 (click reads the \b)
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # "×" on a terminal that knows only ASCII is no reason to stop
    # A batch system ends a job by SIGTERM: as with Ctrl-C, nothing is left half done.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@main.command()
@click.option("--seed", type=Whole(0, 2**63 - 1), default=0, show_default=True, help="Of everything random.")
@threads_option
@output_options
def demo(seed: int, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Show the main job on made-up ratings.

    Make ratings, block them, train, evaluate, recommend. The ratings are drawn from a known model plus noise, so that
    the best possible error is known.
    """
    from distmf.demo import run_demo

    with reporting(as_json=as_json, quiet=quiet) as report:
        report(*run_demo(seed, threads, say=lambda line: None if as_json or quiet else report.say(line)))


@main.command()
@click.argument("ratings", shell_complete=complete_file)
@click.argument("blocks", shell_complete=complete_folder)
@block_options
@rank_option
@seed_option
@threads_option
@memory_option
@cluster_options
@output_options
def block(ratings: str, blocks: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Block ratings once, to train on them many times.

    RATINGS is Parquet or text (.csv, .tsv, .dat): a file, a folder, a glob or a URL. BLOCKS is a folder, or the URL of
    one; blocks that are there are replaced.
    """
    from distmf.describe import describe

    with reporting(as_json=as_json, quiet=quiet) as report:
        given = given_options(given)
        with client_for(given) as client:
            distmf.block_ratings(ratings, blocks, client=client, **given)
        report(*describe(blocks))


@main.command()
@click.argument("ratings_or_blocks", shell_complete=complete_file)
@click.argument("model", shell_complete=complete_folder)
@rank_option
@click.option("--reg", type=OneOrTwo(0, auto=True), help="Regularisation of the factors, per rating.  [default: auto]")
@click.option(
    "--epochs",
    type=Whole(1, 2**31),
    help="Passes over the ratings, at most.  [default: 15; for each posterior sample 200]",
)
@objective_options
@click.option(
    "--target-cost",
    type=Number(0),
    help="Stop when the mean squared error, or the mean of another loss, is below this.",
)
@click.option("--max-seconds", type=Number(0), help="Stop after so many seconds of training.")
@click.option(
    "--posterior-samples",
    type=Whole(0, MAX_SAMPLES),
    help="Average over so many chains of draws from the posterior; there is no --reg to choose then.  [default: 0]",
)
@seed_option
@click.option(
    "--start",
    metavar="MODEL",
    shell_complete=complete_folder,
    help="Go on from a model: known ids keep their factors, new ones are added.",
)
@click.option(
    "--checkpoint",
    metavar="FOLDER",
    shell_complete=complete_folder,
    help="Save progress here; a folder or URL that all workers see.",
)
@click.option("--checkpoint-every", type=Whole(1), help="Epochs between checkpoints.  [default: 1]")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, if there is one.")
@threads_option
@memory_option
@cluster_options
@block_options
@output_options
def train(ratings_or_blocks: str, model: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train on ratings or blocks, and save the model.

    RATINGS_OR_BLOCKS is Parquet (a file, a folder, a glob or a URL), which is blocked in a temporary folder first, or
    what `distmf block` made. MODEL is a folder, or the URL of one; a model that is there is replaced. The options from
    --user to --duplicates are for raw ratings.

    With --start, the ratings are new ones, and what is not given by options is as in the model gone on from.

    With --checkpoint and --resume, the same command line does for the first run and for every restart: whatever was
    killed, the model is the same in the end.
    """
    from distmf.blocks import is_blocks
    from distmf.factorization import HYPERPARAMETERS
    from distmf.model import KIND
    from distmf.store import Folder, free_folder, refuse_nested

    given = given_options(given)
    hyperparameters = {name: given.pop(name) for name in HYPERPARAMETERS if name in given}
    start = distmf.load(given.pop("start")) if "start" in given else None
    mf = distmf.MatrixFactorization(**{**(start.hyperparameters if start else {}), **hyperparameters})
    places = ("scheduler", "workers", "tls_ca_file", "tls_cert", "tls_key", "threads", "memory")
    where = {name: given.pop(name) for name in (*places, "checkpoint", "checkpoint_every", "resume") if name in given}
    if where.get("checkpoint") == "":
        raise click.UsageError("--checkpoint is ''; give a folder or a URL")
    if "checkpoint" not in where:
        if "resume" in where:
            raise click.UsageError("--resume needs --checkpoint: the folder to go on from, and to save to at first")
        if "checkpoint_every" in where and not {"scheduler", "workers"} & where.keys():
            raise click.UsageError("--checkpoint-every needs --checkpoint: the folder to save to")
    with reporting(as_json=as_json, quiet=quiet) as report:
        others = [where["checkpoint"]] if "checkpoint" in where else []
        has_blocks = is_blocks(ratings_or_blocks)
        if has_blocks and given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise click.UsageError(f"{flags}: only for raw ratings, and these are blocks: {ratings_or_blocks}")
        if has_blocks or Path(ratings_or_blocks).is_dir():
            others.append(ratings_or_blocks)
        refuse_nested(free_folder(model, KIND), *map(Folder.at, others))  # an error now, not after the work
        try:
            with client_for(where) as client:
                mf.fit(ratings_or_blocks, start=start, client=client, **where, **given)
        except KeyboardInterrupt as interrupt:
            with contextlib.suppress(NotFittedError):
                mf.save(model)
                raise KeyboardInterrupt(f"the model after epoch {len(mf.history_)} is saved in {model}") from interrupt
            raise
        except (DistMFError, OSError):
            with contextlib.suppress(NotFittedError):  # before the first epoch there is nothing to tell
                done, place = len(mf.history_), where.get("checkpoint")
                if place:
                    click.echo(
                        f"distmf: {counted(done, 'epoch')} safe in {place}; go on from there with --resume", err=True
                    )
            raise
        mf.save(model)
        history, diagnosis = mf.history_, mf.diagnose()
        found: dict[str, Any] = {
            "epochs": len(history),
            "measure": history.measure,
            "train_error": history.train_error,
            "holdout_error": history.holdout_error,
            "train_rmse": history.train_rmse,
            "holdout_rmse": history.holdout_rmse,
            "seconds": time.perf_counter() - STARTED,
            "ratings_per_second": history.ratings_per_second,
            "stopped": history.stopped,
            "best_epoch": history.best_epoch,
            "diagnosis": diagnosis.codes,
        }
        report(found, f"{history.summary()}\n{diagnosis}\nsaved in {model} after {found['seconds']:.1f} s")


@main.command()
@click.argument("model", shell_complete=complete_folder)
@click.argument("ratings_or_blocks", shell_complete=complete_file)
@click.argument("out", shell_complete=complete_folder)
@column_options
@rating_option
@weight_option
@output_options
def fold_in(model: str, ratings_or_blocks: str, out: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Add users by their ratings, without training.

    The items of MODEL stay as they are, and each user of RATINGS_OR_BLOCKS (Parquet, or what `distmf block` made) is
    solved for; users that MODEL has are solved for anew, from these ratings only. The model with all of them is saved
    in OUT, which may be MODEL.
    """
    from distmf.model import KIND
    from distmf.store import free_folder, refuse_nested

    with reporting(as_json=as_json, quiet=quiet) as report:
        mf = distmf.load(model)
        n_before = len(mf.user_ids_)
        refuse_nested(free_folder(out, KIND))
        mf.fold_in(ratings_or_blocks, **given_options(given)).save(out)
        n_users = len(mf.user_ids_)
        added, saved = counted(n_users - n_before, "user"), f"the model of {counted(n_users, 'user')} is saved in {out}"
        report({"n_users": n_users, "n_new": n_users - n_before, "path": out}, f"{added} added; {saved}")


@main.command()
@click.argument("model", shell_complete=complete_folder)
@click.argument("ratings", shell_complete=complete_file)
@click.option("--ranking", metavar="N", type=Whole(1), help="Judge lists of the N best items as well.")
@click.option(
    "--relevant", type=Number(), help="For --ranking: ratings from which on an item was liked.  [default: all]"
)
@click.option(
    "--exclude",
    metavar="RATINGS",
    shell_complete=complete_folder,
    help="For --ranking: leave out what was trained on: these blocks or ratings.",
)
@column_options
@rating_option
@threads_option
@cluster_options
@output_options
def evaluate(
    model: str,
    ratings: str,
    ranking: int | None,
    relevant: float | None,
    exclude: str | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Compare predictions with ratings.

    RATINGS are some that MODEL was not trained on (Parquet or text), or blocks: those that are held out there.
    """
    from distmf.evaluation import in_words

    if ranking is None and (relevant is not None or exclude is not None):
        raise click.UsageError("--relevant and --exclude are for lists: give their length, as --ranking 10")
    with reporting(as_json=as_json, quiet=quiet) as report:
        given = given_options(given)
        lists: dict[str, Any] = {}
        with client_for(given) as client:
            mf = distmf.load(model) if client is None else model  # which each worker reads by itself
            found = distmf.evaluate(mf, ratings, client=client, **given)
            text = in_words(found)
            if ranking is not None:
                options = {"relevant": relevant, "exclude": exclude, "client": client, **given}
                lists = dict(distmf.evaluate_ranking(mf, ratings, ranking, **options))
                means = "  ".join(f"{name} {value:.4f}" for name, value in lists.items() if name != "n_users")
                text += f"\n{means}  over the {ranking} best for {counted(lists['n_users'], 'user')}"
        report({**found, **lists}, text)


@main.command()
@click.argument("ratings", shell_complete=complete_file)
@click.argument("out", shell_complete=complete_folder)
@click.option(
    "--by",
    type=Choice(WAYS),
    default="random",
    show_default=True,
    help="Test with ratings drawn from all, with some of each user, or with the last of each by time.",
)
@click.option(
    "--test-size",
    type=CountOrShare(),
    help="Share to test with, below 1; by user also how many of each.  [default: 0.1; last: 1]",
)
@column_options
@rating_option
@weight_option
@click.option("--time", metavar="COLUMN", help="Column of the times, for --by last.  [default: as it is called]")
@seed_option
@threads_option
@cluster_options
@output_options
def split(ratings: str, out: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Split ratings into some to train on and some to test with.

    RATINGS is as for `block`. OUT is a folder, or the URL of one, in which the folders train and test are written as
    Parquet; a split that is there is replaced. It depends on the ratings and the seed only.
    """
    with reporting(as_json=as_json, quiet=quiet) as report:
        given = given_options(given)
        with client_for(given) as client:
            found = distmf.split(ratings, out, client=client, **given)
        train, test = counted(found.n_train, "rating"), counted(found.n_test, "rating")
        report(found._asdict(), f"{train} in {found.train}, {test} in {found.test}")


@main.command()
@click.argument("model", shell_complete=complete_folder)
@click.argument("pairs", shell_complete=complete_file)
@click.argument("out", shell_complete=complete_file)
@column_options
@click.option("--no-clip", is_flag=True, help="Do not clip to the range of the ratings trained on.")
@click.option("--std", is_flag=True, help="Add a column `std`: how sure the model is. It needs --posterior-samples.")
@output_options
def predict(
    model: str, pairs: str, out: str, no_clip: bool, std: bool, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Predict the ratings of pairs of ids.

    PAIRS is Parquet or text with a column of users and one of items. OUT, Parquet or, if it is called so, .csv, has the
    columns of the ids, `prediction`, and `is_unseen`: whether the user or the item was not trained on.
    """
    import pyarrow as pa
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    from distmf.ratings import TEXT, open_ratings, read_piece
    from distmf.sources import as_parquet
    from distmf.store import new_file

    kind = Path(out).suffix.lower()
    if kind in TEXT and kind != ".csv":
        raise click.UsageError(f"{out}: predictions are written as Parquet or as .csv, not as {kind}")
    if Path(pairs).resolve() in (Path(out).resolve(), *Path(out).resolve().parents):
        raise click.UsageError(f"{out}: this is, or is in, what is to be predicted; choose another name")
    with reporting(as_json=as_json, quiet=quiet) as report:
        trained, names = distmf.load(model).model_, {"user": given["user"], "item": given["item"]}
        with as_parquet(pairs, None, names) as (parquet, columns):
            source, n_unseen = open_ratings(parquet, columns), 0
            progress = Progress(logger, "predicting", source.n_rows)
            more = {"std": pa.float32()} if std else {}
            schema = pa.schema({**source.id_types, "prediction": pa.float32(), "is_unseen": pa.bool_(), **more})
            new_writer = CSVWriter if kind == ".csv" else ParquetWriter
            with new_file(out) as file, new_writer(file, schema) as writer:
                for piece in source.pieces:
                    for batch in read_piece(source, piece):
                        predicted = trained.predict(batch.user, batch.item, clip=not no_clip, with_stds=std)
                        arrays = [batch.user, batch.item, *predicted[: 3 if std else 2]]
                        writer.write_table(pa.table(arrays, schema=schema))
                        progress.advance(len(predicted.ratings))
                        n_unseen += int(predicted.is_unseen.sum())
        found = {"n": source.n_rows, "n_unseen": n_unseen, "path": out}
        report(found, f"{source.n_rows:,} predictions in {out}; {n_unseen:,} with an unseen user or item")


@main.command()
@click.argument("model", shell_complete=complete_folder)
@click.argument("out", shell_complete=complete_folder)
@click.option(
    "--users",
    metavar="FILE",
    shell_complete=complete_file,
    help="Parquet or text with the ids of the users.  [default: all that were trained on]",
)
@click.option("--user", metavar="COLUMN", help="Column of the ids in --users.  [default: user_id, or as it is called]")
@click.option("-n", type=Whole(1), default=10, show_default=True, help="Items for each user.")
@click.option(
    "--exclude",
    metavar="RATINGS",
    shell_complete=complete_folder,
    help="Leave out what the users rated in these blocks or ratings.",
)
@click.option(
    "--among",
    metavar="FILE",
    shell_complete=complete_file,
    help="Parquet or text with the ids of items: recommend only these.",
)
@click.option(
    "--without",
    metavar="FILE",
    shell_complete=complete_file,
    help="Parquet or text with the ids of items: leave these out.",
)
@click.option(
    "--item",
    metavar="COLUMN",
    help="Column of the ids in --among and --without.  [default: item_id, or as it is called]",
)
@click.option(
    "--bound",
    type=Choice(list(BOUNDS)),
    default="mean",
    show_default=True,
    help="Rank by the prediction, or one standard deviation above or below; that needs --posterior-samples.",
)
@threads_option
@cluster_options
@output_options
def recommend(
    model: str, out: str, user: str | None, item: str | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Write the best items of each user.

    OUT is a folder of Parquet files, or the URL of one, with the columns `user_id`, `item_id`, `score` and `rank` (from
    1), by user and best first; recommendations that are there are replaced. If the command is killed, it goes on where
    it was when it is called again.
    """
    from distmf.sources import ids_of

    given = given_options(given)
    with reporting(as_json=as_json, quiet=quiet) as report:
        for name in given.keys() & {"users", "among", "without"}:
            given[name] = ids_of(given[name], *(("user", user) if name == "users" else ("item", item)))
        with client_for(given) as client:
            n_rows = distmf.recommend_all(model, out, client=client, **given)
        report({"n": n_rows, "path": out}, f"{counted(n_rows, 'recommendation')} in {out}")


@main.command()
@click.argument("model", shell_complete=complete_folder)
@click.argument("out", shell_complete=complete_folder)
@click.option("--format", "kind", type=Choice(FORMATS), default="parquet", show_default=True, help="Of the files.")
@output_options
def export(model: str, out: str, kind: Format, as_json: bool, quiet: bool) -> None:
    """Write vectors for an index of nearest neighbours.

    The inner product of the vector of a user and that of an item is the predicted rating: biases are folded in. OUT is
    a folder, or the URL of one, with users.parquet and items.parquet, or for NumPy users.npy, items.npy and the ids
    beside them; vectors that are there are replaced.
    """
    with reporting(as_json=as_json, quiet=quiet) as report:
        n_users, n_items = distmf.export(model, out, kind)
        text = f"vectors of {counted(n_users, 'user')} and {counted(n_items, 'item')} in {out}"
        report({"n_users": n_users, "n_items": n_items, "path": out}, text)


@main.command()
@click.argument("path", shell_complete=complete_folder)
@output_options
def inspect(path: str, as_json: bool, quiet: bool) -> None:
    """Say what blocks, a checkpoint or a model hold.

    PATH is a folder, or the URL of one.
    """
    from distmf.describe import describe

    with reporting(as_json=as_json, quiet=quiet) as report:
        report(*describe(path))


main.add_command(plan)
main.add_command(tune)
main.add_command(report_model)
