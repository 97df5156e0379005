"""Arrays of an .npz file, whose sizes are checked before they are read; nothing in it is run."""

import contextlib
import math
import pathlib
import tokenize
import warnings
import zipfile
import zlib
from typing import Any, Iterator

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bn_keras.data.reading.files import MAX_BYTES
from bn_keras.data.splits import DataError

KINDS = "biufSU"  # of the arrays that are read: no objects, which would be pickles


def names_in(path: pathlib.Path, content: str) -> set[str]:
    """Names of the arrays in a file.

    Args:
        path: of an .npz file.
        content: what the file is expected to be, for messages.

    Raises:
        DataError: no such file.
    """
    with _opened(path, content) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_arrays(path: pathlib.Path, names: list[str], content: str) -> dict[str, NDArray[Any]]:
    """Reads some arrays of a file.

    Args:
        path: of an .npz file, compressed or not.
        names: of arrays in it.
        content: what the file is expected to be, for messages.

    Raises:
        DataError: a damaged file, one that claims too much, or arrays of objects.
    """
    with _opened(path, content) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in names}
        size = sum(member.file_size for member in members.values())
        if size > MAX_BYTES:
            raise DataError(
                f"{path}: its arrays have {size:,} bytes; expected at most {MAX_BYTES:,}."
            )
        return {name: _read(path, archive, member) for name, member in members.items()}


def _read(path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    where = f"{path}: {member.filename}"
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in read_header:
            raise DataError(f"{where} is of version {version}; expected (1, 0) or (2, 0).")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy repairs headers of Python 2, with a warning
            shape, fortran, dtype = read_header[version](stream)
        if dtype.kind not in KINDS:
            raise DataError(
                f"{where} is of type {str(dtype)[:60]}; expected numbers or texts. Save it again "
                "from an array of one type, with allow_pickle=False."
            )
        size = math.prod(shape) * dtype.itemsize
        left = member.file_size - stream.tell()
        if min(shape, default=0) < 0 or size != left:
            raise DataError(
                f"{where} announces the shape {str(shape)[:60]} of {dtype}, {size:,} bytes, and "
                f"has {left:,}; the file is damaged, get it anew."
            )
        content = stream.read(size)  # to the end, where zipfile compares the checksum
    if len(content) != size:
        raise DataError(f"{where} ends after {len(content):,} bytes of {size:,}; get it anew.")
    flat: NDArray[Any] = np.frombuffer(content, dtype) if size else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


@contextlib.contextmanager
def _opened(path: pathlib.Path, content: str) -> Iterator[zipfile.ZipFile]:
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            raise DataError(f"{path}: holds one array alone; expected {content} (np.savez).")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError, OverflowError,
        NotImplementedError, RuntimeError, SyntaxError, TypeError, Warning, tokenize.TokenError,
    ) as error:  # encrypted, another method of packing, a header that is no dict, …
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: cannot be read ({reason}); expected {content}, undamaged."
        ) from error
