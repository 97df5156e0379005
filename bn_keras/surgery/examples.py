"""A user's examples in batches, in every form in which Keras takes them."""

import itertools
from typing import Any, Iterable, Iterator, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras import on_disk
from bn_keras.surgery import calls
from bn_keras.tf_datasets import is_dataset, untuned

DATA = (
    "an array, a tuple (x, y) or (x, y, sample_weight) of arrays, a list, tuple or dict of arrays "
    "for a model of several inputs, a tf.data.Dataset, or another iterable of batches x, (x, y) or "
    "(x, y, sample_weight)"
)


class Batch(NamedTuple):
    """A batch of examples; y and sample_weight are None where there are none."""

    x: Any
    y: Any = None
    sample_weight: Any = None


class Examples:
    """The examples of a model in batches, as often as they are asked for; no batch is empty.

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> data = np.zeros((5, 2)), np.arange(5)
    >>> [(batch.x.shape, batch.y.tolist()) for batch in Examples(model, data, 3, "shown")]
    [((3, 2), [0, 1, 2]), ((2, 2), [3, 4])]

    Args:
        model: the model that takes them, built.
        data: arrays, (n, ...): x alone, or a tuple (x, y) or (x, y, sample_weight); a list, tuple
            or dict of arrays is the x of a model of several inputs. Or a tf.data.Dataset, a
            keras.utils.PyDataset or another iterable of batches, each x, (x, y) or
            (x, y, sample_weight).
        batch_size: of arrays; other data are batches already.
        caller: the name of who reads them, for messages.
        shuffle: read arrays in a random order, always the same one: their first batches then are
            like all others. Other data are read as they come.

    Attributes:
        count: how many examples there are; None where only reading them all would tell.
        first: the x of the first batch.
        first_batch: all of it.
        once: whether they can be read only once, as a generator can.
        kind: the type of the data, for messages.

    Raises:
        TypeError: none of these forms.
        ValueError: 0 examples, infinitely many, arrays of different lengths, or of other shapes
            than the model takes.
    """

    def __init__(
        self, model: keras.Model, data: Any, batch_size: int, caller: str, shuffle: bool = False
    ) -> None:
        self._caller = caller
        check_batch_size(batch_size, caller)
        self._expected = calls.input_count(model)
        self.kind = type(data).__name__
        self.once = False
        self._batches: Iterable[Any]
        if self._is_inputs(data):
            self._batches = _Slices((data,), batch_size, caller, shuffle)
        elif isinstance(data, tuple) and len(data) in (2, 3) and self._is_inputs(data[0]):
            self._batches = _Slices(data, batch_size, caller, shuffle)
        elif isinstance(data, keras.utils.PyDataset):
            self._batches = _Indexed(data)
        else:
            check_form(data, caller)
            cardinality = getattr(data, "cardinality", None)
            if cardinality is not None and int(cardinality()) == -1:
                raise ValueError(
                    f"{caller}: received a tf.data.Dataset without an end; expected one pass over "
                    "the examples, such as dataset.take(steps_per_epoch)."
                )
            self._batches = untuned(data) if is_dataset(data) else data
            self.once = iter(self._batches) is self._batches
        self.count = getattr(self._batches, "length", None)
        batches = iter(self._batches)
        first = next((batch for batch in map(self._parts, batches) if length(batch.x)), None)
        if first is None:
            raise ValueError(f"{caller}: received 0 examples; expected at least 1.")
        self._check_batched(first)
        try:
            calls.check_inputs(model, first.x, caller)
        except ValueError as error:
            if not isinstance(first.x, tuple) or first.y is not None:
                raise
            raise ValueError(
                f"{error} A tuple of {len(first.x)} arrays is taken for the inputs of this model; "
                "with labels it is ((input, input), y)."
            ) from error
        self.first_batch, self.first = first, first.x
        if self.once:
            self._rest = batches

    def __iter__(self) -> Iterator[Batch]:
        read = 0
        rest = map(self._parts, self._rest if self.once else self._batches)
        for batch in itertools.chain([self.first_batch] if self.once else [], rest):
            if length(batch.x):
                read += 1
                yield batch
        if not read:
            raise ValueError(
                f"{self._caller}: the {type(self._batches).__name__} gave no batches when it was "
                f"read again; expected {DATA} that can be read several times."
            )

    def _is_inputs(self, x: Any) -> bool:
        """Whether these are the arrays of all inputs of the model."""
        several = isinstance(x, (list, tuple)) and len(x) == self._expected > 1
        return isinstance(x, dict) or _is_array(x) or (
            several and any(map(_is_array, x))  # an optional one may be None
            and all(one is None or _is_array(one) for one in x)
        )

    def _parts(self, batch: Any) -> Batch:
        """What is in a batch: Keras's convention is x, (x,), (x, y) or (x, y, w)."""
        if not isinstance(batch, (tuple, list)):
            found = Batch(batch)
        # A batch of several inputs without labels: a single array would not do for the model.
        elif not isinstance(self._batches, _Slices) and self._is_inputs(batch):
            found = Batch(batch)
        elif 1 <= len(batch) <= 3:
            found = Batch(*batch)
        else:
            raise TypeError(
                f"{self._caller}: received a batch that is a {type(batch).__name__} of "
                f"{len(batch)}; expected {DATA}. np.asarray makes an array of a list of numbers."
            )
        arrays = keras.tree.flatten(found.x)  # None: an optional input that is left out
        strange = [one for one in arrays if one is not None and not _is_array(one)]
        if strange:
            raise TypeError(
                f"{self._caller}: received inputs that hold a {type(strange[0]).__name__}; "
                f"expected {DATA}. np.asarray makes an array of a list of numbers."
            )
        return found

    def _check_batched(self, first: Batch) -> None:
        """Raises for single examples, as in a tf.data.Dataset without `batch`."""
        y = tuple(first.y.values()) if isinstance(first.y, dict) else first.y
        labels = y if isinstance(y, tuple) else (y,)
        if labels and all(_is_scalar(one) for one in labels):
            shapes = ", ".join(
                str(tuple(one.shape)) for one in keras.tree.flatten(first.x) if one is not None
            )
            raise ValueError(
                f"{self._caller}: received a {self.kind} of single examples, inputs of shape "
                f"{shapes} with one label; expected batches, as dataset.batch(32) gives."
            )


def check_form(data: Any, caller: str) -> None:
    """Raises for what no model takes as examples.

    Raises:
        TypeError: neither an array nor an iterable of batches.
    """
    if isinstance(data, (str, bytes)) or not (_is_array(data) or isinstance(data, Iterable)):
        raise TypeError(f"{caller}: received a {type(data).__name__}; expected {DATA}.")


def check_batch_size(batch_size: object, caller: str) -> None:
    """Raises for what is no number of examples.

    Raises:
        ValueError: it is none.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"{caller}: batch_size={batch_size!r}; expected a number of examples of at least 1."
        )


class _Slices:
    """Consecutive batches of arrays; a part of them may be None."""

    def __init__(self, arrays: Any, size: int, caller: str, shuffle: bool) -> None:
        lengths = {len(array) for array in keras.tree.flatten(arrays) if array is not None}
        if len(lengths) > 1:
            raise ValueError(
                f"{caller}: received arrays of {sorted(lengths)} examples; expected equally many."
            )
        self._arrays, self._size, self.length = arrays, size, lengths.pop() if lengths else 0
        self._order = np.random.default_rng(0).permutation(self.length) if shuffle else None

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.length, self._size):
            part: Any = slice(start, start + self._size)
            if self._order is not None:
                part = np.sort(self._order[part])  # sorted: HDF5 takes no other indices
            yield keras.tree.map_structure(
                lambda array: None if array is None else _rows(array, part), self._arrays
            )


class _Indexed:
    """The batches of a keras.utils.PyDataset."""

    def __init__(self, dataset: keras.utils.PyDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return (self._dataset[number] for number in range(self._dataset.num_batches))


def _rows(array: Any, part: Any) -> Any:
    """Some rows of an array: a slice, or indices."""
    if isinstance(part, slice):
        return on_disk.rows(array, part.start, part.stop)
    if on_disk.is_on_disk(array):
        return on_disk.gather(array, part)
    if keras.ops.is_tensor(array):
        return keras.ops.take(array, part, axis=0)
    return getattr(array, "iloc", array)[part]  # a frame takes indices for names of columns


def _is_array(x: object) -> bool:
    return hasattr(x, "shape")


def _is_scalar(x: object) -> bool:
    return getattr(x, "shape", None) == () or isinstance(x, (int, float))


def length(x: Any) -> int:
    """How many examples are in an array or a nest of arrays."""
    return len(next(one for one in keras.tree.flatten(x) if one is not None))


def not_finite(x: Any) -> NDArray[np.bool_]:
    """Which examples of a batch of inputs hold NaN or infinity, (n,)."""
    found = np.zeros(length(x), bool)
    for one in keras.tree.flatten(x):
        if one is None:
            continue
        if keras.ops.is_tensor(one):
            one = keras.ops.cast(one, "float64") if "float" in str(one.dtype) else one
            one = keras.ops.convert_to_numpy(one)
        values = np.asarray(one)
        if values.dtype.kind == "f":
            found |= ~np.isfinite(values.reshape(len(values), -1)).all(1)
    return found
