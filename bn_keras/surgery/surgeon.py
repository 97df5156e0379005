"""Exchanging layers while a model is copied, and keeping a table of it: what surgeries share."""

import dataclasses
from typing import Callable, Iterable, NamedTuple, Optional, Union

import keras

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.surgery import copies
from bn_keras.surgery.adapted import Adapted
from bn_keras.surgery.certificate import ALREADY, EXCHANGED, LEFT, Row, not_in_config, paths
from bn_keras.surgery.statistics import is_batch_normalizer

KERAS = keras.layers.BatchNormalization
NOT_IN_CONFIG = "not in the model's config: do it again after loading a file"


class Stays(NamedTuple):
    """A decision not to exchange a normalizer."""

    fate: str
    note: str = ""


# `(layer, path) -> what stands in its place, with weights`.
Decide = Callable[[keras.Layer, str], Union[keras.Layer, Stays]]


class Surgeon:
    """Says for each layer of a model what stands in its place, and remembers that.

    Args:
        model: whose layers it is asked for.
        is_normalizer: whether a layer may be exchanged.
        decide: for each of those.
    """

    def __init__(
        self, model: keras.Model, is_normalizer: Callable[[keras.Layer], bool], decide: Decide
    ) -> None:
        self._is_normalizer, self._decide = is_normalizer, decide
        self._paths = paths(model)
        self._steps = inside_time_distributed(model)
        # By the id of each normalizer, in the order in which they were met.
        self._fates: dict[int, Row] = {}
        self._new: dict[int, keras.Layer] = {}
        self.saw_normalizers = False

    def __call__(self, layer: keras.Layer) -> Optional[keras.Layer]:
        """The new layer, with weights, or None to have the layer copied."""
        if not self._is_normalizer(layer):
            reason = unseen(layer)
            if reason:
                self._note(layer, None, LEFT, reason)
            return None
        self.saw_normalizers = True
        decision = self._decide(layer, self._path(layer))
        if isinstance(decision, Stays):
            after = type(layer) if decision.fate == ALREADY else None
            self._note(layer, after, decision.fate, decision.note)
            return None
        inner = decision.layer if isinstance(decision, Adapted) else decision
        self._note(layer, type(inner), EXCHANGED)
        self._new[id(layer)] = decision
        return decision

    def rows(self, copy: keras.Model) -> list[Row]:
        """The table, in the order of the model's layers."""
        lost = not_in_config(copy, self._new)
        rows = [
            dataclasses.replace(row, note="; ".join(
                filter(None, [row.note, NOT_IN_CONFIG if key in lost else None])
            ))
            for key, row in self._fates.items()
        ]
        order = {path: number for number, path in enumerate(self._paths.values())}
        return sorted(rows, key=lambda row: order.get(row.path, len(order)))

    def _path(self, layer: keras.Layer) -> str:
        return self._paths.get(id(layer), layer.path or layer.name)

    def _note(
        self, layer: keras.Layer, after: Optional[type[keras.Layer]], fate: str, note: str = ""
    ) -> None:
        if id(layer) not in self._paths:
            note = "; ".join(filter(None, [note, "not tracked by Keras, in no file"]))
        elif after is not None and issubclass(after, KERAS) and id(layer) in self._steps:
            # TimeDistributed gives whole sequences to BatchNorm itself, not to what holds it.
            note = "each time step is normalized by itself"
            if issubclass(after, BatchNorm) and self._steps[id(layer)] is layer:
                note = "trains over batch and time, where Keras's layer takes each step by itself"
        self._fates[id(layer)] = Row(
            self._path(layer), name_of(type(layer)),
            None if after is None else name_of(after), fate, note,
        )


def is_batch_normalization(layer: keras.Layer) -> bool:
    """Whether a layer is a batch normalization, built or not, whoever wrote it."""
    return is_batch_normalizer(layer) or isinstance(layer, KERAS)


def told(rows: Iterable[Row]) -> str:
    """Rows with their reasons, for a message."""
    return "; ".join(f"{row.path} ({row.before}): {row.note}" for row in rows)


def unseen(layer: keras.Layer) -> Optional[str]:
    """Why a layer may hold a normalizer that nobody sees; None if it does not."""
    kind = type(layer)
    if isinstance(layer, copies.OPAQUE):
        return "what runs inside is no Keras layer; nobody looked there for BN"
    if not layer.built and not kind.__module__.startswith("keras."):
        return "was never called, and may make BN when it is built; nobody looked there"
    return None


def name_of(kind: type[keras.Layer]) -> str:
    """BatchNorm for ours, whose class has the same name as Keras's."""
    return "BatchNorm" if kind is BatchNorm else kind.__name__


def inside_time_distributed(model: keras.Model) -> dict[int, keras.Layer]:
    """Id of each layer in a TimeDistributed → the layer that the wrapper calls."""
    return {
        id(inner): layer.layer for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.TimeDistributed) for inner in layer._flatten_layers()
    }
