"""Image files as arrays of bytes, of one size and one number of channels."""

import contextlib
import pathlib
import warnings
from typing import Iterator, Optional, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bn_keras.data.reading.files import MAX_BYTES
from bn_keras.data.splits import DataError

# By name, as Pillow would try every format that it knows: EPS starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
GREY = ("1", "L", "LA")  # modes of Pillow's
MAX_PIXELS = 2**26  # in a file: 8192 x 8192
EXPECTED = f"expected an image of 8 bits a channel, as {', '.join(FORMATS)}"


def read_images(
    sets: Sequence[Sequence[pathlib.Path]], size: Optional[int] = None
) -> list[NDArray[np.uint8]]:
    """Reads the files of some sets.

    Transparency is left out, and of a moving picture all but the first one.

    Args:
        sets: paths of each set.
        size: pixels a side that every image is resized to, whatever its shape; None leaves them
            as they are, and expects one size.

    Returns:
        Of each set an array (n, height, width, channels), with one channel if all files are grey,
        else with three.

    Raises:
        DataError: a file that is no such image, other sizes, or more than fits in memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata and transparency; sizes are checked here
        return _read(sets, size)


def _read(
    sets: Sequence[Sequence[pathlib.Path]], size: Optional[int]
) -> list[NDArray[np.uint8]]:
    files = [path for paths in sets for path in paths]
    heads = [_head(path) for path in files]
    (width, height), _ = heads[0]
    if size is not None:
        width = height = size
    for path, (other, _) in zip(files, heads):
        if size is None and other != (width, height):
            raise DataError(
                f"{path}: {other[0]} x {other[1]} pixels, but {files[0]} {width} x {height}; "
                f"expected one size. --image_size={min(height, width)} resizes all of them."
            )
    channels = 1 if all(mode in GREY for _, mode in heads) else 3
    total = len(files) * height * width * channels
    if total > MAX_BYTES:
        raise DataError(
            f"{files[0].parent.parent}: {len(files):,} images of {width} x {height} x {channels} "
            f"have {total:,} bytes; expected at most {MAX_BYTES:,}. Name a smaller --image_size."
        )
    arrays = [np.empty((len(paths), height, width, channels), np.uint8) for paths in sets]
    for paths, array in zip(sets, arrays):
        for place, path in enumerate(paths):
            array[place] = _pixels(path, (width, height), channels)
    return arrays


def _head(path: pathlib.Path) -> tuple[tuple[int, int], str]:
    """((width, height), mode) of a file, of which hardly more is read."""
    with _opened(path) as image:
        size, mode = image.size, image.mode
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{path}: {size[0]} x {size[1]} pixels; expected at most {MAX_PIXELS:,}."
        )
    if mode.startswith(("I", "F")):
        raise DataError(f"{path}: has 16 or 32 bits a pixel (mode {mode}); {EXPECTED}.")
    return size, mode


def _pixels(path: pathlib.Path, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    with _opened(path) as image:
        converted = image.convert("L" if channels == 1 else "RGB")
        if converted.size != size:
            converted = converted.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(converted).reshape(size[1], size[0], channels)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except Exception as error:  # every decoder has kinds of its own
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        kind = type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason or kind}); {EXPECTED}.") from error
