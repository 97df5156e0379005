"""`notmnist:PATH`: notMNIST.pickle, the letters A to J in many fonts.

The pickle is a dict of `train`, `valid` and `test`, each as `_dataset` (floats from -0.5 to 0.5,
shape (n, 28, 28)) and `_labels` (whole numbers from 0 to 9), written by Python 2 or 3. It is read
without being run.
"""

import pathlib
from typing import Any, Mapping, Optional

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.reading.files import find_file
from bn_keras.data.reading.safe_pickle import load_arrays
from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS

CONTENT = "notMNIST.pickle"
CLASSES = 10
CHUNK = 10_000  # images converted at a time: floats need four to eight times the memory of bytes


@DATASETS.register("notmnist", takes_path=True)
def not_mnist(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the file named behind the colon.

    Its validation images come first among the training images, unshuffled, and are thus the ones
    to validate on; those that `validation_size` leaves are trained on, before the others.
    """
    path = find_file("notmnist", argument, data_dir, CONTENT)
    arrays = load_arrays(path)
    train, valid, test = (_split(path, arrays, part) for part in ("train", "valid", "test"))
    shapes = {split.images.shape[1:3] for split in (train, valid, test)}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: images of the sizes {sorted(shapes)}; expected one size, as {CONTENT} has."
        )
    together = Split(
        np.concatenate([valid.images, train.images]), np.concatenate([valid.labels, train.labels])
    )
    return Source(together, test, classes=CLASSES, ordered=False)


def _split(path: pathlib.Path, arrays: Mapping[str, NDArray[Any]], part: str) -> Split:
    images, labels = f"{part}_dataset", f"{part}_labels"
    for name in (images, labels):
        if name not in arrays:
            known = ", ".join(sorted(arrays))[:200] or "nothing"
            raise DataError(f"{path}: holds {known}; expected {name} too, as {CONTENT} has.")
    pixels = _pixels(path, images, arrays[images])
    classes = _classes(path, labels, arrays[labels])
    if len(pixels) != len(classes):
        raise DataError(
            f"{path}: {len(pixels)} images in {images} but {len(classes)} labels in {labels}; "
            f"expected as many, as {CONTENT} has."
        )
    return Split(pixels, classes)


def _pixels(path: pathlib.Path, name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype.kind != "f" or values.ndim != 3 or values.size == 0:
        raise DataError(
            f"{path}: {name} is {values.dtype} of shape {values.shape}; expected floats of shape "
            f"(n, 28, 28), as {CONTENT} has."
        )
    pixels = np.empty((*values.shape, 1), np.uint8)
    for start in range(0, len(values), CHUNK):
        chunk = values[start:start + CHUNK]
        fits = (chunk >= -0.5) & (chunk <= 0.5)  # false for NaN too
        if not fits.all():
            place = tuple(int(n) for n in np.argwhere(~fits)[0])
            raise DataError(
                f"{path}: {name}[{start + place[0]}, {place[1]}, {place[2]}] is {chunk[place]}; "
                f"expected pixels from -0.5 to 0.5, as {CONTENT} has."
            )
        # The file was made by (p - 127.5) / 255 from pixels of 8 bits: this gives p back exactly.
        pixels[start:start + CHUNK, ..., 0] = np.rint((chunk + 0.5) * 255)
    return pixels


def _classes(path: pathlib.Path, name: str, values: NDArray[Any]) -> NDArray[np.int32]:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(
            f"{path}: {name} is {values.dtype} of shape {values.shape}; expected whole numbers of "
            f"shape (n,), as {CONTENT} has."
        )
    wrong = np.flatnonzero((values < 0) | (values >= CLASSES))
    if len(wrong):
        raise DataError(
            f"{path}: {name}[{wrong[0]}] is {values[wrong[0]]}; expected 0 to {CLASSES - 1}."
        )
    return values.astype(np.int32)
