"""What a long pass says while it is under way."""

import logging

import pytest

from distmf.progress import Progress


def test_advance__says_how_far_it_is_and_how_long_it_will_take(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = Progress(logging.getLogger("distmf"), "counting", 4_000)
    with caplog.at_level(logging.INFO, logger="distmf"):
        for seconds, n_ratings in ((4.0, 500), (4.0, 500), (4.0, 1_000), (8.0, 2_000)):
            now += seconds
            progress.advance(n_ratings)
    assert caplog.messages == ["counting: 25 % of 4,000 ratings, 24 s left"]
