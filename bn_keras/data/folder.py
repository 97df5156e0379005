"""`folder:PATH`: image files, one folder for each class.

PATH holds the folders of the classes, and a fifth of the images is drawn for testing. Or it holds
`train` and `test`, and `validation` (or `val`) if it has such a set, with the folders of the
classes in each. The images have one channel if all files are grey, else three. They have one size,
or get it by `--image_size`.

Pillow reads them, which matplotlib needs anyway: Keras's reader would load TensorFlow.
"""

import os
import pathlib
from typing import Optional

import numpy as np

from bn_keras.data.reading.files import resolve
from bn_keras.data.reading.images import ENDINGS, read_images
from bn_keras.data.splits import DataError, Source, Split, draw_test
from bn_keras.registry import DATASETS
from bn_keras.texts import plain

SETS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
EXPECTED = "expected a folder with one folder of images for each class, or with train and test"
SHOWN = 8  # names in a message


@DATASETS.register("folder", takes_path=True, takes_image_size=True)
def folder(argument: str, data_dir: Optional[str], image_size: Optional[int] = None) -> Source:
    """Reads the folder named behind the colon, the classes in the order of their names."""
    if not argument:
        raise DataError(f"dataset 'folder': no folder named; {EXPECTED}, as folder:PATH.")
    path = resolve(argument, data_dir)
    if not os.path.isdir(path):
        kind = "not a folder" if os.path.exists(path) else "no such folder"
        raise DataError(f"{path}: {kind}; {EXPECTED}.")
    places = {"train": path}
    if "train" in _folders(path):
        places = {which: path / name for name, which in SETS.items() if name in _folders(path)}
    classes = _folders(places["train"])
    if len(classes) < 2:
        raise DataError(
            f"{places['train']}: holds {len(classes)} folders; expected one for each of at least "
            "two classes."
        )
    files, labels, skipped = [], [], 0
    for which, place in places.items():
        names = _folders(place)
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(
                f"{place / unknown[0]}: no class of {places['train']}, which has "
                f"{_listed(classes)}; expected the same names."
            )
        found = [(file, classes.index(name)) for name in names for file in _images(place / name)]
        skipped += sum(len(os.listdir(place / name)) for name in names) - len(found)
        if not found:
            raise DataError(f"{place}: holds no image in the folders of classes; {EXPECTED}.")
        files.append([file for file, _ in found])
        labels.append(np.array([label for _, label in found], np.int32))
    images = read_images(files, image_size)
    splits = {
        which: Split(*pair) for which, pair in zip(places, zip(images, labels, strict=True))
    }
    notes = [f"{path}: the folders {_listed(classes)} are the classes 0 to {len(classes) - 1}"]
    if skipped:
        notes.append(f"{path}: {skipped:,} files without {', '.join(ENDINGS)} are left out")
    if "test" not in splits:
        splits["train"], splits["test"] = draw_test(str(path), splits["train"])
        notes.append(f"{path}: no test set given; {len(splits['test']):,} images are drawn for it")
    return Source(
        splits["train"], splits["test"], len(classes), validation=splits.get("validation"),
        notes=tuple(plain(note) for note in notes),
    )


def _entries(path: pathlib.Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}.") from error


def _folders(path: pathlib.Path) -> list[str]:
    return [name for name in _entries(path) if os.path.isdir(path / name)]


def _images(path: pathlib.Path) -> list[pathlib.Path]:
    found = [path / name for name in _entries(path) if name.lower().endswith(ENDINGS)]
    return [file for file in found if os.path.isfile(file)]  # a pipe would make us wait


def _listed(names: list[str]) -> str:
    shown = [name[:40] for name in names[:SHOWN]]
    return ", ".join([*shown, *["…"] * (len(names) > SHOWN)])
