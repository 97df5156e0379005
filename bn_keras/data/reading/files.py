"""Paths as a user names them, and the file behind the colon of `--dataset=name:PATH`."""

import os
import pathlib
from typing import Optional

from bn_keras.data.splits import DataError

MAX_BYTES = 4 * 2**30  # a file, or a header in it, that claims more is broken or hostile


def resolve(path: str, data_dir: Optional[str] = None) -> pathlib.Path:
    """The absolute path of what a user named.

    Args:
        path: absolute or relative to `data_dir`; `~` and `~user` stand for home folders.
        data_dir: folder; None means the working directory.

    Raises:
        DataError: no path of this machine: an unknown user, an address, or a NUL in it.
    """
    steps = []
    for step in (data_dir or "", path):
        home = os.path.expanduser(step)  # of an unknown user's it leaves the ~
        if home.startswith("~"):
            user = home.split("/")[0]
            raise DataError(
                f"{step}: there is no user {user[1:]!r} with a home folder; expected a full path, "
                f"or ./{user} for a folder of that name."
            )
        if "\0" in step or "://" in step:
            raise DataError(f"{step}: not a path; expected a file or folder of this machine.")
        steps.append(home)
    return pathlib.Path(os.path.abspath(os.path.join(*steps)))


def find_file(dataset: str, argument: str, data_dir: Optional[str], content: str) -> pathlib.Path:
    """The path of a dataset that is one file.

    Args:
        dataset: the registered name, for messages.
        argument: what stands behind the colon; relative to `data_dir` where that is set.
        data_dir: folder, or None.
        content: what the file is expected to be, for messages.

    Returns:
        Absolute path of a regular file of 1 to MAX_BYTES bytes.

    Raises:
        DataError: nothing is named, or it is no such file.
    """
    if not argument:
        raise DataError(f"dataset {dataset!r}: no file named; expected {dataset}:PATH, {content}.")
    path = resolve(argument, data_dir)
    if not os.path.isfile(path):  # a pipe would make us wait, a device would never end
        kind = "not a file" if os.path.exists(path) else "no such file"
        raise DataError(f"{path}: {kind}; expected {content}, named as {dataset}:PATH.")
    size = os.path.getsize(path)
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path}: {size} bytes; expected 1 to {MAX_BYTES}, as {content} has them.")
    return path
