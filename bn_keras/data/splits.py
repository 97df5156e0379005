"""Three sets of examples as NumPy arrays: the form that every dataset is brought into."""

import dataclasses
import functools
import hashlib
from typing import Any, Iterable, Optional

import numpy as np
from numpy.typing import NDArray

from bn_keras import on_disk
from bn_keras.data import scratch
from bn_keras.data.errors import DataError as DataError
from bn_keras.data.nests import Nest, each, leaves
from bn_keras.texts import plain

VALIDATION_SIZE = 5000  # at most, where nothing is asked for; leaves MNIST its usual 55,000
VALIDATION_SHARE = 5  # of the training examples: one in five at most
TEST_SHARE = 5  # of examples that came without a test set, one in five is drawn to test on


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one set.

    Attributes:
        images: the net's inputs, an array (n, ...) or a nest of them. Images have the shape
            (n, height, width, channels) and are uint8 from 0 to 255, or float32 as they are to be
            used, pixels from 0 to 1. Inputs of a user's own are uint8 or float32 of any shape; an
            np.memmap among them is read from its file in pieces.
        labels: int32 of shape (n,), classes from 0 to classes - 1; or float32 of any shape
            (n, ...), numbers to predict.
    """

    images: Nest
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[Any]) -> "Split":
        """The examples of these indices."""
        images = each(lambda array: scratch.take(array, indices), self.images)
        return Split(images, self.labels[indices])

    def add_to(self, digest: Any) -> None:
        """Updates a digest of hashlib's with every value, shape and dtype."""
        for path, array in (*leaves(self.images), ("", self.labels)):
            digest.update(f"{path}{array.dtype.str} {array.shape}".encode())
            for _, rows in on_disk.pieces(array):
                digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def first(self, count: Optional[int]) -> "Split":
        """The first `count` examples; None takes all."""
        return self.between(0, count)

    def between(self, start: int, stop: Optional[int]) -> "Split":
        """The examples from `start` to before `stop`, which share their memory; None is the end."""
        return Split(each(lambda array: array[start:stop], self.images), self.labels[start:stop])


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset as its file returns it: examples to train on and to test on, and their kind.

    Attributes:
        train, test: Split.
        classes: number of classes; of numbers to predict the length of the labels' last axis, 1
            for labels of shape (n,).
        ordered: whether the examples may stand in an order that means something (by class), so
            that every set must be shuffled before some of it are taken.
        notes: sentences for the user on what was assumed, such as labels that were renumbered.
        validation: Split that came with the data; None: it is to be taken from `train`.
        as_given: whether the inputs are a user's own, which are fed as they are: nothing scales
            them.
        label_shape: of one label as it came and as `fit` gives it to a loss, where that is not the
            shape in `train`: (1,) of a column, (classes,) of one-hot rows.
    """

    train: Split
    test: Split
    classes: int
    ordered: bool = True
    notes: tuple[str, ...] = ()
    validation: Optional[Split] = None
    as_given: bool = False
    label_shape: Optional[tuple[int, ...]] = None


@dataclasses.dataclass(frozen=True)
class Splits:
    """Train, validation and test set of a run.

    Attributes:
        train, validation, test: Split.
        classes: number of classes; of numbers to predict the length of the labels' last axis, 1
            for labels of shape (n,).
        notes: sentences for the user on what was assumed when the data were read.
        as_given: whether the inputs are a user's own, which are fed as they are.
        label_shape: as of a Source.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    notes: tuple[str, ...] = ()
    as_given: bool = False
    label_shape: Optional[tuple[int, ...]] = None

    @property
    def scale(self) -> float:
        """Factor that maps the stored pixels to [0, 1]: 1/255 for bytes, 1 for floats.

        1 for inputs that are fed as they are.
        """
        return 1 / 255 if getattr(self.train.images, "dtype", None) == np.uint8 else 1.0

    def pixel_scale(self, pixels: str) -> dict[str, float]:
        """Scale and offset that map inputs as they are stored to pixels as a net wants them.

        Args:
            pixels: "unit" for 0 to 1, "centered" for -0.5 to 0.5, "raw" for those that are stored.
        """
        offset = -0.5 if pixels == "centered" else 0.0
        return {"scale": 1.0 if pixels == "raw" else self.scale, "offset": offset}

    def scaled(self, pixels: str) -> "Splits":
        """The same with pixels of a kind, see `pixel_scale`, in float32; what is as given stays."""
        if self.as_given:
            return self
        factors = self.pixel_scale(pixels)

        def scaled(rows: NDArray[Any]) -> NDArray[Any]:
            images = rows.astype(np.float32)
            images *= np.float32(factors["scale"])
            images += np.float32(factors["offset"])
            return images

        def one(split: Split) -> Split:
            return Split(scratch.mapped(scaled, split.images), split.labels)

        return dataclasses.replace(
            self, train=one(self.train), validation=one(self.validation), test=one(self.test),
            as_given=True,
        )

    def labels_as_given(self) -> "Splits":
        """The same with labels of the shape in which they came, as `evaluate` takes them."""
        if self.label_shape is None:
            return self

        def one(split: Split) -> Split:
            if self.label_shape == (1,):
                return Split(split.images, split.labels.reshape(-1, 1))
            return Split(split.images, np.eye(self.classes, dtype=np.float32)[split.labels])

        return dataclasses.replace(
            self, train=one(self.train), validation=one(self.validation), test=one(self.test),
            label_shape=None,
        )

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
        kind = f"{self.classes} {self.scale}" + " as given" * self.as_given
        if self.label_shape is not None:
            kind += f" labels {self.label_shape}"
        total = hashlib.blake2b(kind.encode(), digest_size=8)
        for split in (self.train, self.validation, self.test):
            split.add_to(total)
        return total.hexdigest()


def make_splits(
    source: Source,
    train_size: Optional[int] = None,
    validation_size: Optional[int] = None,
    test_size: Optional[int] = None,
) -> Splits:
    """Takes the validation set from the front of the train examples and cuts all to size.

    A validation set that came with the data is taken instead. The sets of an ordered source are
    shuffled first, always in the same way.

    Args:
        source: Source.
        train_size, test_size: how many to keep, at least 1; None keeps all.
        validation_size: how many to validate on, at least 1; None takes all of a set that came with
            the data, else 5,000, or a fifth of the train examples where that is fewer.

    Raises:
        DataError: more was asked for than there is, or less than 1.
    """
    train, validation, test = source.train, source.validation, source.test
    if source.ordered:
        train, test = _shuffled(train), _shuffled(test)
        validation = None if validation is None else _shuffled(validation)
    word = "examples" if source.as_given else "images"
    why = f"the dataset has {len(train)} training {word}"
    if validation is None:
        if len(train) < 2:
            raise DataError(f"{why}; expected at least 2, one of them to validate on.")
        if validation_size is None:
            validation_size = max(1, min(VALIDATION_SIZE, len(train) // VALIDATION_SHARE))
        _fits("validation_size", validation_size, len(train) - 1, why)
        validation, train = train.first(validation_size), train.between(validation_size, None)
        why = f"the dataset has {len(train)} training {word} after validation took its own"
    elif validation_size is not None:
        _fits("validation_size", validation_size, len(validation),
              f"the dataset has {len(validation)} validation {word}")
        validation = validation.first(validation_size)
    if train_size is not None:
        _fits("train_size", train_size, len(train), why)
    if test_size is not None:
        _fits("test_size", test_size, len(test), f"the dataset has {len(test)} test {word}")
    return Splits(
        train=train.first(train_size),
        validation=validation,
        test=test.first(test_size),
        classes=source.classes,
        notes=source.notes,
        as_given=source.as_given,
        label_shape=source.label_shape,
    )


def draw_test(name: str, split: Split) -> tuple[Split, Split]:
    """(train, test) of examples without a test set: one in five is drawn, always the same.

    Args:
        name: of the data, for messages.
        split: the examples.

    Raises:
        DataError: less than two examples.
    """
    if len(split) < 2:
        raise DataError(
            f"{name}: {len(split)} examples and no test set; expected at least 2, one of them to "
            "test on."
        )
    order = np.random.default_rng(0).permutation(len(split))
    test, train = np.split(order, [max(1, len(split) // TEST_SHARE)])
    return split.take(train), split.take(test)


def _shuffled(split: Split) -> Split:
    return split.take(np.random.default_rng(0).permutation(len(split)))


def _fits(name: str, size: Any, most: int, why: str) -> None:
    if not isinstance(size, (int, np.integer)) or not 1 <= size <= most:
        raise DataError(f"{name}={size}: {why}; expected at least 1 and at most {most}.")


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
