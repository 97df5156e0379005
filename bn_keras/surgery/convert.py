"""Exchanging Keras's BatchNormalization for BatchNorm in a whole model, and back.

`convert(model)` gives the new model and a `Certificate`: a table of every normalizer that was met,
exchanged or not and why, and how far the outputs differ.
"""

import warnings
from typing import Any, Optional, Sequence, Union

import keras

from bn_keras.batch_norm.layer import EXTRAS, BatchNorm
from bn_keras.surgery import copies
from bn_keras.surgery.certificate import ALREADY, LEFT, Certificate, certificate_of, paths
from bn_keras.surgery.surgeon import KERAS, Stays, Surgeon, is_batch_normalization, told

# A subclass may have these of its own and still compute what its base does.
HARMLESS = {
    "__init__", "get_config", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__",
    "__annotations__", "__firstlineno__", "__static_attributes__", "__orig_bases__",
    "__parameters__", "__abstractmethods__", "_abc_impl",
}


def convert(
    model: keras.Model, to: type[keras.layers.BatchNormalization] = BatchNorm, *,
    inputs: Any = None, tolerance: Optional[float] = None,
) -> tuple[keras.Model, Certificate]:
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
        inputs: what both models are called on for the certificate; None for random values.
        tolerance: the largest relative difference of the outputs that is allowed; None for any.

    Returns:
        `(new model, certificate)`. The new model is of the same class, with the same weights,
        statistics and names. Subclasses of Keras's layer are exchanged if they have nothing of
        their own but `__init__` and `get_config`. Variants of BatchNorm, such as GhostBatchNorm,
        compute something else and are left on the way back. A layer's own config does not know what
        was exchanged inside it: it makes Keras's layers again when a file of the model is loaded,
        and the certificate says where that is so.

    Raises:
        TypeError: not a keras.Model, or a part of it cannot be copied, which is named.
        ValueError: the model is not built; all its normalizers are of the other kind and none could
            be exchanged; BatchNorm layers have settings that Keras's layer does not know; or the
            outputs differ by more than `tolerance` (`OutputsDiffer`).

    Warns:
        UserWarning: a normalizer was left, or a layer could not be looked into; with the reason.
    """
    if to not in (BatchNorm, KERAS):
        raise ValueError(
            f"convert: to={to!r}; expected BatchNorm or keras.layers.BatchNormalization."
        )
    copies.check_model(model, "convert")
    if to is KERAS:
        _refuse_extras(model)

    def decide(layer: keras.Layer, path: str) -> Union[keras.Layer, Stays]:
        if isinstance(layer, to) and (to is BatchNorm or not isinstance(layer, BatchNorm)):
            return Stays(ALREADY)
        reason = own_code(layer)
        if reason is not None:
            return Stays(LEFT, reason)
        try:
            return converted(layer, to)
        except (TypeError, ValueError, NotImplementedError) as error:
            return Stays(LEFT, " ".join(str(error).split()))

    surgeon = Surgeon(model, is_batch_normalization, decide)
    copy = copies.copy_model(model, surgeon)
    rows = surgeon.rows(copy)
    left = told(row for row in rows if row.fate == LEFT)
    if left and all(row.fate == LEFT for row in rows) and surgeon.saw_normalizers:
        raise ValueError(f"convert: nothing in {model.name!r} could be exchanged: {left}.")
    if left:
        warnings.warn(
            f"convert: left as they are in {model.name!r}: {left}.", UserWarning, stacklevel=2
        )
    elif not rows:
        warnings.warn(
            f"convert: {model.name!r} has no batch normalization; this is an equal copy.",
            UserWarning, stacklevel=2,
        )
    return copy, certificate_of(
        "convert", model, copy, rows, inputs=inputs, tolerance=tolerance
    )


def converted(
    layer: keras.Layer, to: type[keras.layers.BatchNormalization], **settings: Any
) -> keras.layers.BatchNormalization:
    """A layer of the other kind with the settings, the weights and the place of a given one.

    Args:
        layer: of either kind, without ways of its own (`own_code`).
        to: as for `convert`.
        **settings: of the new layer, in place of those of the given one.

    Raises:
        TypeError: the other kind does not know a setting.
        ValueError: a setting is out of range, or the weights differ.
    """
    new = to.from_config({**layer.get_config(), **settings})
    new.autocast = layer.autocast
    if layer.built:
        copies.weights_by_name(layer, new)
    return new


def _refuse_extras(model: keras.Model) -> None:
    """Raises where BatchNorm layers have settings that Keras's layer does not know."""
    names = paths(model)
    extras = {
        names[id(layer)]: sorted(set(EXTRAS) & set(layer.get_config()))
        for layer in model._flatten_layers() if type(layer) is BatchNorm
    }
    named = [f"{path!r} has the settings {given}" for path, given in extras.items() if given]
    if named:
        raise ValueError(
            f"convert: {'; '.join(named)}, which Keras's layer does not know; expected a BatchNorm "
            "without them."
        )


def own_code(
    layer: keras.Layer, bases: Sequence[type[keras.Layer]] = (BatchNorm, KERAS)
) -> Optional[str]:
    """What a layer does in another way than the known class that it derives from; None if nothing.

    Args:
        layer: any.
        bases: the known classes; of several that it derives from, the first one counts.
    """
    kind = type(layer)
    base = next((base for base in bases if isinstance(layer, base)), None)
    if base is None:
        return f"{kind.__name__} does not derive from Keras's {bases[-1].__name__}"
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
