"""Files for examples that do not fit in memory.

They have no name: the system removes them with the last array that is read from them, at the latest
when the process ends, however it does.
"""

import errno
import shutil
import tempfile
from types import TracebackType
from typing import Any, Callable, Optional, Type

import numpy as np
from numpy.typing import NDArray

from bn_keras import on_disk
from bn_keras.data.errors import DataError

RESERVE = 5 * 10**8  # bytes that stay free on the disk: other programs need some
REMEDY = (
    "Name a folder with more room by the environment variable TMPDIR, or give fewer examples "
    "(.take of a tf.data.Dataset, also of one that never ends)."
)


class File:
    """A temporary file that rows are appended to, and that is then read as an array.

    A context, behind which nothing is appended any more; the array can be read for longer.

    Args:
        where: dataset and set, for messages.
    """

    def __init__(self, where: str = "data") -> None:
        self._where, self._shape, self._dtype = where, (0,), np.dtype(np.uint8)
        try:
            self._file = tempfile.TemporaryFile(prefix="bn_keras-")
        except OSError as error:
            raise DataError(
                f"{where}: no temporary file can be made for these examples ({error}). {REMEDY}"
            ) from error

    def __enter__(self) -> "File":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            self._file.close()
        except OSError:  # a full disk: what was not yet written is not needed either
            pass

    def append(self, rows: NDArray[Any]) -> None:
        """Adds rows, of one shape and dtype in all calls.

        Raises:
            DataError: the disk is full, or nearly so.
            ValueError: rows of another shape or dtype.
        """
        if self._shape == (0,):
            self._shape, self._dtype = (0, *rows.shape[1:]), rows.dtype
        if rows.shape[1:] != self._shape[1:] or rows.dtype != self._dtype:
            raise ValueError(
                f"received rows of shape {rows.shape[1:]} and type {rows.dtype} behind rows of "
                f"shape {self._shape[1:]} and type {self._dtype}"
            )
        if rows.dtype.hasobject:
            raise ValueError(f"received rows of type {rows.dtype}; expected numbers")
        if shutil.disk_usage(folder()).free < rows.nbytes + RESERVE:
            raise self._full()
        try:
            self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise self._full() from error
        self._shape = (self._shape[0] + len(rows), *self._shape[1:])

    def array(self) -> NDArray[Any]:
        """All rows, an `np.memmap` that cannot be written to."""
        if not self._file.tell():
            return np.empty(self._shape, self._dtype)
        return np.memmap(self._file, self._dtype, "r", shape=self._shape)

    def _full(self) -> DataError:
        place = folder()
        return DataError(
            f"{self._where}: no room on the disk for these examples: {self._file.tell():,} bytes "
            f"are written, {shutil.disk_usage(place).free:,} bytes are free in {place}, of which "
            f"{RESERVE:,} are left to other programs. {REMEDY}"
        )


def folder() -> str:
    """Where the files are made: the system's folder for temporary files."""
    return tempfile.gettempdir()


def take(array: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any]:
    """The rows of these indices, (k,): of an array on disk, as an array on disk.

    Raises:
        DataError: the disk is full.
    """
    if not on_disk.is_on_disk(array):
        return array[indices]
    step = on_disk.rows_of_a_piece(array)
    with File() as file:
        for start in range(0, len(indices), step):
            file.append(on_disk.gather(array, indices[start:start + step]))
        return file.array()


def mapped(
    function: Callable[[NDArray[Any]], NDArray[Any]], array: NDArray[Any], where: str = "data"
) -> NDArray[Any]:
    """What a function of rows makes of an array; of an array on disk in pieces, on disk again.

    Args:
        function: gives each row the same, whatever rows it gets it with.
        array: (n, ...).
        where: dataset and set, for messages.

    Raises:
        DataError: the disk is full.
    """
    if not on_disk.is_on_disk(array):
        return function(array)
    with File(where) as file:
        for _, rows in on_disk.pieces(array):
            file.append(function(rows))
        return file.array()
