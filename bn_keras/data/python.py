"""Data that a program has in hand: NumPy arrays, pandas frames, tensors, a tf.data.Dataset.

    from_python((x_train, y_train, x_test, y_test))

Inputs are fed to the net as they are. The type of the labels says what is to be learned: whole
numbers, booleans, texts and one-hot rows are classes, floats are numbers to predict.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from bn_keras import on_disk
from bn_keras.data import scratch
from bn_keras.data.checks import check
from bn_keras.data.nests import leaves
from bn_keras.data.reading.arrays import (
    label_array,
    number_labels,
    shape_in_fit,
    to_inputs,
)
from bn_keras.data.reading.tf_data import read_dataset
from bn_keras.data.splits import DataError, Source, Split, draw_test
from bn_keras.texts import plain
from bn_keras.tf_datasets import is_dataset

SETS = ("train", "validation", "test")
FORMS = (
    "expected (x_train, y_train, x_test, y_test), or (x, y) of which a fifth is drawn for testing, "
    "or ((x_train, y_train), (x_test, y_test)), with a pair for validation in the middle if there "
    "is one, or a dict of such pairs by 'train', 'validation' and 'test'; a tf.data.Dataset can "
    "stand for a pair"
)


def from_python(data: Any, name: str = "data") -> Source:
    """Brings data of a program into the form of a dataset.

    Args:
        data: `(x_train, y_train, x_test, y_test)`; `((x_train, y_train), (x_test, y_test))`; the
            same with `(x_validation, y_validation)` in the middle; `(x, y)`, of which a fifth is
            drawn for testing, always the same; or a dict of pairs by "train", "test" and
            "validation", of which "train" is needed. A finite `tf.data.Dataset` of pairs, in
            batches or not, can stand for any pair; it is read into memory, or to a temporary file
            if it is too large, from which its inputs are streamed.

            An x is what NumPy makes an array of, (n, ...): an array, a list, a tensor, a frame of
            numbers. A dict or a tuple of them is for a net of several inputs, and so is a list of
            arrays if there are not just as many as examples. uint8 stays, other numbers become
            float32. An np.memmap, such as np.load(path, mmap_mode="r"), is streamed.

            A y is classes: whole numbers, booleans or texts of shape (n,) or (n, 1), or one-hot
            rows. Classes are numbered from 0. Or it is numbers to predict, which become float32 of
            the same shape: floats of any shape, also if all of them are whole; whole numbers of
            shape (n, k) that are no one-hot rows, such as several labels of 0 and 1; and of more
            axes, such as images.
        name: of the data, for messages.

    Returns:
        Source, with `as_given`, and with notes on what was assumed.

    Raises:
        DataError: another form, or unfit data.
    """
    sets = _sets(name, data)
    notes: list[str] = []
    inputs, raw_labels, shapes = {}, {}, {}
    for which, given in sets.items():
        where = f"{name}: {which}"
        if is_dataset(given):
            x, y = read_dataset(where, given, notes)
        else:
            x, y = _pair(where, given)
        shapes[which] = shape_in_fit(y)
        raw_labels[which] = label_array(f"{where} labels", y)
        inputs[which] = to_inputs(f"{where} inputs", x, len(raw_labels[which]), notes)
        for path, array in leaves(inputs[which]):
            if not 0 < len(array) == len(raw_labels[which]):
                raise DataError(
                    f"{where}: {len(array)} inputs{path} and {len(raw_labels[which])} labels; "
                    "expected as many, and at least one."
                )
            if on_disk.is_on_disk(array) and not is_dataset(given):
                notes.append(
                    f"{where}: inputs{path} are streamed from disk: {len(array):,} examples, "
                    f"{array.nbytes / 1e6:,.1f} MB; their shuffled copy is in {scratch.folder()}"
                )
    labels = number_labels(name, raw_labels)
    splits = {which: Split(inputs[which], labels.sets[which]) for which in sets}
    shape = labels.shape or shapes["train"]

    def source_of(train: Split) -> Source:
        return Source(
            train, splits.get("test", train), labels.classes, validation=splits.get("validation"),
            notes=tuple(plain(note) for note in (*notes, *labels.notes)), as_given=True,
            label_shape=None if shape == train.labels.shape[1:] else shape,
        )

    check(name, source_of(splits["train"]))  # messages name examples as they were given
    x = array = None  # what is on disk goes from there with the last name for it
    inputs.clear()
    for which, given in sets.items():
        if is_dataset(given):
            splits[which] = _in_order(splits.pop(which))
    train = splits["train"]
    source = source_of(train)
    if "test" in splits:
        return source
    train, test = draw_test(name, train)
    note = f"{plain(name)}: no test set given; {len(test):,} examples are drawn for it"
    return dataclasses.replace(source, train=train, test=test, notes=(*source.notes, note))


def _sets(name: str, data: Any) -> dict[str, Any]:
    """The pair or tf.data.Dataset of each set."""
    if isinstance(data, dict):
        wrong = [key for key in data if key not in SETS]
        if wrong or "train" not in data:
            keys = ", ".join(repr(key) for key in list(data)[:8]) or "no key"
            raise DataError(f"{name}: received a dict with {keys}; {FORMS}.")
        return {which: data[which] for which in SETS if which in data}
    if is_dataset(data):
        return {"train": data}
    if isinstance(data, (tuple, list)):
        if len(data) == 4:
            return {"train": tuple(data[:2]), "test": tuple(data[2:])}
        if len(data) in (2, 3) and all(map(_is_set, data)):
            return dict(zip(SETS if len(data) == 3 else ("train", "test"), data))
        if len(data) == 2:
            return {"train": tuple(data)}
        raise DataError(f"{name}: received a {type(data).__name__} of {len(data)}; {FORMS}.")
    kind = type(data).__name__
    hint = {
        "str": " (the name of a dataset goes to bn_keras.data.load)",
        "NoneType": " (does a function lack its return?)",
        "ndarray": " (its labels are missing)",
        "DataFrame": " (take the column of the labels out of it)",
        "function": " (call it)",
    }.get(kind, " (read it into arrays first)")
    raise DataError(f"{name}: received a {kind}{hint}; {FORMS}.")


def _is_set(value: Any) -> bool:
    """Whether a value is a pair (x, y); a list of two may also be two examples."""
    if isinstance(value, list):
        return len(value) == 2 and all(getattr(part, "shape", ()) for part in value)
    return is_dataset(value) or (isinstance(value, tuple) and len(value) == 2)


def _pair(where: str, given: Any) -> tuple[Any, Any]:
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    count = f" of {len(given)}" if isinstance(given, (tuple, list, dict)) else ""
    raise DataError(
        f"{where}: a {type(given).__name__}{count}; expected a pair, inputs and labels, or a "
        "tf.data.Dataset of such pairs. Weights of examples cannot be used: leave them out."
    )


def _in_order(split: Split) -> Split:
    """The examples in the order of their hashes.

    A dataset that shuffles gives another order each time. Its sets, and the digest that finds
    stored results again, are to stay the same.
    """
    arrays = [array for _, array in (*leaves(split.images), ("", split.labels))]
    step, keys = on_disk.rows_of_a_piece(*arrays), bytearray()
    for start in range(0, len(split), step):
        for rows in zip(*(on_disk.rows(array, start, start + step) for array in arrays)):
            content = b"".join(row.tobytes() for row in rows)
            keys += hashlib.blake2b(content, digest_size=16).digest()
    first, second = np.frombuffer(keys, ">u8").reshape(-1, 2).T
    return split.take(np.lexsort((second, first)))
