"""Freezing the batch normalizations of a model, whole or by half, and thawing them again.

    new_model, certificate = freeze(model, "statistics", layers=0.5)
    print(certificate)  # what each layer does in `fit`: measured

Three things can be meant by a frozen batch normalization, and Keras's `trainable` has a word for
one of them only:

- "statistics": training normalizes with the moving averages and leaves them alone, while gamma and
  beta learn. Keras 3 has no setting for it; a `FrozenBatchNorm` stands in the layer's place.
- "affine": gamma and beta stay, while training uses and gathers batch statistics.
- "both": `trainable=False`, by Keras's rule.
"""

import dataclasses
import difflib
import math
import re
import warnings
from typing import Any, Callable, NamedTuple, Optional, Union

import keras

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.normalizers.frozen import FrozenBatchNorm
from bn_keras.normalizers.ghost import GhostBatchNorm
from bn_keras.surgery import copies
from bn_keras.surgery.certificate import (
    ALREADY,
    EXCHANGED,
    KEPT,
    LEFT,
    Certificate,
    Row,
    certificate_of,
    not_in_config,
    paths,
)
from bn_keras.surgery.convert import own_code
from bn_keras.surgery.modes import AVERAGES, NOTHING, UNKNOWN, Mode, modes
from bn_keras.surgery.surgeon import (
    KERAS,
    Stays,
    Surgeon,
    inside_time_distributed,
    is_batch_normalization,
    name_of,
    told,
)

STATISTICS, AFFINE, BOTH = "statistics", "affine", "both"
WHAT = (STATISTICS, AFFINE, BOTH)
FROZEN, THAWED = "frozen", "thawed"
# Which layers: all; a share or a number of the first ones; a regular expression; names or paths.
Layers = Union[None, int, float, str, "re.Pattern[str]", list[str], tuple[str, ...]]


class State(NamedTuple):
    """Which halves of a batch normalization are frozen."""

    statistics: bool
    affine: bool


def freeze(
    model: keras.Model, what: str = STATISTICS, layers: Layers = None, *, inputs: Any = None
) -> tuple[keras.Model, Certificate]:
    """A copy of a model in which batch normalizations are frozen, whole or by half.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
    >>> frozen, certificate = freeze(model)
    >>> type(frozen.layers[0]).__name__, certificate.rows[0].note
    ('FrozenBatchNorm', 'normalizes with the averages, leaves the averages alone, trains gamma \
and beta')

    Args:
        model: a keras.Model, built. If it is compiled, the copy still is not.
        what: "statistics", "affine" or "both", as the head of this file says.
        layers: None for all of them; an int for that many of the first, a float for that share of
            them, counted in the order of the model's layers; a text, a regular expression that is
            searched in the path of each layer, or a name; or a list of names or paths.
        inputs: a few examples, for the certificate and for `modes`; None for random values.

    Returns:
        `(new model, certificate)`. A row for each batch normalization says what it does in `fit`,
        as `modes` measures it. `unfreeze` gives the layers back as they were, from a file as well:
        a FrozenBatchNorm knows what it replaces, and Keras's `trainable` cannot thaw it, while
        setting that of a model to False and to True again undoes "both". Inside a layer without a
        config of its own, what was frozen thaws when a file is loaded; the row says so.

    Raises:
        TypeError: not a keras.Model, or a part of it cannot be copied.
        ValueError: the model is not built or has no batch normalization; another word; `layers`
            matches nothing; or a layer cannot be frozen, which is named with the reason.
    """
    def target(now: State) -> State:
        return State(now.statistics or what != AFFINE, now.affine or what != STATISTICS)

    return _changed("freeze", FROZEN, model, what, layers, inputs, target)


def unfreeze(
    model: keras.Model, what: str = BOTH, layers: Layers = None, *, inputs: Any = None
) -> tuple[keras.Model, Certificate]:
    """A copy of a model in which batch normalizations are thawed, whole or by half.

    The inverse of `freeze`: layers are again of the class, and have the settings, that they had
    before. Models and layers around them that are frozen let their gamma and beta learn; all else
    in these stays frozen.

    Args: as for `freeze`.

    Returns:
        As `freeze`. A layer may still be in inference mode because the model's code calls it so;
        the certificate says what it does.

    Raises:
        TypeError: as `freeze`.
        ValueError: as `freeze`.
    """
    def target(now: State) -> State:
        return State(now.statistics and what == AFFINE, now.affine and what == STATISTICS)

    return _changed("unfreeze", THAWED, model, what, layers, inputs, target)


def state_of(layer: keras.Layer) -> State:
    """Which halves of a batch normalization its own flags freeze."""
    if not layer.trainable:
        return State(True, True)
    frozen = getattr(layer, "freeze", None) if isinstance(layer, FrozenBatchNorm) else None
    affine = list(layer._trainable_variables)
    stays = bool(affine) and not any(variable.trainable for variable in affine)
    return State(frozen == STATISTICS, frozen == AFFINE or stays)


def _changed(
    caller: str, fate: str, model: keras.Model, what: str, layers: Layers, inputs: Any,
    target: Callable[[State], State],
) -> tuple[keras.Model, Certificate]:
    copies.check_model(model, caller)
    if what not in WHAT:
        raise ValueError(f"{caller}: what={what!r}; expected one of {', '.join(WHAT)}.")
    names = paths(model)
    tracked = {id(x) for x in model._flatten_layers() if is_batch_normalization(x)}
    known = [key for key in names if key in tracked]  # in the order of the layers
    meant = set(_chosen(caller, [names[key] for key in known], layers))
    # Those that Keras does not track are met while the model is copied.
    is_meant = {key: names[key] in meant for key in known}
    in_time = inside_time_distributed(model)
    aims: dict[int, State] = {}

    def decide(layer: keras.Layer, path: str) -> Union[keras.Layer, Stays]:
        if not is_meant.get(id(layer), layers is None):
            return Stays(KEPT)
        now = state_of(layer)
        aim = aims[id(layer)] = target(now)
        if aim == now:
            return Stays(ALREADY)
        try:
            return _in_state(layer, aim, id(layer) in in_time) or Stays(fate)
        except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"{caller}: the {what} of {path!r} ({name_of(type(layer))}) cannot be {fate}: "
                f"{' '.join(str(error).split())}; expected what=\"both\", or layers= without it."
            ) from error

    surgeon = Surgeon(model, is_batch_normalization, decide)
    copy, parts = copies.copy_with_parts(model, surgeon)
    new = {id(old): one for old, one in parts if id(old) in aims}
    for key, layer in new.items():
        _set_flags(layer, aims[key])
    _let_through(copy, [new[key] for key, aim in aims.items() if not aim.affine])
    lost = not_in_config(copy, new)
    aimed: dict[str, list[tuple[State, bool]]] = {}
    for key, aim in aims.items():
        path = names.get(key) or new[key].path or new[key].name
        aimed.setdefault(path, []).append((aim, key in lost))
    rows = _rows(caller, fate, copy, surgeon.rows(copy), aimed, inputs)
    left = told(row for row in rows if row.fate == LEFT)
    if not surgeon.saw_normalizers:
        raise ValueError(
            f"{caller}: {model.name!r} has no batch normalization{left and f' that anyone sees '}"
            f"{left and f'({left})'}; expected a model with some."
        )
    if left:
        warnings.warn(f"{caller}: {model.name!r} may hold more: {left}.", stacklevel=3)
    return copy, certificate_of(caller, model, copy, rows, inputs=inputs)


def _rows(
    caller: str, fate: str, copy: keras.Model, rows: list[Row],
    aimed: dict[str, list[tuple[State, bool]]], inputs: Any,
) -> list[Row]:
    """Rows that say what each layer does in `fit`.

    Args:
        caller, fate: the surgery and what it does with a layer.
        copy: the new model.
        rows: of its normalizers, as the surgeon has them.
        aimed: path → the states that layers were to get, and whether the model's config lacks that
            layer. Several layers may have the same path; they come in the same order everywhere.
        inputs: for `modes`.

    Raises:
        ValueError: a layer does not do what it should.
    """
    did: dict[str, list[Mode]] = {}
    for mode in modes(copy, inputs):
        did.setdefault(mode.path, []).append(mode)
    done = []
    for row in rows:
        if row.fate == LEFT:
            done.append(row)
            continue
        mode = did[row.path].pop(0)
        notes = [note for note in row.note.split("; ") if "config" in note or "tracked" in note]
        if row.fate != KEPT:
            aim, is_lost = aimed[row.path].pop(0)
            _check(caller, row, mode, aim)
            is_flag = row.after is None and aim != State(False, False)
            is_kept = aim == State(True, True) and not is_lost
            if is_flag and not is_kept and not notes:
                notes.append(f"a file does not hold that: {caller} again after loading one")
        done.append(dataclasses.replace(
            row, after=mode.layer, note="; ".join([str(mode), *notes]),
            fate={EXCHANGED: fate}.get(row.fate, row.fate),
        ))
    return done


def _chosen(caller: str, found: list[str], layers: Layers) -> list[str]:
    """Paths that are meant."""
    if layers is None:
        return found
    if isinstance(layers, (int, float)) and not isinstance(layers, bool):
        number = layers if isinstance(layers, int) else math.ceil(layers * len(found))
        if not (1 <= number <= len(found)) or (isinstance(layers, float) and layers > 1):
            raise ValueError(
                f"{caller}: layers={layers!r} of {len(found)} batch normalizations; expected a "
                f"number from 1 to {len(found)}, or a share above 0 and up to 1.0."
            )
        return found[:number]
    if isinstance(layers, (list, tuple)) and layers and all(isinstance(x, str) for x in layers):
        matched = []
        for name in layers:
            here = [path for path in found if name in (path, path.rpartition("/")[2])]
            if not here:
                raise ValueError(_no_such(caller, name, found))
            matched += here
        return matched
    if not isinstance(layers, (str, re.Pattern)):
        raise ValueError(
            f"{caller}: layers={layers!r}; expected None, a number or a share of the first layers, "
            "a regular expression, or a list of names."
        )
    named = [path for path in found if layers in (path, path.rpartition("/")[2])]
    try:
        matched = named or [path for path in found if re.search(layers, path)]
    except re.error as error:
        raise ValueError(
            f"{caller}: layers={layers!r} is no regular expression ({error}); expected one, or a "
            "list of names."
        ) from None
    if not matched:
        raise ValueError(_no_such(caller, getattr(layers, "pattern", layers), found))
    return matched


def _no_such(caller: str, name: object, found: list[str]) -> str:
    known = [*found, *(path.rpartition("/")[2] for path in found)]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return (
        f"{caller}: layers={name!r} matches no batch normalization; known: "
        f"{', '.join(found[:8])}{', …' if len(found) > 8 else ''}"
        f"{f' (did you mean {near[0]!r}?)' if near else ''}"
    )


def _in_state(
    layer: keras.Layer, aim: State, in_time_distributed: bool
) -> Optional[keras.Layer]:
    """The layer that has the state; None if flags of this one are enough."""
    if aim == State(True, True):
        return None
    half = STATISTICS if aim.statistics else AFFINE if aim.affine else None
    if getattr(layer, "freeze", None) == half and isinstance(layer, FrozenBatchNorm):
        return None
    if isinstance(layer, FrozenBatchNorm):
        noted = layer.replaces
        plain = _plain(layer) if noted is None else keras.saving.deserialize_keras_object(
            {**noted, "config": {**noted["config"], "trainable": True}}
        )
    elif half is None:
        return None
    else:
        plain = layer
    if half is None:
        return _weighted(layer, plain)
    reason = None if type(plain) is GhostBatchNorm else own_code(plain)
    if half == AFFINE and (
        reason or type(plain) is GhostBatchNorm or in_time_distributed and type(plain) is KERAS
    ):
        if plain is not layer:
            raise ValueError("it replaces a layer that trains in its own way; thaw it first")
        return None  # trains in its own way, on which flags do not touch
    if reason:
        raise ValueError(reason)
    noted = keras.saving.serialize_keras_object(plain)
    noted.pop("build_config", None)
    keras.saving.deserialize_keras_object(noted)  # or `unfreeze` would be the one to fail
    config = {
        key: value for key, value in plain.get_config().items() if key != "virtual_batch_size"
    }
    return _weighted(layer, FrozenBatchNorm.from_config(
        {**config, "trainable": True, "freeze": half, "replaces": noted}
    ))


def _plain(layer: keras.Layer) -> keras.Layer:
    """A BatchNorm with the settings of a FrozenBatchNorm."""
    own = ("freeze", "replaces")
    config = {key: value for key, value in layer.get_config().items() if key not in own}
    return BatchNorm.from_config({**config, "trainable": True})


def _weighted(layer: keras.Layer, new: keras.Layer) -> keras.Layer:
    """A new layer with the weights and the place of another one."""
    new.autocast = layer.autocast
    if layer.built:
        copies.weights_by_name(layer, new)
    for variable in new._non_trainable_variables:  # gamma and beta too, where they are frozen
        variable.trainable = False
    return new


def _set_flags(layer: keras.Layer, aim: State) -> None:
    """Sets those flags of a layer of the copy that do not have the state already."""
    if aim == State(True, True):
        layer.trainable = False
        return
    was = state_of(layer)
    if not layer.trainable:
        layer.trainable = True
    if was.affine != aim.affine or not was == state_of(layer):
        for variable in layer._trainable_variables:
            variable.trainable = not aim.affine


def _let_through(copy: keras.Model, thawed: list[keras.Layer]) -> None:
    """Lets frozen models and layers around thawed ones hand on the variables that learn.

    What else is in them has flags of its own, which stay: Keras's setter would thaw it all.
    """
    for holder in copy._flatten_layers():
        inside = holder._flatten_layers(include_self=False)
        if not holder.trainable and any(one is layer for one in inside for layer in thawed):
            holder._trainable = True


def _check(caller: str, row: Row, mode: Mode, aim: State) -> None:
    """Raises where a layer does in `fit` what it should not."""
    wrong = []
    if aim.statistics and (mode.moves or mode.normalizes not in (AVERAGES, NOTHING, UNKNOWN)):
        wrong.append("its statistics are not frozen")
    if aim.affine and mode.trains:
        wrong.append("its weights are trained")
    if wrong:
        raise ValueError(
            f"{caller}: {row.path!r} ({row.before}) {mode}, and so {' and '.join(wrong)}; expected "
            "a layer that obeys its trainable flag, as Keras's BatchNormalization does."
        )
