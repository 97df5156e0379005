"""Exchanging Keras's BatchNormalization for BatchNorm in a whole model, and back.

`convert(model)` gives the new model; `convert(model, certificate=True)` also a `Certificate`: a
table of every normalizer that was met, exchanged or not and why, and how far the outputs differ.
"""

import collections
import dataclasses
import warnings
from typing import Any, Iterator, Optional, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.batch_norm.layer import EXTRAS, BatchNorm
from bn_keras.surgery import copies
from bn_keras.surgery.statistics import is_batch_normalizer

KERAS = keras.layers.BatchNormalization
EXCHANGED, ALREADY, LEFT = "exchanged", "already", "left"
# A subclass may have these of its own and still compute what its base does.
HARMLESS = {
    "__init__", "get_config", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__",
    "__annotations__", "__firstlineno__", "__static_attributes__", "__orig_bases__",
    "__parameters__", "__abstractmethods__", "_abc_impl",
}
TRIED = 4  # random examples for the comparison of the outputs
TRIED_LENGTH = 8  # of an axis whose length the model leaves open


@dataclasses.dataclass(frozen=True)
class Row:
    """A normalizer, or a layer that could hide one.

    Attributes:
        path: names of the layers around it and its own, outer ones first.
        before: its class.
        after: the class in its place; None where it was left.
        fate: "exchanged", "already" (it is of the wanted kind) or "left".
        note: why it was left, or what else is to be known.
    """

    path: str
    before: str
    after: Optional[str]
    fate: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `convert` did to a model. `str()` gives a table.

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
        """How many rows have a fate: "exchanged", "already" or "left"."""
        return sum(row.fate == fate for row in self.rows)

    def __str__(self) -> str:
        table = [("layer", "before", "after", "")]
        table += [(row.path, row.before, row.after or "left", row.note) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in table
        ]
        far = "not measured" if self.difference is None else f"differ by {self.difference:.1e}"
        return "\n".join([
            *lines,
            f"{self.count(EXCHANGED)} exchanged, {self.count(ALREADY)} already of the wanted kind, "
            f"{self.count(LEFT)} left; outputs {far} ({self.measured})",
        ])


def convert(
    model: keras.Model, to: type[keras.layers.BatchNormalization] = BatchNorm,
    certificate: bool = False,
) -> Any:  # a model, or a model and its certificate
    """A copy of a model in which every batch normalization is of the other kind.

    It reaches normalizers in nested, Sequential and subclassed models, in wrappers, in cells of
    recurrent layers and in layers that hold them as attributes, in lists or dicts. The copy and the
    model share nothing; `trainable` flags, shared layers and all else stay as `copy_model` says.
    A model without any batch normalization is copied, with a warning.

    Args:
        model: a keras.Model, built. If it is compiled, the copy still is not: compile it, or, with
            a new optimizer, `copy.compile_from_config(model.get_compile_config())`. The given model
            stays compiled.
        to: `BatchNorm`, or `keras.layers.BatchNormalization` for the way back.
        certificate: also return what was done.

    Returns:
        A new model of the same class with the same weights, statistics and names; or that and a
        `Certificate`, which also measures both models on random inputs. Subclasses of Keras's layer
        are exchanged if they have nothing of their own but `__init__` and `get_config`. Variants of
        BatchNorm, such as GhostBatchNorm, compute something else and are left on the way back. A
        layer's own config does not know what was exchanged inside it: it makes Keras's layers again
        when a file of the model is loaded, and the certificate says where that is so.

    Raises:
        TypeError: not a keras.Model, or a part of it cannot be copied, which is named.
        ValueError: the model is not built; all its normalizers are of the other kind and none could
            be exchanged; BatchNorm layers have settings that Keras's layer does not know.

    Warns:
        UserWarning: a normalizer was left, or a layer could not be looked into; with the reason.
    """
    if to not in (BatchNorm, KERAS):
        raise ValueError(
            f"convert: to={to!r}; expected BatchNorm or keras.layers.BatchNormalization."
        )
    copies.check_model(model, "convert")
    surgeon = _Surgeon(model, to)
    copy = copies.copy_model(model, surgeon)
    rows = surgeon.rows(copy)
    left = [row for row in rows if row.fate == LEFT]
    told = "; ".join(f"{row.path} ({row.before}): {row.note}" for row in left)
    if left and all(row.fate == LEFT for row in rows) and surgeon.saw_normalizers:
        raise ValueError(f"convert: nothing in {model.name!r} could be exchanged: {told}.")
    if left:
        warnings.warn(
            f"convert: left as they are in {model.name!r}: {told}.", UserWarning, stacklevel=2
        )
    elif not rows:
        warnings.warn(
            f"convert: {model.name!r} has no batch normalization; this is an equal copy.",
            UserWarning, stacklevel=2,
        )
    if not certificate:
        return copy
    return copy, Certificate(tuple(rows), *_measured(model, copy))


class _Surgeon:
    """Says for each layer of a model what stands in its place, and remembers that."""

    def __init__(self, model: keras.Model, to: type[keras.layers.BatchNormalization]) -> None:
        self._to = to
        self._ours = to is BatchNorm
        self._paths = _paths(model)
        self._steps = _inside_time_distributed(model)
        # By the id of each normalizer, in the order in which they were met.
        self._fates: dict[int, Row] = {}
        self._exchanged: list[keras.Layer] = []
        self.saw_normalizers = False
        self._refuse_extras(model)

    def __call__(self, layer: keras.Layer) -> Optional[keras.Layer]:
        """The exchanged layer, with its weights, or None to have the layer copied."""
        if not is_batch_normalizer(layer) and not isinstance(layer, (KERAS, BatchNorm)):
            reason = _unseen(layer)
            if reason:
                self._note(layer, None, LEFT, reason)
            return None
        self.saw_normalizers = True
        if self._is_wanted(layer):
            self._note(layer, _name(type(layer)), ALREADY)
            return None
        reason = _own(layer)
        if reason is None:
            try:
                new = self._to.from_config(layer.get_config())
                if layer.built:
                    copies.weights_by_name(layer, new)
            except (TypeError, ValueError, NotImplementedError) as error:
                reason = " ".join(str(error).split())
        if reason is not None:
            self._note(layer, None, LEFT, reason)
            return None
        self._note(layer, _name(self._to), EXCHANGED)
        self._exchanged.append(layer)
        return new

    def rows(self, copy: keras.Model) -> list[Row]:
        """The table, in the order of the model's layers."""
        lost = self._not_in_config(copy)
        rows = [
            dataclasses.replace(row, note="; ".join(filter(None, [row.note, lost.get(key)])))
            for key, row in self._fates.items()
        ]
        order = {path: number for number, path in enumerate(self._paths.values())}
        return sorted(rows, key=lambda row: order.get(row.path, len(order)))

    def _note(
        self, layer: keras.Layer, after: Optional[str], fate: str, note: str = ""
    ) -> None:
        if id(layer) not in self._paths:
            note = "; ".join(filter(None, [note, "not tracked by Keras, in no file"]))
        elif fate != LEFT and id(layer) in self._steps:
            # TimeDistributed gives whole sequences to BatchNorm itself, not to what holds it.
            whole = self._ours and self._steps[id(layer)] is layer
            note = "each time step is normalized by itself"
            if whole:
                note = "trains over batch and time, where Keras's layer takes each step by itself"
        path = self._paths.get(id(layer), layer.path or layer.name)
        self._fates[id(layer)] = Row(path, _name(type(layer)), after, fate, note)

    def _is_wanted(self, layer: keras.Layer) -> bool:
        if self._ours:
            return isinstance(layer, BatchNorm)
        return isinstance(layer, KERAS) and not isinstance(layer, BatchNorm)

    def _refuse_extras(self, model: keras.Model) -> None:
        if self._ours:
            return
        extras = {}
        for layer in model._flatten_layers():
            if type(layer) is BatchNorm:
                extras[self._paths[id(layer)]] = sorted(set(EXTRAS) & set(layer.get_config()))
        named = [f"{path!r} has the settings {names}" for path, names in extras.items() if names]
        if named:
            raise ValueError(
                f"convert: {'; '.join(named)}, which Keras's layer does not know; expected a "
                "BatchNorm without them."
            )

    def _not_in_config(self, copy: keras.Model) -> dict[int, str]:
        """Exchanged layers that the new model's config does not have: id → note."""
        try:
            config = keras.saving.serialize_keras_object(copy)
        except Exception:  # a model without a config has no file that could be loaded
            return {id(layer): "the model has no config, so no file" for layer in self._exchanged}
        there = collections.Counter(_names_in(config, keras.saving.get_registered_name(self._to)))
        here = collections.Counter(layer.name for layer in self._exchanged)
        return {
            id(layer): "not in the model's config: convert again after loading a file"
            for layer in self._exchanged if there[layer.name] < here[layer.name]
        }


def _own(layer: keras.Layer) -> Optional[str]:
    """Why a layer cannot be exchanged: what it computes in its own way; None if it does not."""
    kind = type(layer)
    base = next((base for base in (BatchNorm, KERAS) if isinstance(layer, base)), None)
    if base is None:
        return f"{kind.__name__} does not derive from Keras's BatchNormalization"
    patched = sorted({"call", "compute_mask", "__call__"} & set(vars(layer)))
    if patched:
        return f"{', '.join(patched)} of this very layer was replaced"
    for owner in kind.__mro__:
        own = sorted(set(vars(owner)) - HARMLESS)
        if owner not in base.__mro__ and own:
            verb = "overrides" if any(hasattr(base, name) for name in own) else "defines"
            overridden = [name for name in own if hasattr(base, name)] or own
            return f"{owner.__name__} {verb} {', '.join(overridden)}"
    return None


def _unseen(layer: keras.Layer) -> Optional[str]:
    """Why a layer may hold a normalizer that nobody sees; None if it does not."""
    kind = type(layer)
    if isinstance(layer, copies.OPAQUE):
        return "what runs inside is no Keras layer; nobody looked there for BN"
    if not layer.built and not kind.__module__.startswith("keras."):
        return "was never called, and may make BN when it is built; nobody looked there"
    return None


def _name(kind: type[keras.Layer]) -> str:
    """BatchNorm for ours, whose class has the same name as Keras's."""
    return "BatchNorm" if kind is BatchNorm else kind.__name__


def _paths(model: keras.Model) -> dict[int, str]:
    """Id of each layer of a model → names of the layers around it and its own."""
    paths: dict[int, str] = {}

    def walk(layer: keras.Layer, path: str) -> None:
        paths.setdefault(id(layer), path)
        if isinstance(layer, keras.Model):
            inner = layer.layers
        else:
            inner = layer._layers
        for other in inner:
            if id(other) not in paths:
                walk(other, f"{path}/{other.name}" if path else other.name)

    walk(model, "")
    for layer in model._flatten_layers():
        paths.setdefault(id(layer), layer.path or layer.name)
    return paths


def _inside_time_distributed(model: keras.Model) -> dict[int, keras.Layer]:
    """Id of each layer in a TimeDistributed → the layer that the wrapper calls."""
    return {
        id(inner): layer.layer for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.TimeDistributed) for inner in layer._flatten_layers()
    }


def _names_in(config: Any, registered: str) -> Iterator[Optional[str]]:
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
                yield from _names_in(part, registered)


def _measured(model: keras.Model, copy: keras.Model) -> tuple[Optional[float], str]:
    """The largest difference of the outputs, or None; and over what, or why not."""
    try:
        inputs = _random_inputs(model)
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


def _random_inputs(model: keras.Model) -> Any:
    """Random arrays in the structure that a model takes; integers are 0 or 1."""
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
    if not isinstance(shape, tuple) or not all(isinstance(s, (int, type(None))) for s in shape):
        raise ValueError(f"the inputs are not known from the shapes of the first call: {config}")
    return draw(shape)
