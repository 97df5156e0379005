"""`csv:PATH`: labelled images in a table, such as train.csv of Kaggle's Digit Recognizer.

The first row names the columns, `label,pixel0,…,pixel783`; every other row is one image: its label,
then its pixels row by row. The images are square and have one channel. The label may be the last
column instead, and be named `class`; without a header it is the first one.
"""

import math
from typing import Optional

import numpy as np

from bn_keras.data.reading.csv import CONTENT, NO_HEADER, read_csv
from bn_keras.data.reading.files import find_file
from bn_keras.data.splits import DataError, Source, Split, number_classes
from bn_keras.registry import DATASETS
from bn_keras.texts import plain


@DATASETS.register("csv", takes_path=True)
def csv_file(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the file named behind the colon.

    It has no test set of its own (Kaggle's test.csv has no labels), so one row in ten becomes the
    test set: drawn over the whole file, as the rows may stand in order of their labels, and always
    the same ones for the same number of rows.
    """
    path = find_file("csv", argument, data_dir, CONTENT)
    table = read_csv(path)
    notes: tuple[str, ...] = ()
    if not table.has_header:
        notes = (f"{plain(path)}: {NO_HEADER}",)
    try:
        (labels,), classes, renumbered = number_classes(str(path), table.labels)
    except DataError as error:
        raise DataError(" ".join([str(error), *notes])) from error
    side = math.isqrt(table.pixels.shape[1])
    images = table.pixels.reshape(-1, side, side, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(labels) // 10])
    return Source(
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        classes=classes, notes=notes + renumbered,
    )
