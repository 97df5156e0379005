"""Images of any number type as the pixels that a `Split` holds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.splits import DataError


def to_pixels(
    where: str, *parts: NDArray[Any]
) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Brings images to one form: bytes where they are bytes, else floats from 0 to 1.

    Args:
        where: the dataset, for messages.
        *parts: images of every set of a dataset, of one type: whole numbers from 0 to 255 or to
            the type's largest, or floats from 0 to 1 or from 0 to 255. Not empty.

    Returns:
        The parts as uint8 or as float32, and a note if they were floats of pixels to 255.

    Raises:
        DataError: values of another range, NaN, or values that are no numbers.
    """
    dtype = parts[0].dtype
    if dtype == np.uint8:
        return list(parts), ()
    expected = "expected uint8 or uint16, or floats from 0 to 1 or from 0 to 255"
    if dtype.kind not in "iuf":
        raise DataError(f"{where}: its pixels are {dtype}; {expected}.")
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    most = 255 if dtype.kind in "if" else np.iinfo(dtype).max
    if not 0 <= low <= high <= most:  # false for NaN too
        raise DataError(f"{where}: its pixels are {dtype} from {low} to {high}; {expected}.")
    if dtype.kind in "iu" and high <= 255:
        return [part.astype(np.uint8) for part in parts], ()
    if dtype.kind == "u":
        return [np.float32(1 / most) * part.astype(np.float32) for part in parts], ()
    if high <= 1:
        return [part.astype(np.float32) for part in parts], ()
    note = f"{where}: its pixels are floats up to {high}; they are divided by 255."
    return [part.astype(np.float32) / np.float32(255) for part in parts], (note,)
