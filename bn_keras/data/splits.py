"""What every dataset is turned into: three sets of examples as NumPy arrays."""

import dataclasses

import numpy as np


class DataError(ValueError):
    """Data that cannot be used; the message names the file or setting and the remedy."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one set.

    Attributes:
        images: uint8, shape (n, height, width, channels).
        labels: int32, shape (n,).
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def take(self, indices):
        """The examples of these indices."""
        return Split(self.images[indices], self.labels[indices])

    def first(self, count):
        """The first `count` examples."""
        return Split(self.images[:count], self.labels[:count])


@dataclasses.dataclass(frozen=True)
class Source:
    """What a dataset file returns: examples to train on, examples to test on, and their kind.

    Attributes:
        train, test: Split.
        classes: number of classes.
        ordered: whether the train examples may stand in an order that means something (by class),
            so that a validation set must be drawn and not cut off.
    """

    train: Split
    test: Split
    classes: int
    ordered: bool = True


@dataclasses.dataclass(frozen=True)
class Splits:
    """Train, validation and test set of a run.

    Attributes:
        train, validation, test: Split.
        classes: number of classes.
        scale: factor that maps the stored pixels to [0, 1].
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    scale: float = 1 / 255


def make_splits(source, train_size=None, validation_size=5000, test_size=None):
    """Takes the validation set from the front of the train examples and cuts all to size.

    Args:
        source: Source.
        train_size, test_size: how many to keep; None keeps all.
        validation_size: how many to validate on.

    Raises:
        DataError: more was asked for than there is.
    """
    available = len(source.train)
    train = source.train
    if source.ordered:
        order = np.random.default_rng(0).permutation(available)
        train = Split(train.images[order], train.labels[order])
    if validation_size >= available:
        raise DataError(
            f"validation_size={validation_size}: the dataset has {available} training images; "
            f"expected at most {available - 1}."
        )
    rest = available - validation_size
    _fits("train_size", train_size, rest, "training images after validation took its own")
    _fits("test_size", test_size, len(source.test), "test images")
    stop = available if train_size is None else validation_size + train_size
    return Splits(
        train=Split(train.images[validation_size:stop], train.labels[validation_size:stop]),
        validation=train.first(validation_size),
        test=source.test.first(test_size),
        classes=source.classes,
    )


def _fits(name, size, available, what):
    if size is not None and size > available:
        raise DataError(
            f"{name}={size}: the dataset has {available} {what}; expected at most {available}."
        )
