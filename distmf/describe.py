"""A folder that distmf wrote -> what it is: numbers for a program, and words for a person."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from distmf.blocks import Blocks, is_blocks, open_blocks
from distmf.checkpoint import KIND as CHECKPOINT
from distmf.checkpoint import read_checkpoint
from distmf.errors import StoreError
from distmf.factorization import MatrixFactorization
from distmf.halving import KIND as TUNING
from distmf.halving import Candidate, read_tuning
from distmf.loading import load
from distmf.lock import holder_of
from distmf.losses import LOSSES
from distmf.memory import Sizes, TrainingBytes, both_ways, in_words
from distmf.model import KIND as MODEL
from distmf.sizes import format_bytes
from distmf.store import Folder

RANKS = 16, 64, 256  # for which the memory is said


def describe(path: str | Path) -> tuple[dict[str, Any], str]:
    """Return what lies at a path or URL, in numbers and in words.

    Raises
    ------
    StoreError
        If it is nothing that distmf wrote, or damaged.
    """
    folder = Folder.at(path)
    if is_blocks(path):
        return _describe_blocks(open_blocks(path))
    if folder.is_a(MODEL):
        return _describe_model(load(path), str(folder))
    if folder.is_a(CHECKPOINT):
        return _describe_checkpoint(folder)
    if folder.is_a(TUNING):
        return _describe_tuning(folder)
    if kind := folder.kind():
        raise StoreError(f"{folder}: this is of the kind {kind!r}; there is no more to say of it")
    what = "there are no blocks, checkpoint, model or tuning in it" if folder.exists() else "it does not exist"
    raise StoreError(f"{folder}: {what}; distmf block, train and tune write such folders")


def _describe_blocks(blocks: Blocks) -> tuple[dict[str, Any], str]:
    per_block = np.array([entry.n_train for entry in blocks.entries.values()])
    n_bytes = sum(entry.length for entry in blocks.entries.values())
    n_all = blocks.n_ratings + blocks.n_holdout
    memory = {rank: _needs(blocks, rank) for rank in RANKS}
    ids = {side: str(blocks.id_type(side)) for side in ("user", "item")}
    found = {
        "kind": "blocks",
        "path": blocks.path,
        "n_users": blocks.n_users,
        "n_items": blocks.n_items,
        "n_ratings": blocks.n_ratings,
        "n_holdout": blocks.n_holdout,
        "n_duplicates": blocks.settings["n_duplicates"],
        "noise": blocks.settings["noise"],
        "user_id_type": ids["user"],
        "item_id_type": ids["item"],
        "mean": blocks.moments.mean,
        "std": blocks.moments.std,
        "rating_range": list(blocks.rating_range),
        "grid": list(blocks.shape),
        "tile_shape": list(blocks.layout.tile_shape),
        "ratings_per_block": {
            "least": int(per_block.min()),
            "median": float(np.median(per_block)),
            "most": int(per_block.max()),
        },
        "bytes_per_rating": n_bytes / n_all,
        "bytes": n_bytes,
        "seed": blocks.settings["seed"],
        "holdout": blocks.settings["holdout"],
        "duplicates": blocks.settings["duplicates"],
        "memory": {
            f"rank {rank}": {way: {**needs._asdict(), "total": needs.total} for way, needs in ways.items()}
            for rank, ways in memory.items()
        },
    }
    repeated = f"{blocks.settings['n_duplicates']:,} repeat a pair (duplicates: {blocks.settings['duplicates']})"
    if blocks.settings["noise"] is not None:
        repeated += f", and show a noise of standard deviation {blocks.settings['noise']:.4f}"
    tile_rows, tile_cols = blocks.layout.tile_shape
    lines = {
        "users": f"{blocks.n_users:,} ({ids['user']})",
        "items": f"{blocks.n_items:,} ({ids['item']})",
        "ratings": f"{blocks.n_ratings:,} to train on, {blocks.n_holdout:,} held out",
        "duplicates": repeated,
        "values": f"{blocks.rating_range[0]:g} to {blocks.rating_range[1]:g}, mean {found['mean']:.4f}, "
        f"standard deviation {found['std']:.4f}",
        "grid": f"{blocks.shape.rows} × {blocks.shape.cols} blocks, in tiles of {tile_rows} × {tile_cols}",
        "per block": f"{per_block.min():,} ratings at least, {np.median(per_block):,.0f} in the median, "
        f"{per_block.max():,} at most",
        "on disk": f"{format_bytes(n_bytes)}, {n_bytes / n_all:.2f} bytes a rating, values as {blocks.layout.encoding}",
        "seed": str(blocks.settings["seed"]),
        **{f"rank {rank}": _training_in_words(ways) for rank, ways in memory.items()},
    }
    return found, _in_words(f"Blocks in {blocks.path}", lines)


def _needs(blocks: Blocks, rank: int) -> dict[str, TrainingBytes]:
    """Return the least bytes in which as many threads as this process may use can train on blocks, in either way."""
    return both_ways(Sizes.of(blocks, rank), len(os.sched_getaffinity(0)), 0)


def _training_in_words(needs: dict[str, TrainingBytes]) -> str:
    in_memory, on_disk = (
        f"{format_bytes(needs[name].total)} ({in_words(needs[name])})" for name in ("in_memory", "users_on_disk")
    )
    return f"trains in {in_memory}, or with users on disk in {on_disk}"


def _describe_checkpoint(folder: Folder) -> tuple[dict[str, Any], str]:
    settings, states = read_checkpoint(folder)
    epochs = [len(history) for history in states]
    last = states[-1][-1] if states and states[-1] else None
    driver, measure = holder_of(folder), LOSSES[settings["loss"]].measure
    found = {
        "kind": "checkpoint",
        "path": str(folder),
        "epochs": epochs[-1] if epochs else 0,
        "states": epochs,
        "measure": measure,
        "train_error": last and last.train_error,
        "holdout_error": last and last.holdout_error,
        "settings": settings,
        "driver": driver,
    }
    holdout = "" if last is None or last.holdout_error is None else f", holdout {measure} {last.holdout_error:.4f}"
    errors = f"; train {measure} {last.train_error:.4f}{holdout} in the last of them" if last else ""
    lines = {
        "epochs": f"{found['epochs']:,} of {settings['epochs'] * max(1, settings['posterior_samples']):,} done{errors}",
        "kept": f"the states after epoch {' and '.join(f'{n:,}' for n in epochs)}" if epochs else "nothing yet",
        "driver": driver or "none; distmf train … --checkpoint FOLDER --resume goes on",
        **{name: _value(value) for name, value in settings.items() if name != "epochs"},
    }
    return found, _in_words(f"Checkpoint in {folder}", lines)


def _describe_tuning(folder: Folder) -> tuple[dict[str, Any], str]:
    what, candidates = read_tuning(folder)
    ended = sorted((each for each in candidates if each.is_whole), key=Candidate.error)
    driver, measure = holder_of(folder), LOSSES[what["loss"]].measure
    best = ended[0] if ended else None
    found = {
        "kind": "tuning",
        "path": str(folder),
        "candidates": len(candidates),
        "ended": len(ended),
        "best": best and best.settings._asdict(),
        "measure": measure,
        "holdout_error": best and best.holdout_error,
        "settings": what,
        "driver": driver,
    }
    lines = {
        "candidates": f"{len(candidates)} trained, {len(ended)} of them to the end",
        "best": f"{best.settings}: holdout {measure} {best.holdout_error:.4f}" if best else "none so far",
        "driver": driver or "none; distmf tune … --checkpoint FOLDER goes on",
        **{name: _value(value) for name, value in what.items()},
    }
    return found, _in_words(f"Tuning in {folder}", lines)


def _describe_model(mf: MatrixFactorization, path: str) -> tuple[dict[str, Any], str]:
    model, history = mf.model_, mf.history_
    found = {
        "kind": "model",
        "path": path,
        "n_users": len(model.users.ids),
        "n_items": len(model.items.ids),
        "n_ratings": int(model.users.counts.sum()),
        "user_id_type": str(model.users.ids.type),
        "item_id_type": str(model.items.ids.type),
        "global_bias": model.global_bias,
        "rating_range": list(model.rating_range),
        "hyperparameters": mf.hyperparameters,
        "epochs": len(history),
        "stopped": history.stopped,
        "measure": history.measure,
        "train_error": history.train_error,
        "holdout_error": history.holdout_error,
        "train_rmse": history.train_rmse,
        "holdout_rmse": history.holdout_rmse,
    }
    lines = {
        "users": f"{found['n_users']:,} ({found['user_id_type']})",
        "items": f"{found['n_items']:,} ({found['item_id_type']})",
        "trained on": f"{found['n_ratings']:,} ratings from {model.rating_range[0]:g} to {model.rating_range[1]:g}, "
        f"mean {model.global_bias:.4f}",
        "training": history.summary(),
        **{name: _value(value) for name, value in mf.hyperparameters.items()},
    }
    return found, _in_words(f"Model in {path}", lines)


def _value(value: Any) -> str:
    """Return a setting as people write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _in_words(title: str, lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines.items())])
