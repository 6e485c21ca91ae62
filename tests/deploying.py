"""What a deployment's files may say: command lines that parse, settings that Dask knows. Runs its tools."""

import ast
import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import dask.config
import distributed  # noqa: F401 (adds its settings to those of dask)
import pytest
from distributed.cli import dask_scheduler, dask_worker

from distmf.cli import main

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DEFAULTS = copy.deepcopy(dask.config.config)  # as they come: a scheduler in this process adds to a list of them

# Tools of the extra `deploy` lie beside the interpreter, which need not be on the PATH; daemons lie in /usr/sbin.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])


def needs(*tools: str, install: str = "pip install '.[deploy]'") -> pytest.MarkDecorator:
    """Return a mark that skips a test where tools are missing, and says which."""
    missing = [tool for tool in tools if shutil.which(tool, path=PATH) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}: {install}")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PATH": PATH, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)


def elsewhere(command: click.Command) -> click.Command:
    """Return a command that takes the names of files on another machine: they need not exist here."""
    command = copy.deepcopy(command)
    for option in command.params:
        if isinstance(option.type, click.Path):
            option.type.exists = False
    return command


COMMANDS: dict[tuple[str, str], click.Command] = {
    ("dask", "scheduler"): elsewhere(dask_scheduler.main),
    ("dask", "worker"): elsewhere(dask_worker.main),
    **{("distmf", name): elsewhere(command) for name, command in main.commands.items()},
}


def parse(command: Sequence[str]) -> dict[str, object]:
    """Return the options of a command line by name, as the command itself reads them.

    Raises
    ------
    click.ClickException
        If the command, or one of its options, does not exist, or a value is not allowed.
    """
    program, name, *arguments = command
    if (program, name) not in COMMANDS:
        raise click.UsageError(f"No such command '{program} {name}'.")
    parser = COMMANDS[program, name]
    known = {flag for option in parser.params for flag in (*option.opts, *option.secondary_opts)}
    for argument in arguments:  # `dask worker` takes what it does not know for names of modules
        if argument.startswith("-") and argument.partition("=")[0] not in known:
            raise click.NoSuchOption(argument)
    return parser.make_context(name, arguments).params


def command_problems(command: Sequence[str]) -> list[str]:
    """Return what is wrong with a command line."""
    try:
        parse(command)
    except click.ClickException as err:
        return [f"{' '.join(command[:2])}: {err.format_message()}"]
    return []


def setting_problems(environment: Mapping[str, str]) -> list[str]:
    """Return what is wrong with settings of Dask in environment variables: unknown names, lost items of lists."""
    found = []
    for name, value in environment.items():
        if not name.startswith("DASK_DISTRIBUTED__"):
            continue
        key = name.removeprefix("DASK_").lower().replace("__", ".")
        default = dask.config.get(key, found, DEFAULTS)  # any value that no setting has, to tell "unknown" from None
        if default is found:
            found.append(f"{name}: Dask has no setting {key}")
            continue
        lost = set(default) - set(ast.literal_eval(value)) if isinstance(default, list) else set()
        if lost:
            found.append(f"{name}: {', '.join(sorted(lost))} would be lost")
    return found
