"""Datasets, one a file: a function `(argument, data_dir) -> Source` under a registered name.

A dataset is asked for as `name` or `name:argument`, such as `mnist`, `tfds:fashion_mnist`,
`idx:FOLDER` or `csv:PATH`. Readers of file formats are in `reading/`.
"""

from typing import Optional

from bn_keras.data.reading.files import resolve
from bn_keras.data.splits import DataError, Source, Split, Splits, check, make_splits
from bn_keras.registry import DATASETS

__all__ = ["DataError", "Source", "Split", "Splits", "load", "place"]


def load(
    dataset: str,
    data_dir: Optional[str] = None,
    train_size: Optional[int] = None,
    validation_size: int = 5000,
    test_size: Optional[int] = None,
) -> Splits:
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
    factory = DATASETS.get(name)
    try:
        source = factory(argument, data_dir)
        check(dataset, source)
        return make_splits(source, train_size, validation_size, test_size)
    except MemoryError as error:
        raise DataError(
            f"{dataset}: does not fit in this machine's memory; name a smaller dataset."
        ) from error


def place(dataset: str, data_dir: Optional[str] = None) -> str:
    """Where a dataset is read from, the same from every working directory.

    Args:
        dataset, data_dir: as for `load`.

    Returns:
        `name:/absolute/path` for a dataset that is read from a path, such as idx:FOLDER; the name
        alone, or `name in /absolute/path` with a `data_dir`, for one that is not, such as mnist.

    Raises:
        UnknownName: no such dataset.
    """
    name, _, argument = dataset.partition(":")
    if getattr(DATASETS.get(name), "takes_path", False):
        return f"{name}:{resolve(argument, data_dir)}"
    return dataset if data_dir is None else f"{dataset} in {resolve(data_dir)}"
