"""numba's compiler, with the machine code that it makes kept for the processes to come.

Compiling takes seconds, which every short command and every new worker would wait for. numba's own cache looks at a
function's own file only, does not know closures over compiled functions again, and processes that write to it at the
same time may get each other's code. Here a file's name says all that its machine code depends on, so it is never
changed, and nobody needs to wait for anybody.
"""

import functools
import hashlib
import logging
import os
import pickle
import platform
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba as nb
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult

from distmf.filesystem import url_to_fs, whole_file

UNREACHABLE = OSError, RuntimeError  # no such file, no room for it, no home

DIGEST_BYTES = 16

logger = logging.getLogger(__name__)


def compiled(*parameters: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that has numba compile a function, to run without the interpreter's lock.

    Parameters
    ----------
    *parameters
        What a closure depends on besides its arguments; their `repr` tells it from others.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        # The linker sees the name, the module, the types of the arguments, and a number that two processes may each
        # give to another function: what the name does not tell apart, it would take one for the other.
        function.__qualname__ += f"{parameters}"
        dispatcher: Any = nb.njit(nogil=True, error_model="numpy")(function)
        dispatcher._cache = _KeptCode(f"{function.__module__}.{function.__qualname__}")
        return dispatcher  # type: ignore[no-any-return]

    return decorate


class _KeptCode(NullCache):
    """The machine code of one function, one file for each signature, in the way that numba asks for it."""

    def __init__(self, function: str) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was kept for a signature, or None."""
        target_context.refresh()
        try:
            path = self._file(sig, target_context.codegen())
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_uid != os.getuid():
                    return None  # only what this user has put there is run
                checksum, data = file.read(DIGEST_BYTES), file.read()
            if checksum != _checksum(path, data):
                return None
            return CompileResult._rebuild(target_context, *pickle.loads(data))
        except UNREACHABLE:
            return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Keep what was compiled for a signature, if there is a place for it."""
        data = pickle.dumps(cres._reduce())
        try:
            file = self._file(sig, cres.codegen)
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fs, path = url_to_fs(file)
            with whole_file(fs, path, f"{path}.{uuid.uuid4().hex}", f"{file} cannot be written") as out:
                out.write(_checksum(file, data) + data)
        except UNREACHABLE as error:
            logger.debug("machine code is not kept: %s", error)

    def _file(self, sig: Any, codegen: Any) -> Path:
        what = repr((_sources(), codegen.magic_tuple(), self._function, str(sig)))
        return _folder() / f"{hashlib.sha256(what.encode()).hexdigest()}.code"


def _checksum(path: Path, data: bytes) -> bytes:
    """Return what a file begins with: it is of its name and what it holds."""
    return hashlib.blake2b(path.name.encode() + data, digest_size=DIGEST_BYTES).digest()


def _folder() -> Path:
    """Return the folder of the user's that holds machine code."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distmf"


@functools.cache
def _sources() -> tuple[str, ...]:
    """Return what all machine code of this package depends on: the compilers, and every line that is compiled."""
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(file.read_bytes())
    return nb.__version__, llvmlite.__version__, platform.platform(), sys.version, sources.hexdigest()
