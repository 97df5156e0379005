"""The file that stands behind the colon of `--dataset=name:PATH`."""

import os
import pathlib

from bn_keras.data.idx import MAX_BYTES
from bn_keras.data.splits import DataError


def find_file(dataset, argument, data_dir, content):
    """The path of a dataset that is one file.

    Args:
        dataset: the registered name, for messages.
        argument: what stands behind the colon; relative to `data_dir` where that is set.
        data_dir: folder, or None.
        content: what the file is expected to be, for messages.

    Returns:
        pathlib.Path of a regular file of 1 to MAX_BYTES bytes.

    Raises:
        DataError: nothing is named, or it is no such file.
    """
    if not argument:
        raise DataError(f"dataset {dataset!r}: no file named; expected {dataset}:PATH, {content}.")
    # os.path answers where pathlib raises: to an unknown ~user, to a name that is too long.
    path = pathlib.Path(os.path.expanduser(os.path.join(data_dir or "", argument)))
    if not os.path.isfile(path):  # a pipe would make us wait, a device would never end
        kind = "not a file" if os.path.exists(path) else "no such file"
        raise DataError(f"{path}: {kind}; expected {content}, named as {dataset}:PATH.")
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path}: {size} bytes; expected 1 to {MAX_BYTES}, as {content} has them.")
    return path
