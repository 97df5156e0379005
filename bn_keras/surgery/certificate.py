"""What a surgery did to a model: a table of its layers, and a measured difference of the outputs.

Every surgery returns a new model and a `Certificate`; the rest here is how it is filled in.
"""

import collections
import dataclasses
import warnings
from typing import Any, Iterator, Mapping, Optional, Sequence, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.surgery import calls
from bn_keras.texts import in_a_line, jsonable, table

Key = TypeVar("Key")
EXCHANGED, ALREADY, LEFT, KEPT = "exchanged", "already", "left", "kept"
TRIED = 4  # random examples for the comparison of the outputs
TRIED_LENGTH = 8  # of an axis whose length the model leaves open


class OutputsDiffer(ValueError):
    """The new model's outputs are further from the given one's than was allowed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer that a surgery is about, or one that could hide such a layer.

    Attributes:
        path: names of the layers around it and its own, outer ones first.
        before: its class.
        after: the class in its place; None where there is none.
        fate: what was done with it: "exchanged", "already" (it is of the wanted kind), "kept"
            (nobody wanted another one there), "left" (it could not be changed), or another word
            that the surgery explains.
        note: why it was left, or what else is to be known.
    """

    path: str
    before: str
    after: Optional[str]
    fate: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a surgery did to a model. `str()` gives a table.

    Attributes:
        surgery: its name, such as "convert".
        rows: one for each layer that it is about, in the order of the layers; a shared one has one
            row.
        difference: the largest distance of an output of the new model from the given one's, in
            inference mode; None where it could not be measured.
        relative: the same, divided by the largest value in that output of the given model.
        measured: over what they were measured, or why they were not.
        figures: what else the surgery measured: name → value.
    """

    surgery: str
    rows: tuple[Row, ...]
    difference: Optional[float]
    relative: Optional[float]
    measured: str
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def count(self, fate: str) -> int:
        """How many rows have a fate."""
        return sum(row.fate == fate for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it: a number that is not finite is a text, such as "nan"."""
        found: dict[str, Any] = jsonable(
            {**dataclasses.asdict(self), "figures": dict(self.figures)}
        )
        return found

    def __str__(self) -> str:
        cells = [("layer", "before", "after", "")]
        cells += [(row.path, row.before, row.after or row.fate, row.note) for row in self.rows]
        counts = collections.Counter(row.fate for row in self.rows)
        done = ", ".join(f"{number} {WORDS.get(fate, fate)}" for fate, number in counts.items())
        far = "not measured" if self.difference is None else (
            f"differ by {self.difference:.1e}, {self.relative:.1e} of the largest"
        )
        return "\n".join([
            table(cells),
            f"{self.surgery}: {done or 'nothing to do'}; outputs {far} ({self.measured})",
            *(f"{name}: {value}" for name, value in self.figures.items()),
        ])


WORDS = {ALREADY: "already of the wanted kind"}


def certificate_of(
    surgery: str, model: keras.Model, copy: keras.Model, rows: Sequence[Row], *,
    inputs: Any = None, tolerance: Optional[float] = None,
    figures: Optional[Mapping[str, Any]] = None,
) -> Certificate:
    """The certificate of a model's copy, for which both models are called.

    Args:
        surgery: its name.
        model, copy: the given model and the new one.
        rows: its table.
        inputs: what both models are called on; None for random values.
        tolerance: the largest `relative` that is allowed; None for any.
        figures: what else was measured.

    Raises:
        OutputsDiffer: a difference above `tolerance`, one that is not finite, or none that could be
            measured although there is a tolerance.
        ValueError: inputs of a shape that the model does not take.
    """
    found = Certificate(
        surgery, tuple(rows), *_measured(surgery, model, copy, inputs), figures=figures or {}
    )
    if tolerance is not None and not (found.relative is not None and found.relative <= tolerance):
        raise OutputsDiffer(
            f"{surgery}: the outputs of the new model may differ by {tolerance:g} of the largest; "
            f"received:\n{found}"
        )
    return found


def paths(model: keras.Model) -> dict[int, str]:
    """Id of each layer of a model → names of the layers around it and its own."""
    found: dict[int, str] = {}

    def walk(layer: keras.Layer, path: str) -> None:
        found.setdefault(id(layer), path)
        for other in held_by(layer):
            if id(other) not in found:
                walk(other, f"{path}/{other.name}" if path else other.name)

    walk(model, "")
    for layer in model._flatten_layers():
        found.setdefault(id(layer), layer.path or layer.name)
    return found


def held_by(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer or model holds itself, not those inside of these."""
    return list(layer.layers if isinstance(layer, keras.Model) else layer._layers)


def not_in_config(copy: keras.Model, layers: Mapping[Key, keras.Layer]) -> set[Key]:
    """Which of a model's layers its config does not hold as they are, so that no file of it will.

    Of layers of the same class, name and `trainable`, nobody can say which one is in the config: if
    there are fewer of them in it than in the model, none counts as held.

    Args:
        copy: the model.
        layers: any key → a layer, which Keras may track or not.

    Returns:
        Keys; all of them for a model without a config.
    """
    try:
        config = keras.saving.serialize_keras_object(copy)
    except Exception:
        return set(layers)

    def told(layer: keras.Layer) -> tuple[Any, ...]:
        return keras.saving.get_registered_name(type(layer)), layer.name, layer.trainable

    every = {id(layer): layer for layer in (*copy._flatten_layers(), *layers.values())}
    here = collections.Counter(map(told, every.values()))
    there = collections.Counter(_layers_in(config))
    return {key for key, layer in layers.items() if there[told(layer)] < here[told(layer)]}


def _layers_in(config: Any) -> Iterator[tuple[Any, ...]]:
    """(registered name, name, trainable) of all that has a config in a config, however deep."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict):
            kind = config.get("registered_name") or config.get("class_name")
            yield kind, inner.get("name"), inner.get("trainable", True)
        config = list(config.values())
    for part in config if isinstance(config, (list, tuple)) else ():
        yield from _layers_in(part)


def _measured(
    surgery: str, model: keras.Model, copy: keras.Model, inputs: Any
) -> tuple[Optional[float], Optional[float], str]:
    """The largest absolute and relative difference of the outputs; and over what, or why not."""
    given = "random" if inputs is None else "given"
    if inputs is not None:
        calls.check_inputs(model, inputs, surgery)
    try:
        inputs = random_inputs(model) if inputs is None else inputs
    except ValueError as error:
        return None, None, str(error)
    state = [(v, np.array(v.numpy())) for m in (model, copy) for v in m.variables]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = [
                [_wide(y) for y in keras.tree.flatten(calls.infer(m, inputs))]
                for m in (model, copy)
            ]
            pairs = [
                (np.max(_distance(one, other), initial=0.0),
                 np.max(np.abs(one), initial=0.0, where=np.isfinite(one)))
                for one, other in zip(*results, strict=True)
            ]
            relative = max(far / size if far else 0.0 for far, size in pairs)
            lost = [~np.isfinite(one) & ~np.isfinite(other) for one, other in zip(*results)]
    except Exception as error:
        return None, None, f"on {given} inputs: {in_a_line(error)}"
    finally:
        for variable, value in state:
            variable.assign(value)
    shapes = ", ".join(str(tuple(np.shape(x))) for x in keras.tree.flatten(inputs))
    missing, total = (sum(int(count(part)) for part in lost) for count in (np.sum, np.size))
    if missing and missing == total:
        return None, None, f"on {given} inputs of shape {shapes}, no output of either is finite"
    not_compared = f"; {missing} of {total} outputs are not finite in either" if missing else ""
    return (
        float(max(far for far, _ in pairs)),
        float(relative),
        f"{given} inputs of shape {shapes}, in inference mode{not_compared}",
    )


def _wide(outputs: Any) -> NDArray[np.float64]:
    if keras.backend.standardize_dtype(outputs.dtype) == "bfloat16":  # NumPy has none
        outputs = keras.ops.cast(outputs, "float32")
    return keras.ops.convert_to_numpy(outputs).astype(np.float64)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Absolute differences; outputs that are NaN or infinite in both models are equal."""
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(equal, 0.0, np.abs(one - other))


def random_inputs(model: keras.Model) -> Any:
    """Random arrays in the structure that a model takes; integers are 0 or 1.

    Raises:
        ValueError: its inputs are not known, or are of a dtype of which nothing can be drawn.
    """
    rng = np.random.default_rng(0)

    def draw(shape: Sequence[Optional[int]], dtype: str = "float32") -> NDArray[Any]:
        sizes = [TRIED, *(TRIED_LENGTH if size is None else size for size in shape[1:])]
        if dtype.startswith(("float", "bfloat")):
            return rng.normal(size=sizes).astype("float32")
        if dtype.startswith(("int", "uint", "bool")):
            return rng.integers(0, 2, sizes).astype(dtype)
        raise ValueError(f"no random inputs of dtype {dtype}")

    if getattr(model, "inputs", None):
        structure = getattr(model, "_inputs_struct", model.inputs)
        if isinstance(model, keras.Sequential):
            structure, = model.inputs
        return keras.tree.map_structure(lambda x: draw(x.shape, x.dtype), structure)
    config = model.get_build_config() or {}
    shape = config.get("input_shape")
    # A list in a model that was loaded.
    if not isinstance(shape, (tuple, list)) or not all(
        isinstance(size, (int, type(None))) for size in shape
    ):
        raise ValueError(f"the inputs are not known from the shapes of the first call: {config}")
    return draw(shape)
