"""Kills at random moments; `python -m tests.faults` has more of them."""

from pathlib import Path

from tests.faults import draw, torment


def test_faults__leave_the_model_as_it_is(tmp_path: Path) -> None:
    kills = draw(5, 40, seed=6)
    assert {kill.victim for kill in kills} == {"driver", "worker", "worker and nanny"}
    torment(tmp_path, kills, n_epochs=40, n_workers=2, n_ratings=300_000, seed=6)
