"""`idx:FOLDER`: the four IDX files of MNIST and its relatives, gzipped or not.

The format is a big-endian header (magic number 0x0000TTDD with type TT and DD dimensions, then
the size of every dimension in 4 bytes) followed by the values.
"""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS

FILES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
UNSIGNED_BYTE = 0x08
MAX_BYTES = 4 * 2**30  # a header that claims more is broken or hostile
PIECE = 2**24  # bytes unpacked at a time


@DATASETS.register("idx")
def idx(argument, data_dir):
    """Reads the folder named behind the colon."""
    if not argument:
        raise DataError("dataset 'idx': no folder named; expected idx:FOLDER.")
    folder = pathlib.Path(data_dir or "", argument).expanduser()
    return read_folder(folder, remedy="name a folder that holds the four IDX files")


def read_folder(folder, remedy, check=None):
    """Reads train and test set from a folder.

    Args:
        folder: pathlib.Path.
        remedy: what to do when a file is missing or broken, for the message.
        check: `(path, bytes) -> None`, called with each file's stored bytes before they are read.

    Raises:
        DataError: a file is missing, truncated, of another type, or does not match its partner.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {remedy}.")
    arrays = {}
    for part, name in FILES.items():
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        if path is None:
            raise DataError(f"{folder / name}[.gz]: missing ({part}); {remedy}.")
        try:
            data = path.read_bytes()
            if check is not None:
                check(path, data)
            arrays[part] = read_idx(path, data, dimensions=3 if "images" in part else 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read ({error}); {remedy}.") from error
    splits = [_pair(folder, arrays, "train", remedy), _pair(folder, arrays, "test", remedy)]
    classes = int(max(split.labels.max() for split in splits)) + 1
    return Source(*splits, classes=classes)


def read_idx(path, data, dimensions):
    """The array in an IDX file of unsigned bytes.

    Args:
        path: for messages, and `.gz` says whether the bytes are compressed.
        data: the file's bytes.
        dimensions: how many the file must have.

    Raises:
        DataError: another type or number of dimensions, or more or fewer values than announced.
    """
    if path.suffix != ".gz":
        return _parse(path, data[:16], lambda size: data[:size], dimensions)
    with gzip.open(path) as stream:
        head = stream.read(16)

        def body(size):
            # By pieces: one read would set aside at once whatever size the header announces.
            pieces, left = [head], size - len(head)
            while left > 0 and (piece := stream.read(min(left, PIECE))):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)

        return _parse(path, head, body, dimensions)


def _parse(path, head, read, dimensions):
    header_size = 4 + 4 * dimensions
    if len(head) < header_size:
        raise DataError(f"{path}: {len(head)} bytes; expected a header of {header_size}.")
    zero, kind, found = struct.unpack(">HBB", head[:4])
    if (zero, kind, found) != (0, UNSIGNED_BYTE, dimensions):
        raise DataError(
            f"{path}: starts with {head[:4].hex()}; expected {0x0800 + dimensions:08x}, "
            f"an IDX file of unsigned bytes with {dimensions} dimension(s)."
        )
    shape = struct.unpack(f">{dimensions}I", head[4:header_size])
    size = math.prod(shape)
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path}: announces the shape {shape}; expected 1 to {MAX_BYTES} values.")
    # One byte more than announced tells a file that is too long.
    values = np.frombuffer(read(header_size + size + 1), np.uint8)[header_size:]
    if len(values) != size:
        than = "more than " if len(values) > size else ""
        raise DataError(
            f"{path}: holds {than}{min(len(values), size)} values; "
            f"its header announces {size} in the shape {shape}."
        )
    return values.reshape(shape)


def _pair(folder, arrays, which, remedy):
    images, labels = arrays[f"{which} images"], arrays[f"{which} labels"]
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images)} {which} images but {len(labels)} {which} labels; {remedy}."
        )
    return Split(images[..., np.newaxis], labels.astype(np.int32))
