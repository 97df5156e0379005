"""Arrays that do not fit in memory: an `np.memmap` is read in pieces, and never as a whole.

A page of a file that was read counts as memory of the process until the system needs the place.
What is here copies the rows that are asked for and gives the pages back.
"""

import mmap
from typing import Any, Iterator

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 64 * 2**20  # read at a time: large against a call's cost, small against a machine
AROUND = 2**20  # bytes around a row that Linux maps together with it, .7 MB where it was measured


def is_on_disk(array: Any) -> bool:
    """Whether an array is a file's, so that it is to be read in pieces."""
    # What NumPy computes from one is of its type, without a mode: it lies in memory.
    return isinstance(array, np.memmap) and array.mode is not None


def rows_of_a_piece(*arrays: NDArray[Any]) -> int:
    """How many rows, at least 1, of some arrays have PIECE_BYTES together."""
    row = sum(array.nbytes // max(1, len(array)) for array in arrays)
    return max(1, PIECE_BYTES // max(1, row))


def rows(array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """The rows from `start` to before `stop`: in memory, as a copy if the array is on disk.

    Raises:
        OSError: the file has become shorter than the array.
    """
    if not is_on_disk(array):
        return array[start:stop]
    _check_length(array)
    found = array[start:stop]
    found = np.array(found, order="C")
    _give_back(array)
    return found


def gather(array: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any]:
    """The rows of these indices, (k,), as a new array in memory.

    Of a file they are read in its order, which spares a disk half of its way.

    Raises:
        OSError: the file has become shorter than the array.
    """
    if not is_on_disk(array):
        return array[indices]
    _check_length(array)
    order = np.argsort(indices, kind="stable")
    found = np.empty((len(indices), *array.shape[1:]), array.dtype)
    step = max(1, PIECE_BYTES // (array.nbytes // len(array) + AROUND))
    for start in range(0, len(order), step):
        part = order[start:start + step]
        found[part] = array[indices[part]]
        _give_back(array)
    return found


def pieces(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first index, rows) of consecutive pieces of an array, each of about PIECE_BYTES at most."""
    step = rows_of_a_piece(array)
    for start in range(0, len(array), step):
        yield start, rows(array, start, start + step)


def _mapping(array: NDArray[Any]) -> Any:
    """The mapping of a file whose bytes an array shows."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def _check_length(array: NDArray[Any]) -> None:
    """Raises where a file has lost its end: to read there would end the process without a word."""
    mapping = _mapping(array)
    if isinstance(mapping, mmap.mmap) and mapping.size() < len(mapping):
        name = getattr(array, "filename", None) or "a temporary file"
        raise OSError(
            f"{name}: this file has {mapping.size():,} bytes; expected at least {len(mapping):,}, "
            "as when it was opened. Write it again, and open it anew."
        )


def _give_back(array: NDArray[Any]) -> None:
    """Takes the pages of a file out of the process's memory; the system reads them again if asked.

    Not those of a mapping that keeps changes to itself (mode "c"): they would be lost.
    """
    mapping = _mapping(array)
    if isinstance(mapping, mmap.mmap) and getattr(array, "mode", None) in ("r", "r+", "w+"):
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            mapping.madvise(mmap.MADV_DONTNEED)
