"""Datasets, one a file: a function `(argument, data_dir) -> Source` under a registered name.

A dataset is asked for as `name` or `name:argument`, such as `mnist`, `tfds:fashion_mnist`,
`idx:FOLDER` or `csv:PATH`.
"""

from bn_keras.data.splits import DataError, Source, Split, Splits, make_splits
from bn_keras.registry import DATASETS

__all__ = ["DataError", "Source", "Split", "Splits", "load"]


def load(dataset, data_dir=None, train_size=None, validation_size=5000, test_size=None):
    """Reads a dataset into memory and splits it.

    Args:
        dataset: `name` or `name:argument`.
        data_dir: folder to read from; None means the dataset's own place.
        train_size, validation_size, test_size: as for `make_splits`.

    Returns:
        `Splits`.

    Raises:
        UnknownName: no such dataset.
        DataError: missing, altered or unfit data.
    """
    name, _, argument = dataset.partition(":")
    source = DATASETS.get(name)(argument, data_dir)
    return make_splits(source, train_size, validation_size, test_size)
