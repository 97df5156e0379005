"""What a program has as inputs and labels, made the arrays that a `Split` holds."""

import dataclasses
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from bn_keras import on_disk
from bn_keras.data import scratch
from bn_keras.data.nests import Nest
from bn_keras.data.splits import DataError, ranges
from bn_keras.objects import told

FEW = 20  # different whole numbers among floats that may have been meant as classes
EXACT = 2**24  # float32 has every whole number up to here
MOST_CLASSES = 100_000
SHOWN = 8  # labels or columns in a message
NUMBERS = "numbers to predict are given as floats, such as y.astype('float32')"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of all sets.

    Attributes:
        sets: labels by name of the set; as in a `Split`.
        classes: as in a `Source`.
        notes: sentences on what was assumed.
        shape: of one label before it became a class, of one-hot rows; else None.
    """

    sets: dict[str, NDArray[Any]]
    classes: int
    notes: tuple[str, ...] = ()
    shape: Optional[tuple[int, ...]] = None


# --- inputs -------------------------------------------------------------------------------------


def to_inputs(where: str, x: Any, count: int, notes: list[str]) -> Nest:
    """Inputs as uint8 or float32 arrays (n, ...), in the structure that they have.

    Args:
        where: dataset and set, for messages.
        x: an array or what NumPy makes one of, or a dict, tuple or list of these.
        count: how many labels there are; a list of as many parts is one of examples.
        notes: gets a sentence on what was changed.

    Raises:
        DataError: no numbers, or no arrays.
    """
    if isinstance(x, dict) and x:
        return {key: to_inputs(f"{where}[{key!r}]", x[key], count, notes) for key in x}
    listed = isinstance(x, list) and len(x) != count and all(
        isinstance(part, (dict, tuple)) or hasattr(part, "shape") for part in x
    )
    if (listed or isinstance(x, tuple)) and len(x):
        parts = [to_inputs(f"{where}[{n}]", part, count, notes) for n, part in enumerate(x)]
        return parts if isinstance(x, list) else tuple(parts)
    return _input_array(where, x, notes)


def _input_array(where: str, value: Any, notes: list[str]) -> NDArray[Any]:
    array = _array(where, value)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where} are of type {array.dtype}; expected numbers in an array of one shape an "
            "example. Encode texts and dates as numbers, or leave them out."
        )
    if 0 in array.shape[1:]:
        raise DataError(f"{where} have the shape {array.shape}; expected at least one value each.")
    if array.ndim == 1:
        array = array[:, None]
        notes.append(f"{where}: one number an example, taken as the shape {array.shape}")
    if on_disk.is_on_disk(array) and not array.flags.c_contiguous and array.flags.f_contiguous:
        raise DataError(
            f"{where} are a file in Fortran order, in which an example's values lie far apart; "
            "expected one in C order, as numpy.save writes np.ascontiguousarray(x)."
        )
    if array.dtype in (np.uint8, np.float32):
        return array
    found: list[str] = []
    converted = scratch.mapped(lambda rows: _as_float32(where, rows, found), array, where)
    notes.extend(found[:1])
    return converted


def _as_float32(where: str, array: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are reported by `check`
        converted = array.astype(np.float32)
        if array.size == 0 or -EXACT <= array.min() <= array.max() <= EXACT:
            return converted
        changed = (converted != array) & (np.rint(array) == array)
    if array.dtype.kind == "f" and (np.isinf(converted) & np.isfinite(array)).any():
        raise DataError(f"{where} reach {np.nanmax(np.abs(array)):g}; expected less than 3e38.")
    if changed.any():  # the rounding of fractions is too small to matter
        value = array[changed][0]
        notes.append(
            f"{where}: as float32 the number {value:.0f} is {converted[changed][0]:.0f}; subtract "
            "an offset if such differences matter"
        )
    return converted


def _array(where: str, value: Any) -> NDArray[Any]:
    """What NumPy makes of a value, with a first axis of examples."""
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise DataError(
            f"{where} are {value!r:.60}; expected an array or a list, with one entry an example."
        )
    if np.ma.isMaskedArray(value) and np.ma.getmaskarray(value).any():
        raise DataError(
            f"{where} are a masked array; expected a value everywhere. Fill it: x.filled(0)."
        )
    try:
        if hasattr(value, "columns"):
            array = _of_frame(where, value)
        else:
            array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
            if on_disk.is_on_disk(value):
                array = value  # NumPy would take it for one in memory
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a ragged list, a tensor on a GPU or with a gradient, …
        raise DataError(
            f"{where} are a {type(value).__name__} that NumPy cannot take ({told(error)}); "
            "expected entries of one shape. Of a PyTorch tensor give x.detach().cpu().numpy()."
        ) from error
    if array.ndim == 0:
        raise DataError(
            f"{where} are a {type(value).__name__}; expected an array or a list, with one entry an "
            "example. Of a sparse matrix give x.toarray(), of a generator list(x)."
        )
    return array


def _of_frame(where: str, frame: Any) -> NDArray[Any]:
    names = list(frame.columns)
    if len(set(names)) < len(names):
        raise DataError(f"{where}: two columns of the frame have one name; expected other names.")
    columns = {name: np.asarray(frame[name]) for name in names}
    wrong = [name for name in names if columns[name].dtype.kind not in "biuf"]
    if wrong and len(names) > 1:
        shown = ", ".join(f"{name!r} ({columns[name].dtype})" for name in wrong[:SHOWN])
        raise DataError(
            f"{where}: columns of the frame that are no numbers: {shown}; expected numbers, and "
            "none missing. Encode these columns, or leave them out."
        )
    if not names:
        raise DataError(f"{where}: a frame without columns; expected at least one.")
    return np.column_stack(list(columns.values()))


# --- labels -------------------------------------------------------------------------------------


def label_array(where: str, y: Any) -> NDArray[Any]:
    """Labels of one set as an array: whole numbers, booleans, floats or texts.

    Args:
        where: dataset and set, for messages.
        y: an array or what NumPy makes one of.

    Returns:
        Shape (n, ...). Whole numbers, booleans and texts of shape (n, 1) become (n,).

    Raises:
        DataError: of another type, or no array.
    """
    if isinstance(y, (dict, tuple)):
        raise DataError(
            f"{where} are a {type(y).__name__} of {len(y)}; expected one array. A net of several "
            "outputs cannot be compared yet."
        )
    array = np.array(_array(where, y))  # in memory, also those of a file
    if array.dtype.kind in "OST":
        texts = [
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            for value in array.ravel().tolist()
        ]
        odd = [value for value in texts if not isinstance(value, str)]
        if odd:
            raise DataError(
                f"{where} are of type {array.dtype} and hold {odd[0]!r:.60}; expected whole "
                "numbers, texts or floats, all of one type and none missing."
            )
        array = np.array(texts, dtype=str).reshape(array.shape)
    if array.dtype.kind not in "biufU":
        raise DataError(
            f"{where} are of type {array.dtype}; expected whole numbers or texts for classes, or "
            "floats."
        )
    if array.shape[1:] == (1,) and array.dtype.kind != "f":
        array = array[:, 0]
    return array


def shape_in_fit(y: Any) -> Optional[tuple[int, ...]]:
    """(1,) for labels that `fit` gives to a loss as a column; None for others.

    A column in y is one, and so is a pandas Series, which Keras gives an axis more.
    """
    is_series = hasattr(y, "to_numpy") and hasattr(y, "index") and getattr(y, "ndim", 0) == 1
    return (1,) if is_series or tuple(getattr(y, "shape", ()))[1:] == (1,) else None


def number_labels(name: str, raw: dict[str, NDArray[Any]]) -> Labels:
    """Classes numbered from 0, or numbers as float32.

    Args:
        name: of the data, for messages.
        raw: by name of the set, as `label_array` returns them; "train" is one of them. Not empty.

    Raises:
        DataError: sets that do not fit each other, one class only, classes that train lacks.
    """
    kinds = {which: (_kind(array), array.shape[1:]) for which, array in raw.items()}
    for which, found in kinds.items():
        if found != kinds["train"]:
            received = " but ".join(
                f"{one} labels are {kinds[one][0]} of shape {_shown(kinds[one][1])}"
                for one in ("train", which)
            )
            raise DataError(f"{name}: {received}; expected labels of one kind.")
    kind, shape = kinds["train"]
    if 0 in shape or (kind == "texts" and shape):
        raise DataError(f"{name}: labels are {kind} of shape {_shown(shape)}; expected (n,).")
    if kind == "texts":
        return _classes(name, raw)
    if len(shape) == 1 and shape[0] > 1 and all(map(_is_one_hot, raw.values())):
        labels = {which: array.argmax(1).astype(np.int32) for which, array in raw.items()}
        note = (
            f"{name}: one-hot labels of {shape[0]} columns are taken as the classes 0 to "
            f"{shape[0] - 1}"
        )
        _check_trained(name, labels, np.arange(shape[0]))
        return Labels(labels, shape[0], (note,), shape)
    if kind == "whole numbers" and not shape:
        return _classes(name, raw)
    return _numbers(name, raw, kind, shape)


def _kind(array: NDArray[Any]) -> str:
    return {"f": "floats", "U": "texts"}.get(array.dtype.kind, "whole numbers")


def _is_one_hot(array: NDArray[Any]) -> bool:
    return bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())


def _shown(shape: tuple[int, ...]) -> str:
    """Shape of labels, whose first axis is that of the examples."""
    return f"(n, {', '.join(map(str, shape))})" if shape else "(n,)"


def _classes(name: str, raw: dict[str, NDArray[Any]]) -> Labels:
    texts = raw["train"].dtype.kind == "U"
    values = [array if texts else array.astype(np.int64) for array in raw.values()]
    found = np.unique(np.concatenate(values))
    if len(found) == 1:
        raise DataError(
            f"{name}: every label is {found[0].item()!r:.60}; expected labels of at least two "
            "classes."
        )
    if texts:
        values = [np.searchsorted(found, part) for part in values]
    notes: tuple[str, ...] = ()
    classes = len(found) if texts else _highest(name, found) + 1
    labels = {which: part.astype(np.int32) for which, part in zip(raw, values)}
    if classes > len(found):  # a net may have outputs for classes that these examples lack
        notes = (
            f"{name}: its labels are {ranges(found.tolist())}, {len(found)} of the classes 0 to "
            f"{classes - 1}",
        )
    if texts:
        shown = [f"{str(text)!r:.40}" for text in found]
        if len(shown) > SHOWN:
            shown = [*shown[:SHOWN - 1], "…", shown[-1]]
        notes = (
            f"{name}: the labels {', '.join(shown)} are taken as the classes 0 to {classes - 1}, "
            "in that order",
        )
    _check_trained(name, labels, found if texts else np.arange(classes))
    return Labels(labels, classes, notes)


def _highest(name: str, found: NDArray[Any]) -> int:
    """The highest class among whole numbers, which are those of a net's outputs, as in Keras."""
    if found[0] < 0 or found[-1] >= MOST_CLASSES:
        raise DataError(
            f"{name}: its labels are {ranges(found.tolist())}; expected classes numbered from 0, "
            f"fewer than {MOST_CLASSES:,}, or floats where they are numbers to predict."
        )
    return int(found[-1])


def _check_trained(name: str, labels: dict[str, NDArray[Any]], found: NDArray[Any]) -> None:
    """Refuses classes that stand in another set and not in train."""
    for which, array in labels.items():
        unknown = np.setdiff1d(array, labels["train"])
        if len(unknown):
            value = found[unknown[0]].item()
            raise DataError(
                f"{name}: {np.isin(array, unknown).sum():,} {which} labels, such as {value!r:.60}, "
                f"do not occur in train; expected labels that are trained on. Leave these examples "
                f"out. ({NUMBERS[0].upper()}{NUMBERS[1:]}.)"
            )


def _numbers(
    name: str, raw: dict[str, NDArray[Any]], kind: str, shape: tuple[int, ...]
) -> Labels:
    train = raw["train"]
    if (train == train.flat[0]).all():
        raise DataError(f"{name}: every train label is {train.flat[0]}; expected ones that differ.")
    notes = []
    if shape not in ((), (1,)) and bool(((train == 0) | (train == 1)).all()):
        notes.append(f"{name}: labels of shape {_shown(shape)} are taken as several, each 0 or 1")
    elif kind == "whole numbers":
        notes.append(
            f"{name}: whole numbers of shape {_shown(shape)} are taken as numbers to predict; "
            "classes have the shape (n,) or (n, 1)"
        )
    elif shape in ((), (1,)):
        found = np.unique(train)
        if len(found) <= FEW and (found == np.rint(found)).all():
            notes.append(
                f"{name}: labels are the floats {ranges(found.astype(int).tolist())}, taken as "
                "numbers to predict; classes are given as whole numbers, such as y.astype(int)"
            )
    with np.errstate(over="ignore", invalid="ignore"):  # reported by `check`
        labels = {which: array.astype(np.float32) for which, array in raw.items()}
    return Labels(labels, shape[-1] if shape else 1, tuple(notes))
