"""Amounts of memory as people write them -> bytes, and back."""

import re

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("b", 1000), ("ib", 1024))
}


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes, given as an integer or as text such as ``"1 GiB"``, ``"500MB"`` or ``"2g"``.

    Raises
    ------
    ValueError
        If it is not positive or not an amount of memory.

    Examples
    --------
    >>> parse_bytes("1.5 KiB")
    1536
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(size))
    try:
        n_bytes = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    except (KeyError, ValueError):
        n_bytes = 0
    if n_bytes <= 0:
        raise ValueError(f"{size!r} is not an amount of memory; write for example '1 GiB' or '500MB'")
    return n_bytes


def format_bytes(n_bytes: int) -> str:
    """Return a number of bytes as people read it.

    Examples
    --------
    >>> format_bytes(1536)
    '1.5 KiB'
    """
    size, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
