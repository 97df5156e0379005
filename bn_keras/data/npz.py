"""`npz:PATH`: arrays in a file of NumPy's, as `np.savez` writes it and keras's mnist.npz is.

It holds `x_train`, `y_train`, `x_test` and `y_test`, and `x_val` and `y_val` if it has a validation
set; or `x` and `y`, of which a fifth is drawn for testing; or, as the files of MedMNIST,
`train_images`, `train_labels` and so on. The type of the labels says what is to be learned, see
`python.from_python`. Images of bytes are scaled like those of other image datasets; other inputs
are fed as they are.
"""

import dataclasses
import pathlib
from typing import Optional

import numpy as np

from bn_keras.data.python import from_python
from bn_keras.data.reading.files import find_file
from bn_keras.data.reading.npz import names_in, read_arrays
from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS
from bn_keras.texts import plain

CONTENT = "an .npz file with x_train, y_train, x_test and y_test"
# Names of (inputs, labels) by set.
NAMES = (
    {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"),
     "test": ("x_test", "y_test")},
    {"train": ("train_images", "train_labels"), "validation": ("val_images", "val_labels"),
     "test": ("test_images", "test_labels")},
    {"train": ("x", "y")},
)


@DATASETS.register("npz", takes_path=True)
def npz(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the file named behind the colon."""
    path = find_file("npz", argument, data_dir, CONTENT)
    wanted = _wanted(path)
    arrays = read_arrays(path, [name for pair in wanted.values() for name in pair], CONTENT)
    source = from_python(
        {which: (arrays[x], arrays[y]) for which, (x, y) in wanted.items()}, str(path)
    )
    if source.train.images.dtype != np.uint8 or source.train.images.ndim not in (3, 4):
        return source
    note = f"{plain(path)}: inputs of bytes, taken as images and scaled as --pixels says"
    return dataclasses.replace(
        source, train=_as_images(source.train), test=_as_images(source.test),
        validation=None if source.validation is None else _as_images(source.validation),
        notes=(*source.notes, note), as_given=False,
    )


def _wanted(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Names of the arrays of each set."""
    found = names_in(path, CONTENT)
    for names in NAMES:
        sets = {which: pair for which, pair in names.items() if {*pair} & found}
        missing = [name for pair in sets.values() for name in pair if name not in found]
        if "train" in sets and not missing:
            return sets
        if sets:
            raise DataError(
                f"{path}: holds {_listed(found)}, and lacks "
                f"{_listed({*missing} or {*names['train']})}; expected {CONTENT}, or x and y."
            )
    raise DataError(f"{path}: holds {_listed(found)}; expected {CONTENT}, or x and y.")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(name[:40] for name in names)[:12]) or "no array"


def _as_images(split: Split) -> Split:
    if split.images.ndim == 4:
        return split
    return Split(split.images[..., None], split.labels)
