"""What people wrote, and what they could have meant: names of arguments, and words to choose from. Pure: no files."""

import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from distmf.errors import ParameterError

# What Surprise, implicit, Spark, cmfrec and scikit-learn call it, and what it is here.
ELSEWHERE = {
    **dict.fromkeys(("n_factors", "factors", "k", "n_components", "dim", "embedding_dim"), "rank"),
    **dict.fromkeys(("n_epochs", "iterations", "n_iter", "max_iter", "niter"), "epochs"),
    **dict.fromkeys(("learning_rate", "lr", "lr_all", "eta"), "step_size"),
    **dict.fromkeys(("regularization", "reg_all", "reg_param", "lambda", "alpha"), "reg"),
    **dict.fromkeys(("random_state", "random_seed"), "seed"),
    **dict.fromkeys(("n_jobs", "num_threads", "nthreads"), "threads"),
    **dict.fromkeys(("test_share", "validation_split", "validation"), "holdout"),
}

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
    if (known := ELSEWHERE.get(str(word).strip("-_").replace("-", "_"))) in words:
        return known
    return next(iter(difflib.get_close_matches(str(word), list(words), n=1)), None)


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
        raise ParameterError(f"{name} is {value!r}; it is a whole number, {allowed}")


def check_names(given: Iterable[str], *functions: Callable[..., Any]) -> None:
    """Refuse names of arguments that the first of some functions has not, nor the others, to which it passes them on.

    Raises
    ------
    ParameterError
        With the name that may be meant, or else all.
    """
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [each for function in functions for each in inspect.signature(function).parameters.values()]
    names = list(dict.fromkeys(each.name for each in parameters if each.kind in kinds and each.name != "self"))
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
            called = functions[0].__qualname__.removesuffix(".__init__")
            raise ParameterError(f"{called} has no argument {name!r}{hint}")


def names_checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function refuse arguments by names that it has not as `check_names` does."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_names(kwargs, function)
        return function(*args, **kwargs)

    return call
