"""What people wrote, and what they could have meant: names of arguments, and words to choose from. Pure: no files."""

import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from distmf.errors import ParameterError

# What other libraries call a thing, and people who know them, and what it may be here.
ELSEWHERE = {
    **dict.fromkeys(("n_factors", "factors", "n_components", "dim", "embedding_dim"), ("rank",)),
    **dict.fromkeys(("n_epochs", "iterations", "n_iter", "max_iter", "niter"), ("epochs",)),
    **dict.fromkeys(("learning_rate", "lr", "lr_all", "eta"), ("step_size",)),
    **dict.fromkeys(("regularization", "reg_all", "reg_param", "lambda", "alpha"), ("reg",)),
    **dict.fromkeys(("random_state", "random_seed"), ("seed",)),
    **dict.fromkeys(("n_jobs", "num_threads", "nthreads", "n_threads"), ("threads",)),
    **dict.fromkeys(("validation_split", "validation", "eval_set", "test_size"), ("holdout",)),
    **dict.fromkeys(("k", "N", "top_n", "topn", "top_k", "n_items"), ("n", "rank")),
    **dict.fromkeys(("filter_already_liked_items", "filter_rated", "seen", "rated"), ("exclude",)),
    **dict.fromkeys(("items", "allow", "allowed", "allow_list", "candidates"), ("among",)),
    **dict.fromkeys(("deny", "denied", "deny_list", "filter_items"), ("without",)),
    "threshold": ("relevant",),
    **dict.fromkeys(("mse", "rmse", "l2", "squared_error"), ("squared",)),
    **dict.fromkeys(("mae", "l1", "absolute_error"), ("absolute",)),
    **dict.fromkeys(("log_loss", "logloss", "binary", "bce", "cross_entropy"), ("logistic",)),
    **dict.fromkeys(("time", "leave_last_out", "leave_one_out", "temporal"), ("last",)),
}
LONGEST = 80  # characters of a value in a message

P = ParamSpec("P")
R = TypeVar("R")


def similar(word: object, words: Iterable[str]) -> str | None:
    """Return the one of some words that may be meant, None if there is none like it.

    What other libraries call a thing is known.

    Examples
    --------
    >>> similar("hubr", ["squared", "huber"])
    'huber'
    """
    words = list(words)
    known = [each for each in ELSEWHERE.get(str(word).strip("-_").replace("-", "_"), ()) if each in words]
    return next(iter([*known, *difflib.get_close_matches(str(word), words, n=1)]), None)


def said(value: object) -> str:
    """Return a value as a message shows it: on one line, and not all of it if it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def did_you_mean(word: object, words: Iterable[str]) -> str:
    """Return the end of a message about a word that is none of some words: empty if none is like it.

    Examples
    --------
    >>> did_you_mean("hubr", ["squared", "huber"])
    "; did you mean 'huber'?"
    """
    meant = similar(word, words)
    return "" if meant is None else f"; did you mean {meant!r}?"


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is none of some words.

    Raises
    ------
    ParameterError
        With the choices, and the one that may be meant.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        *some, last = map(repr, choices)
        raise ParameterError(
            f"{name} is {value!r}; it can be {', '.join(some)} or {last}{did_you_mean(value, choices)}"
        )


def check_whole(name: str, value: object, least: int = 1, most: int = 2**63 - 1) -> None:
    """Refuse what is no whole number in a range.

    Raises
    ------
    ParameterError
        With the range.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and least <= value <= most):  # type: ignore[operator]
        allowed = f"at least {least:,}" if most == 2**63 - 1 else f"from {least:,} to {most:,}"
        raise ParameterError(f"{name} is {said(value)}; it is a whole number, {allowed}")


def check_names(given: Iterable[str], *functions: Callable[..., Any]) -> None:
    """Refuse names of arguments that the first of some functions has not, nor the others, to which it passes them on.

    Raises
    ------
    ParameterError
        With the name that may be meant, or else all.
    """
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    first, *others = (inspect.signature(function).parameters.values() for function in functions)
    # What the others cannot do without is not for whoever calls the first.
    parameters = [*first, *(each for some in others for each in some if each.default is not each.empty)]
    names = list(dict.fromkeys(each.name for each in parameters if each.kind in kinds and each.name != "self"))
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
            called = functions[0].__qualname__.removesuffix(".__init__").rpartition(".")[-1]
            raise ParameterError(f"{called} has no argument {name!r}{hint}")


def names_checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function refuse arguments by names that it has not as `check_names` does."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_names(kwargs, function)
        return function(*args, **kwargs)

    return call
