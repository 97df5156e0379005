"""Datasets, one a file: a function `(argument, data_dir) -> Source` under a registered name.

A dataset is asked for as `name` or `name:argument`, such as `mnist`, `tfds:fashion_mnist`,
`idx:FOLDER` or `csv:PATH`; or as `my_data.py:load`, a function of a user's own that returns what
`python.from_python` takes. Readers of file formats are in `reading/`.
"""

from typing import Any, Dict, Optional, Tuple

from bn_keras import own
from bn_keras.data.checks import check
from bn_keras.data.python import from_python
from bn_keras.data.reading.files import resolve
from bn_keras.data.splits import DataError, Source, Split, Splits, make_splits
from bn_keras.objects import ObjectError, absolute_name, is_object_name, load_object, told
from bn_keras.registry import DATASETS

__all__ = ["DataError", "Source", "Split", "Splits", "absolute", "from_python", "load"]


def load(
    dataset: str,
    data_dir: Optional[str] = None,
    train_size: Optional[int] = None,
    validation_size: Optional[int] = None,
    test_size: Optional[int] = None,
    image_size: Optional[int] = None,
) -> Splits:
    """Reads a dataset and splits it; `from_python` says what is streamed from disk.

    Args:
        dataset: `name` or `name:argument`, or `my_data.py:load` or `my_package.data:load`; or the
            name that `own.give` has given to a Source.
        data_dir: folder to read from; None means the dataset's own place.
        train_size, validation_size, test_size: as for `make_splits`.
        image_size: pixels a side that images are resized to; None leaves them as they are.

    Returns:
        `Splits`.

    Raises:
        UnknownName: no such dataset.
        DataError: missing, altered or unfit data.
    """
    options: Dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    try:
        if own.is_own(dataset):
            _check_options(dataset, {}, options)
            source = own.get(dataset)
        elif is_object_name(dataset):
            _check_options(dataset, {}, options)
            source = _of_a_function(dataset, data_dir)
        else:
            name, _, argument = dataset.partition(":")
            factory = DATASETS.get(name)
            _check_options(dataset, DATASETS.properties(name), options)
            source = factory(argument, data_dir, **options)
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
    if own.is_own(dataset):
        return dataset, None
    if is_object_name(dataset):
        return absolute_name(dataset, None if data_dir is None else str(resolve(data_dir))), None
    name, _, argument = dataset.partition(":")
    if argument and DATASETS.properties(DATASETS.check(name)).get("takes_path"):
        return f"{name}:{resolve(argument, data_dir)}", None
    return dataset, None if data_dir is None else str(resolve(data_dir))


def _check_options(dataset: str, properties: Dict[str, Any], options: Dict[str, Any]) -> None:
    for option, value in options.items():
        if not properties.get(f"takes_{option}"):
            raise DataError(
                f"{option}={value}: dataset {dataset!r} comes as it is; leave {option} out, or "
                "name a folder of image files, as folder:PATH."
            )


def _of_a_function(dataset: str, data_dir: Optional[str]) -> Source:
    dataset, _ = absolute(dataset, data_dir)
    expected = (
        "expected a function of no argument that returns (x_train, y_train, x_test, y_test), or "
        "other data that bn_keras.data.from_python takes"
    )
    try:
        function = load_object(dataset)
    except ObjectError as error:
        raise DataError(str(error)) from error
    if not callable(function):
        raise DataError(f"{dataset}: is a {type(function).__name__}; {expected}.")
    try:
        returned = function()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{dataset}: raised {told(error)}; {expected}.") from error
    return from_python(returned, dataset)
