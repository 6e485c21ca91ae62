"""Amounts of memory, read and written."""

import pytest

from distmf.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1 GiB", 2**30), ("500MB", 500_000_000), ("2g", 2**31), ("1.5 KiB", 1536), (12, 12), ("7", 7), ("1TiB", 2**40)],
)
def test_parse_bytes(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "1 XB", "-1", 0, "1.2.3", "0.1", "nan", None])
def test_parse_bytes__refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount of memory; write for example '1 GiB'"):
        parse_bytes(text)


def test_format_bytes__reads_well() -> None:
    assert [format_bytes(n) for n in (0, 999, 1536, 2**30, 5 * 2**40)] == [
        "0 B",
        "999 B",
        "1.5 KiB",
        "1.0 GiB",
        "5.0 TiB",
    ]
