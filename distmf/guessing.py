"""Names of columns -> which has the users, the items, the ratings, the times. Between two, nothing is guessed."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from distmf.errors import RatingsError
from distmf.ratings import Columns, check_columns, check_distinct

logger = logging.getLogger(__name__)

# What columns are often called, in small letters and without what stands between words.
KNOWN = {
    "user": ("userid", "user", "uid", "customerid", "customer"),
    "item": ("itemid", "item", "iid", "movieid", "movie", "productid", "product", "bookid", "trackid", "asin", "isbn"),
    "rating": ("rating", "ratings", "score", "stars", "bookrating"),
    "time": ("timestamp", "time", "date", "datetime", "ratedat"),
}
INDEX = "__index_level_"  # how the names of columns begin that pandas makes of an index without one


def pair_columns_in(there: Sequence[str], names: dict[str, str | None], source: str) -> Columns:
    """Return the columns of users and items: as `columns_in`, and of two columns the one whose name is not known."""
    own = [name for name in there if not name.startswith(INDEX)]
    if len(own) == 2 and not any(names.values()):
        user, item = (only_one_of(own, KNOWN[what], what, source) for what in names)
        other: dict[str | None, str | None] = {own[0]: own[1], own[1]: own[0], None: None}
        names = {"user": user or other[item], "item": item or other[user]}
    try:
        return columns_in(own, names, source)
    except RatingsError as err:
        raise RatingsError(f"{err}; or give an array of shape (n, 2), users first") from err


def only_one_of(there: Sequence[str], known: Sequence[str], what: str, source: str) -> str | None:
    """Return the only column with one of some names, in small letters and without what stands between words.

    Raises
    ------
    RatingsError
        If there are several.
    """
    fitting = list(dict.fromkeys(other for other in there if re.sub(r"[^a-z0-9]", "", other.lower()) in known))
    if len(fitting) > 1:
        raise RatingsError(
            f"{source}: the {what} may be in {' or '.join(map(repr, fitting))}; say in which by {what}= (--{what})"
        )
    return fitting[0] if fitting else None


def columns_in(there: Sequence[str], names: dict[str, str | None], source: str) -> Columns:
    """Return the columns to read: as they are named, or as the only one of a name that is known."""
    found: dict[str, Any] = {}
    for what, known in KNOWN.items():
        if names.get(what) is not None or what not in names:
            found[what] = names.get(what)
            continue
        found[what] = only_one_of(there, known, what, source) or getattr(Columns(), what) or "timestamp"
    columns = Columns(**found, weight=names.get("weight"))
    check_distinct(columns, source)
    check_columns(there, columns, source)
    guessed = {what: name for what, name in found.items() if what in names and names[what] is None}
    if any(name != getattr(Columns(), what) for what, name in guessed.items()):
        logger.info("%s: %s", source, ", ".join(f"{what}s are in {name!r}" for what, name in guessed.items()))
    return columns
