"""What every dataset promises: sets that fit each other, inputs and labels of the right kinds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_keras import on_disk
from bn_keras.data.nests import leaves
from bn_keras.data.splits import DataError, Source, Split


def check(dataset: str, source: Source) -> None:
    """Checks what every dataset promises.

    Args:
        dataset: its name, for messages.
        source: what it returned.

    Raises:
        DataError: sets that do not match each other, inputs that are no numbers, or labels that
            are neither classes nor numbers.
    """
    sets = {"train": source.train, "test": source.test}
    if source.validation is not None:
        sets["validation"] = source.validation
    for name, split in sets.items():
        _check_set(dataset, name, split, source)
    word = _word(source)
    remedy = "" if source.as_given else " Name files of one set."
    first = _kinds(source.train, word)
    for name, split in sets.items():
        other = _kinds(split, word)
        if first.keys() != other.keys():
            raise DataError(
                f"{dataset}: train holds {', '.join(first)} but {name} {', '.join(other)}; "
                "expected the same."
            )
        for part, (shape, dtype) in first.items():
            if shape != other[part][0]:
                raise DataError(
                    f"{dataset}: train {part} have the shape {shape} but {name} {part} "
                    f"{other[part][0]}; expected one shape.{remedy}"
                )
            if dtype != other[part][1]:
                raise DataError(
                    f"{dataset}: train {part} are {dtype} but {name} {part} {other[part][1]}; "
                    "expected one type."
                )


def _word(source: Source) -> str:
    return "input" if source.as_given else "image"


def _kinds(split: Split, word: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """(shape of one, type) by name of what a set holds, such as `images`, `inputs['left']`."""
    parts = [(f"{word}s{path}", array) for path, array in leaves(split.images)]
    parts.append(("labels", split.labels))
    return {name: (array.shape[1:], array.dtype) for name, array in parts}


def _check_set(dataset: str, name: str, split: Split, source: Source) -> None:
    word, labels = _word(source), split.labels
    if isinstance(split.images, (dict, tuple, list)) and not (source.as_given and split.images):
        raise DataError(
            f"{dataset}: {name} {word}s are a {type(split.images).__name__} of "
            f"{len(split.images)}; expected one array of images, or a user's own inputs."
        )
    for path, images in leaves(split.images):
        if not 0 < len(images) == len(labels):
            raise DataError(
                f"{dataset}: {len(images)} {name} {word}s{path} and {len(labels)} {name} labels; "
                "expected as many, and at least one."
            )
        if images.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"{dataset}: {name} {word}s{path} of type {images.dtype}; expected uint8 from 0 to "
                "255 or float32 from 0 to 1."
            )
        _check_finite(dataset, f"{name} {word}{path}", images)
    _check_finite(dataset, f"{name} label", labels)
    if labels.dtype.kind == "f":
        numbers = labels.shape[-1] if labels.ndim > 1 else 1
        if labels.dtype != np.float32 or numbers != source.classes:
            raise DataError(
                f"{dataset}: {name} labels are {labels.dtype} of shape {labels.shape} with "
                f"classes={source.classes}; expected float32, and the length of the last axis."
            )
    else:
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(
                f"{dataset}: {name} labels are {labels.dtype} of shape {labels.shape}; expected "
                "whole numbers of shape (n,), or float32."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= source.classes))
        if len(wrong):
            raise DataError(
                f"{dataset}: {name} label {wrong[0]} is {labels[wrong[0]]}; expected 0 to "
                f"{source.classes - 1}. A set without labels cannot be used."
            )


def _check_finite(dataset: str, what: str, values: NDArray[Any]) -> None:
    if values.dtype.kind != "f":
        return
    for start, rows in on_disk.pieces(values):
        if not np.isfinite(rows).all():
            place = start + int(np.argwhere(~np.isfinite(rows))[0][0])
            raise DataError(
                f"{dataset}: {what} {place} holds NaN or infinity; expected numbers. "
                "Leave out that example, or mend it."
            )
