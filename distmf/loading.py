"""Models in memory and models in folders, each as what it is needed for."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distmf.errors import ParameterError
from distmf.factorization import MatrixFactorization
from distmf.model import KIND, Model
from distmf.parameters import checked
from distmf.store import Folder, temporary_folder


def load(path: str | Path) -> MatrixFactorization:
    """Return the model that was saved at a path or fsspec URL.

    Raises
    ------
    StoreError
        If there is none, or it is damaged or of another version.
    """
    model, settings = Model.load(Folder.at(path))
    mf = MatrixFactorization(**checked(settings))  # JSON knows no pairs
    mf._model = model
    return mf


def loaded(mf: MatrixFactorization | str | Path, name: str = "mf") -> MatrixFactorization:
    """Return a trained model, read if its path is given; `name` is that of the argument, for messages.

    Raises
    ------
    NotFittedError
        Before training.
    ParameterError
        If it is something else.
    StoreError
        If there is none in the folder.
    """
    if isinstance(mf, str | Path):
        return load(mf)
    if not isinstance(mf, MatrixFactorization):
        raise ParameterError(f"{name} is of type {type(mf).__name__}; it is a trained model, or the folder of one")
    mf.model_  # noqa: B018 (raises if there is none)
    return mf


def model_of(mf: MatrixFactorization | str | Path, client: Any) -> Model | Folder:
    """Return a model as `loaded` does; or the folder of it, for the workers of a cluster to read."""
    if client is None or not isinstance(mf, str | Path):
        return loaded(mf).model_
    folder = Folder.at(mf)
    folder.read_manifest(KIND)
    return folder


@contextlib.contextmanager
def saved(model: MatrixFactorization | str | Path, out: str | Path) -> Iterator[Folder]:
    """Yield the folder of a model; one in memory, as `loaded` takes it, is saved beside `out` for the time being."""
    if isinstance(model, str | Path):
        yield Folder.at(model)
        return
    mf = loaded(model, "model")
    with temporary_folder(f"{str(out).rstrip('/')}.model") as folder:
        mf.save(str(folder))
        yield folder
