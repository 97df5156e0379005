"""IDX files of unsigned bytes, gzipped or not: the format of MNIST and its relatives.

The format is a big-endian header (magic number 0x0000TTDD with type TT and DD dimensions, then
the size of every dimension in 4 bytes) followed by the values.
"""

import gzip
import math
import os
import pathlib
import struct
import zlib
from typing import BinaryIO, Mapping, cast

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.reading.files import MAX_BYTES
from bn_keras.data.splits import DataError, Source, Split, number_classes

GZIP = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08
PIECE = 2**24  # bytes unpacked at a time
# A gzipped file that unpacks to more is a bomb: images shrink to a fifth, blank ones to a 1000th.
MAX_GROWTH, ALWAYS_FINE = 100, 2**26


def read_set(paths: Mapping[str, pathlib.Path], remedy: str) -> Source:
    """Reads train and test set from four files.

    Args:
        paths: of the "train images", "train labels", "test images" and "test labels".
        remedy: what to do when a file is broken, for the message.

    Raises:
        DataError: a file is truncated, of another type, or does not match its partner.
    """
    arrays = {
        part: read_idx(path, 3 if "images" in part else 1, remedy) for part, path in paths.items()
    }

    def compare(one: str, other: str, what: str, sizes: tuple[object, object]) -> None:
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{paths[one]}: {sizes[0]} {what}, but {sizes[1]} in {paths[other].name}; {remedy}."
            )

    for which in ("train", "test"):
        images, labels = f"{which} images", f"{which} labels"
        compare(images, labels, "examples", (len(arrays[images]), len(arrays[labels])))
    compare("train images", "test images", "pixels an image", (
        arrays["train images"].shape[1:], arrays["test images"].shape[1:]
    ))
    (train, test), classes, notes = number_classes(
        str(paths["train labels"].parent), arrays["train labels"], arrays["test labels"]
    )
    return Source(
        Split(arrays["train images"][..., np.newaxis], train),
        Split(arrays["test images"][..., np.newaxis], test),
        classes, notes=notes,
    )


def read_idx(path: pathlib.Path, dimensions: int, remedy: str) -> NDArray[np.uint8]:
    """The array in a file; whether it is gzipped, its first bytes tell.

    Args:
        path: of a regular file.
        dimensions: how many the array must have.
        remedy: what to do when the file is broken, for the message.

    Raises:
        DataError: another type or number of dimensions, or more or fewer values than announced.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            size = os.fstat(file.fileno()).st_size
            limit = MAX_BYTES
            if packed:
                limit = min(limit, max(ALWAYS_FINE, MAX_GROWTH * size))
            return _parse(path, stream, size, limit, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}.") from error


def _parse(
    path: pathlib.Path, stream: BinaryIO, file_size: int, limit: int, dimensions: int
) -> NDArray[np.uint8]:
    header_size = 4 + 4 * dimensions
    head = stream.read(header_size)
    if len(head) < header_size:
        raise DataError(f"{path}: {len(head)} bytes; expected a header of {header_size}.")
    zero, kind, found = struct.unpack(">HBB", head[:4])
    if (zero, kind, found) != (0, UNSIGNED_BYTE, dimensions):
        raise DataError(
            f"{path}: starts with {head[:4].hex()}; expected {0x0800 + dimensions:08x}, "
            f"an IDX file of unsigned bytes with {dimensions} dimension(s)."
        )
    shape = struct.unpack(f">{dimensions}I", head[4:])
    size = math.prod(shape)
    if not 0 < size <= limit:
        raise DataError(
            f"{path}: announces the shape {shape}, {size} values; expected 1 to {limit} in a file "
            f"of {file_size} bytes."
        )
    # gzip adds less than this; a file that is larger still is not read to its end.
    data = b"" if file_size > 1.01 * size + 2**16 else _read(stream, size + 1)
    if len(data) != size:
        received = f"more than {size}" if len(data) > size or not data else str(len(data))
        raise DataError(
            f"{path}: holds {received} values; its header announces {size} in the shape {shape}."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read(stream: BinaryIO, size: int) -> bytearray:
    """At most `size` bytes, by pieces: one read would set all of it aside, whatever is there."""
    data = bytearray()
    while len(data) < size and (piece := stream.read(min(size - len(data), PIECE))):
        data += piece
    return data
