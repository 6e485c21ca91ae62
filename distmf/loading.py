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


def loaded(mf: MatrixFactorization | str | Path) -> MatrixFactorization:
    """Return a trained model, read if its path is given.

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
        raise ParameterError(f"mf is of type {type(mf).__name__}; it is a trained model, or the folder of one")
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
    """Yield the folder of a saved model; one in memory is saved beside `out`, and gone afterwards.

    Raises
    ------
    NotFittedError
        Before training.
    ParameterError
        If it is something else.
    """
    if isinstance(model, MatrixFactorization):
        with temporary_folder(f"{str(out).rstrip('/')}.model") as folder:
            model.save(str(folder))
            yield folder
    elif isinstance(model, str | Path):
        yield Folder.at(model)
    else:
        raise ParameterError(f"model is of type {type(model).__name__}; it is a trained model, or the folder of one")
