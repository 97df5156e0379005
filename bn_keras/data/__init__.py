"""Datasets, one a file: a function `(argument, data_dir) -> Source` under a registered name.

A dataset is asked for as `name` or `name:argument`, such as `mnist`, `tfds:fashion_mnist`,
`idx:FOLDER` or `csv:PATH`. Readers of file formats are in `reading/`.
"""

from typing import Optional, Tuple

from bn_keras.data.reading.files import resolve
from bn_keras.data.splits import (
    VALIDATION_SIZE,
    DataError,
    Source,
    Split,
    Splits,
    check,
    make_splits,
)
from bn_keras.registry import DATASETS

__all__ = ["DataError", "Source", "Split", "Splits", "absolute", "load"]


def load(
    dataset: str,
    data_dir: Optional[str] = None,
    train_size: Optional[int] = None,
    validation_size: int = VALIDATION_SIZE,
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


def absolute(dataset: str, data_dir: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """`(dataset, data_dir)` that name the same data from every working directory.

    Args:
        dataset, data_dir: as for `load`.

    Raises:
        UnknownName: no such dataset.
        DataError: a path that cannot be resolved, such as one of an unknown ~user.
    """
    name, _, argument = dataset.partition(":")
    if argument and DATASETS.properties(DATASETS.check(name)).get("takes_path"):
        return f"{name}:{resolve(argument, data_dir)}", None
    return dataset, None if data_dir is None else str(resolve(data_dir))
