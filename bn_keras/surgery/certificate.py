"""What an exchange of layers did to a model: a table of its normalizers, and a measured difference.

`convert` and `exchange` return a `Certificate`; the rest here is how it is filled in.
"""

import dataclasses
import warnings
from typing import Any, Iterator, Optional, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

EXCHANGED, ALREADY, LEFT, KEPT = "exchanged", "already", "left", "kept"
TRIED = 4  # random examples for the comparison of the outputs
TRIED_LENGTH = 8  # of an axis whose length the model leaves open


@dataclasses.dataclass(frozen=True)
class Row:
    """A normalizer, or a layer that could hide one.

    Attributes:
        path: names of the layers around it and its own, outer ones first.
        before: its class.
        after: the class in its place; None where it was left.
        fate: "exchanged", "already" (it is of the wanted kind), "kept" (nobody wanted another one
            there) or "left" (it could not be exchanged).
        note: why it was left, or what else is to be known.
    """

    path: str
    before: str
    after: Optional[str]
    fate: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `convert` or `exchange` did to a model. `str()` gives a table.

    Attributes:
        rows: one for each normalizer, in the order of the layers; a shared one has one row.
        difference: the largest distance of an output of the new model from the given one's, in
            inference mode; None where it could not be measured.
        measured: over what it was measured, or why it was not.
    """

    rows: tuple[Row, ...]
    difference: Optional[float]
    measured: str

    def count(self, fate: str) -> int:
        """How many rows have a fate: "exchanged", "already", "kept" or "left"."""
        return sum(row.fate == fate for row in self.rows)

    def __str__(self) -> str:
        table = [("layer", "before", "after", "")]
        table += [(row.path, row.before, row.after or row.fate, row.note) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in table
        ]
        kept = f"{self.count(KEPT)} kept, " if self.count(KEPT) else ""
        far = "not measured" if self.difference is None else f"differ by {self.difference:.1e}"
        return "\n".join([
            *lines,
            f"{self.count(EXCHANGED)} exchanged, {self.count(ALREADY)} already of the wanted kind, "
            f"{kept}{self.count(LEFT)} left; outputs {far} ({self.measured})",
        ])


def certificate_of(model: keras.Model, copy: keras.Model, rows: Sequence[Row]) -> Certificate:
    """The certificate of a model's copy, for which both models are called on random inputs."""
    return Certificate(tuple(rows), *_measured(model, copy))


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


def names_in(config: Any, registered: str) -> Iterator[Optional[str]]:
    """Names of the layers of a registered class in a config, however deep."""
    if isinstance(config, dict):
        inner = config.get("config")
        found = config.get("registered_name") == registered or (
            config.get("registered_name") is None and config.get("class_name") == registered
        )
        if found and isinstance(inner, dict):
            yield inner.get("name")
        config = config.values()
    if not isinstance(config, (str, bytes)) and hasattr(config, "__iter__"):
        for part in config:
            if isinstance(part, (dict, list, tuple)):
                yield from names_in(part, registered)


def _measured(model: keras.Model, copy: keras.Model) -> tuple[Optional[float], str]:
    """The largest difference of the outputs, or None; and over what, or why not."""
    try:
        inputs = random_inputs(model)
    except ValueError as error:
        return None, str(error)
    state = [(v, np.array(v.numpy())) for m in (model, copy) for v in m.variables]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mode = {"training": False} if "training" in model.call_signature_parameters else {}
            results = [keras.tree.flatten(m(inputs, **mode)) for m in (model, copy)]
        distances = [
            np.max(np.abs(one - other), initial=0.0)
            for one, other in zip(*(map(_wide, outputs) for outputs in results), strict=True)
        ]
    except Exception as error:
        return None, f"on random inputs: {type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        for variable, value in state:
            variable.assign(value)
    shapes = ", ".join(str(tuple(x.shape)) for x in keras.tree.flatten(inputs))
    return float(max(distances)), f"random inputs of shape {shapes}, in inference mode"


def _wide(outputs: Any) -> NDArray[np.float64]:
    return keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32")).astype(np.float64)


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
