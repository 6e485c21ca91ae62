"""Amounts of memory and rates as people write them -> bytes and bytes per second, and back."""

import re

from distmf.errors import ParameterError

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("b", 1000), ("ib", 1024))
}

_BITS = {f"{prefix}bit": 1000**power / 8 for power, prefix in enumerate(("", "k", "m", "g", "t"))}


def counted(n: int, what: str) -> str:
    """Return so many of something in words.

    Examples
    --------
    >>> counted(1, "epoch"), counted(2000, "epoch")
    ('1 epoch', '2,000 epochs')
    """
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def parse_bytes(size: int | str, name: str = "") -> int:
    """Return a number of bytes, given as an integer or as text such as ``"1 GiB"``, ``"500MB"`` or ``"2g"``.

    Raises
    ------
    ParameterError
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
        what = f"{name} is {size!r}, which" if name else repr(size)
        raise ParameterError(f"{what} is not an amount of memory; write for example '1 GiB' or '500MB'")
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


def at_least(n_bytes: int) -> str:
    """Return an amount as people read it that is not less: to be given where so much is needed.

    Examples
    --------
    >>> at_least(1500), format_bytes(1500)
    ('1.5 KiB', '1.5 KiB')
    >>> at_least(1585), format_bytes(1585)
    ('1.6 KiB', '1.5 KiB')
    """
    text = format_bytes(n_bytes)
    unit = parse_bytes(f"1 {text.split()[1]}")
    return text if parse_bytes(text) >= n_bytes else format_bytes(n_bytes + unit // 10)


def parse_rate(rate: str) -> float:
    """Return bytes per second, given as bits or bytes such as ``"10Gbit"``, ``"1.2 GB/s"`` or ``"500MiB"``.

    Raises
    ------
    ParameterError
        If it is not positive or not a rate, or if b could mean bits as well as bytes.

    Examples
    --------
    >>> parse_rate("10Gbit"), parse_rate("1.2 GB/s")
    (1250000000.0, 1200000000.0)
    """
    amount, _, per = str(rate).partition("/")
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]+)\s*", amount)
    unit = match[2] if match else ""
    is_clear = unit.lower() in _BITS or unit.endswith("B")
    factor = _BITS.get(unit.lower()) or _UNITS.get(unit.lower(), 0)
    try:
        bytes_per_second = float(match[1]) * factor if match and is_clear and per.strip() in ("", "s") else 0.0
    except ValueError:
        bytes_per_second = 0.0
    if bytes_per_second <= 0:
        raise ParameterError(
            f"{rate!r} is not a rate; write for example '10Gbit' for bits or '1.2GB/s' for bytes a second"
        )
    return bytes_per_second


def format_rate(bytes_per_second: float) -> str:
    """Return bytes per second as people read them.

    Examples
    --------
    >>> format_rate(1_250_000_000)
    '1.25 GB/s'
    """
    for unit, factor in ("GB", 1e9), ("MB", 1e6), ("kB", 1e3):
        if bytes_per_second >= factor:
            return f"{bytes_per_second / factor:.3g} {unit}/s"
    return f"{bytes_per_second:.3g} B/s"
