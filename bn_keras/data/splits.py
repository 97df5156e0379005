"""Three sets of examples as NumPy arrays: the form that every dataset is brought into."""

import dataclasses
import functools
import hashlib
from typing import Any, Iterable, Optional

import numpy as np
from numpy.typing import NDArray

from bn_keras.texts import plain

VALIDATION_SIZE = 5000  # leaves MNIST its usual 55,000


class DataError(ValueError):
    """Data that cannot be used; the message names the file or setting and the remedy.

    The message is made one printable line: it may quote a file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one set.

    Attributes:
        images: shape (n, height, width, channels); uint8 from 0 to 255, or float32 as it is to be
            used, pixels from 0 to 1. A regression's inputs: float32, shape (n, inputs).
        labels: shape (n,); int32 from 0 to classes - 1, or float32 for a regression.
    """

    images: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[Any]) -> "Split":
        """The examples of these indices."""
        return Split(self.images[indices], self.labels[indices])

    def first(self, count: Optional[int]) -> "Split":
        """The first `count` examples; None takes all."""
        return Split(self.images[:count], self.labels[:count])


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset as its file returns it: examples to train on and to test on, and their kind.

    Attributes:
        train, test: Split.
        classes: number of classes; 1 for a regression.
        ordered: whether the train examples may stand in an order that means something (by class),
            so that a validation set must be drawn and not cut off.
        notes: sentences for the user on what was assumed, such as labels that were renumbered.
    """

    train: Split
    test: Split
    classes: int
    ordered: bool = True
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Splits:
    """Train, validation and test set of a run.

    Attributes:
        train, validation, test: Split.
        classes: number of classes; 1 for a regression.
        notes: sentences for the user on what was assumed when the data were read.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    notes: tuple[str, ...] = ()
    as_given: bool = False

    @property
    def scale(self) -> float:
        """Factor that maps the stored pixels to [0, 1]: 1/255 for bytes, 1 for floats."""
        return 1 / 255 if self.train.images.dtype == np.uint8 else 1.0

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers to predict and not classes."""
        return self.train.labels.dtype.kind == "f"

    def digest(self) -> str:
        """16 hex digits that change with any value, shape or dtype, the classes or the scale.

        Computed once (60 ms for MNIST): the arrays must not change afterwards.
        """
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        total = hashlib.blake2b(f"{self.classes} {self.scale}".encode(), digest_size=8)
        for split in (self.train, self.validation, self.test):
            for array in (split.images, split.labels):
                total.update(f"{array.dtype.str} {array.shape}".encode())
                total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return total.hexdigest()


def make_splits(
    source: Source,
    train_size: Optional[int] = None,
    validation_size: int = VALIDATION_SIZE,
    test_size: Optional[int] = None,
) -> Splits:
    """Takes the validation set from the front of the train examples and cuts all to size.

    Args:
        source: Source.
        train_size, test_size: how many to keep, at least 1; None keeps all.
        validation_size: how many to validate on, at least 1.

    Raises:
        DataError: more was asked for than there is, or less than 1.
    """
    available = len(source.train)
    train = source.train
    if source.ordered:
        train = train.take(np.random.default_rng(0).permutation(available))
    unset = ", the default" if validation_size == VALIDATION_SIZE else ""
    _fits("validation_size", validation_size, 1, available - 1,
          f"the dataset has {available} training images", unset)
    rest = available - validation_size
    if train_size is not None:
        _fits("train_size", train_size, 1, rest,
              f"the dataset has {rest} training images after validation took its own")
    if test_size is not None:
        _fits("test_size", test_size, 1, len(source.test),
              f"the dataset has {len(source.test)} test images")
    stop = available if train_size is None else validation_size + train_size
    return Splits(
        train=Split(train.images[validation_size:stop], train.labels[validation_size:stop]),
        validation=train.first(validation_size),
        test=source.test.first(test_size),
        classes=source.classes,
        notes=source.notes,
    )


def _fits(name: str, size: Any, least: int, most: int, why: str, remark: str = "") -> None:
    if not isinstance(size, (int, np.integer)) or not least <= size <= most:
        raise DataError(
            f"{name}={size}{remark}: {why}; expected at least {least} and at most {most}."
        )


def check(dataset: str, source: Source) -> None:
    """Checks what every dataset promises.

    Args:
        dataset: its name, for messages.
        source: what it returned.

    Raises:
        DataError: sets that do not match each other, pixels that are no numbers, or labels that
            are no classes.
    """
    for name, split in (("train", source.train), ("test", source.test)):
        images, labels = split.images, split.labels
        if not 0 < len(images) == len(labels):
            raise DataError(
                f"{dataset}: {len(images)} {name} images and {len(labels)} {name} labels; "
                "expected as many, and at least one."
            )
        if images.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"{dataset}: {name} images of type {images.dtype}; expected uint8 from 0 to 255 or "
                "float32 from 0 to 1."
            )
        for what, values in (("image", images), ("label", labels)):
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                place = int(np.argwhere(~np.isfinite(values))[0][0])
                raise DataError(
                    f"{dataset}: {name} {what} {place} holds NaN or infinity; expected numbers. "
                    f"Leave out that example, or mend it."
                )
        if labels.dtype.kind != "f":
            wrong = np.flatnonzero((labels < 0) | (labels >= source.classes))
            if len(wrong):
                raise DataError(
                    f"{dataset}: {name} label {wrong[0]} is {labels[wrong[0]]}; expected 0 to "
                    f"{source.classes - 1}. A set without labels cannot be used."
                )
    sizes = source.train.images.shape[1:], source.test.images.shape[1:]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{dataset}: train images have the shape {sizes[0]} but test images {sizes[1]}; "
            "expected one shape. Name files of one set."
        )


def number_classes(
    where: str, *labels: NDArray[Any]
) -> tuple[list[NDArray[np.int32]], int, tuple[str, ...]]:
    """Numbers the labels that occur, in rising order, from 0.

    Args:
        where: file or folder, for messages.
        *labels: whole numbers, shape (n,): the labels of every part of a dataset.

    Returns:
        The parts as int32 classes, the number of classes, and a note if a label has changed.

    Raises:
        DataError: all labels are the same.
    """
    found = np.unique(np.concatenate(labels))
    if len(found) < 2:
        raise DataError(
            f"{where}: every label is {found[0]}; expected labels of at least two classes."
        )
    notes: tuple[str, ...] = ()
    if found[0] != 0 or found[-1] != len(found) - 1:
        notes = (
            f"{plain(where)}: its labels are {ranges(found.tolist())}; they are taken as the "
            f"classes 0 to {len(found) - 1}, in that order.",
        )
    return [np.searchsorted(found, part).astype(np.int32) for part in labels], len(found), notes


def ranges(values: Iterable[int]) -> str:
    """Rising whole numbers as a person writes them: `0, 3 to 9`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:7], "…", texts[-1]])
