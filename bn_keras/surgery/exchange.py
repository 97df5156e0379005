"""Exchanging the normalizers of a whole model for others.

`exchange(model, to)` gives the new model and a certificate:

    new_model, certificate = exchange(model, "group", groups=8)
    new_model, certificate = exchange(model, "batch", synchronized=True)

`to` may also be a function of a layer; `replacement` gives it a registered normalizer for a place:

    exchange(model, lambda layer: replacement(layer, "ghost") if "late" in layer.name else None)
"""

import inspect
import warnings
from typing import Any, Callable, Optional, Union

import keras
import numpy as np
from keras.src import backend
from keras.src.models.functional import Functional

from bn_keras.batch_norm.layer import EXTRAS, BatchNorm
from bn_keras.registry import NORMALIZERS, did_you_mean
from bn_keras.surgery import copies
from bn_keras.surgery.adapted import Adapted
from bn_keras.surgery.certificate import (
    ALREADY,
    KEPT,
    LEFT,
    Certificate,
    Row,
    certificate_of,
    held_by,
    paths,
    random_inputs,
)
from bn_keras.surgery.convert import converted
from bn_keras.surgery.statistics import is_batch_normalizer
from bn_keras.surgery.surgeon import KERAS, Stays, Surgeon, is_batch_normalization, told
from bn_keras.texts import in_a_line

OTHERS = (
    keras.layers.LayerNormalization, keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
)
# What takes the place of a normalizer; None keeps the layer.
Make = Callable[[keras.Layer], Optional[keras.Layer]]
# Kinds of batch normalization between which `convert` goes without loss.
CONVERTED = {"batch": BatchNorm, "keras_batch": KERAS}
# Properties of registered normalizers which a finished model cannot be given.
OF_THE_MODEL = ("standardizes_kernels", "scales_branches")
# Of a layer that has no momentum or epsilon, such as LayerNormalization; Keras's defaults.
MOMENTUM, EPSILON = 0.99, 1e-3
# Settings of the place, which a new normalizer has from the old one.
SETTINGS = (
    "center", "scale", "beta_initializer", "gamma_initializer", "beta_regularizer",
    "gamma_regularizer", "beta_constraint", "gamma_constraint", "moving_mean_initializer",
    "moving_variance_initializer",
)


def exchange(
    model: keras.Model, to: Union[str, Make], *, inputs: Any = None, **settings: Any
) -> tuple[keras.Model, Certificate]:
    """A copy of a model with other normalizers in it.

    Batch normalizers are exchanged, whoever wrote them; in a model without any, its layer, group
    and RMS normalizations. All else stays as `copies.copy_model` says, and the given model, too.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
    >>> ghosts, _ = exchange(model, "ghost", virtual_batch_size=2)
    >>> ghosts.layers[0].name, type(ghosts.layers[0]).__name__, ghosts.layers[0].virtual_batch_size
    ('bn', 'GhostBatchNorm', 2)

    Args:
        model: a keras.Model, built.
        to: the name of a registered normalizer, such as "group", "layer", "ghost", "none", "batch"
            or "keras_batch"; each place gets what `replacement` gives for it. Or a function, called
            once for each normalizer with the layer: it gives the new one, built or not, or None to
            keep the layer. The name becomes the old one's, and what was frozen stays so; weights
            and settings such as the axis are those that the function gives.
        inputs: what both models are called on for the certificate; None for random values.
        **settings: of the named normalizer, such as `groups` of "group" or `synchronized` of
            "batch" and "keras_batch"; all others are those of the place, or as registered.

    Returns:
        `(new model, certificate)`. The model is not compiled. Its outputs are other ones, as the
        normalizers are. Exchanged for "batch" or "keras_batch", Keras's layers and ours keep all of
        their settings, as `convert` does it; a layer that is so already stays. A layer's own config
        does not know what was exchanged inside it, as `convert` says. Where code of the model's own
        calls a normalizer, a new one that knows no `mask` is inside an `Adapted` layer.

    Raises:
        TypeError: not a keras.Model, a part of it cannot be copied, or `to` is or gives nothing of
            the kind.
        ValueError: the model is not built or has no normalizers; an unknown name or setting; a new
            layer does not fit its place; or the new model cannot be called because its code asks a
            normalizer for something that the new one does not have. The layer is named.

    Warns:
        UserWarning: a layer could not be looked into; with the reason.
    """
    if isinstance(to, str):
        _check_settings(to, settings)
        name = to
        copy, rows = exchanged(model, lambda layer: replacement(layer, name, **settings))
    elif not callable(to) or isinstance(to, type):
        raise TypeError(
            f"exchange: to={to!r}; expected the name of a normalizer, such as 'group', or a "
            "function of a layer."
        )
    elif settings:
        raise ValueError(
            f"exchange: the settings {sorted(settings)} with a function; expected a function that "
            "gives layers with these settings, or the name of a normalizer."
        )
    else:
        copy, rows = exchanged(model, to)
    return copy, certificate_of("exchange", model, copy, rows, inputs=inputs)


def exchanged(model: keras.Model, make: Make) -> tuple[keras.Model, list[Row]]:
    """What `exchange` does, without calling the models: the new one, and the certificate's rows."""
    copies.check_model(model, "exchange")
    in_code = called_from_code(model)
    adapted: list[str] = []  # paths of normalizers that code of the model's own calls

    def decide(layer: keras.Layer, path: str) -> Union[keras.Layer, Stays]:
        new = make(layer)
        if new is None:
            return Stays(KEPT)
        if new is not layer and type(new) is type(layer) and _is_alike(layer, new):
            return Stays(ALREADY)
        if not isinstance(new, keras.Layer):
            raise TypeError(
                f"exchange: make gave {new!r} for {path!r}; expected a keras.Layer, or None to "
                "keep the layer."
            )
        if new is layer or new._inbound_nodes or any(new is other for other in given):
            raise ValueError(
                f"exchange: make gave a layer for {path!r} that is in use already "
                f"({new.name!r}); expected a new one for each place."
            )
        given.append(new)
        if id(layer) in in_code:
            adapted.append(path)
        try:
            return _fitted(layer, new, id(layer) in in_code)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"exchange: {type(new).__name__} does not fit the place of {path!r} "
                f"({type(layer).__name__}): {_one_line(error)}"
            ) from error

    given: list[keras.Layer] = []
    surgeon = Surgeon(model, _is_normalizer_in(model), decide)
    copy = copies.copy_model(model, surgeon)
    rows = surgeon.rows(copy)
    left = told(row for row in rows if row.fate == LEFT)
    if not surgeon.saw_normalizers:
        raise ValueError(
            f"exchange: {model.name!r} has no normalizers{left and f' that anyone sees ({left})'}; "
            "expected a model with BatchNormalization layers, for example."
        )
    if left:
        warnings.warn(f"exchange: left as they are in {model.name!r}: {left}.", stacklevel=3)
    if adapted:
        _check_calls(model, copy, adapted)
    return copy, rows


def replacement(
    layer: keras.Layer, normalizer: str, *, momentum: Optional[float] = None,
    epsilon: Optional[float] = None, **settings: Any,
) -> keras.Layer:
    """A registered normalizer for the place of another layer.

    >>> old = keras.layers.BatchNormalization(axis=1, center=False, epsilon=1e-5, name="bn")
    >>> new = replacement(old, "layer")
    >>> new.name, new.axis, new.center, new.epsilon
    ('bn', 1, False, 1e-05)

    Args:
        layer: a normalizer, as `exchange` calls a function with it.
        normalizer: its name in the registry, such as "ghost".
        momentum, epsilon: None for those of the layer, or Keras's defaults if it has none. A
            normalizer that has no such setting ignores it.
        **settings: other settings of the new layer.

    Returns:
        A layer with the name, dtype policy, axis, offset and scale, their initializers and
        penalties, and `trainable` of the old one, as far as it knows such settings. If the old one
        is built, the new one is too, and has what both have: gamma, beta and the statistics.
        All else is as it is registered; but between Keras's BatchNormalization and BatchNorm every
        setting goes along.

    Raises:
        UnknownName: no such normalizer.
        ValueError: it does not go with the axis or the settings of the layer, which is named; or it
            does not know a setting.
    """
    factory = NORMALIZERS.get(normalizer)
    asked = [name for name in OF_THE_MODEL if NORMALIZERS.properties(normalizer).get(name)]
    if asked:
        raise ValueError(
            f"replacement: {normalizer!r} is more than a layer ({', '.join(asked)}: it changes "
            "others of the model, too); expected a normalizer for a model of bn_keras, or another."
        )
    _check_settings(normalizer, settings)
    given = {name: value for name, value in (("momentum", momentum), ("epsilon", epsilon))
             if value is not None}
    try:
        if normalizer in CONVERTED and type(layer) in (BatchNorm, KERAS):
            return converted(layer, CONVERTED[normalizer], **given, **settings)
        axis, _ = _channel_axis(layer)
        made = factory(
            layer.name,
            momentum=given.get("momentum", getattr(layer, "momentum", MOMENTUM)),
            epsilon=given.get("epsilon", getattr(layer, "epsilon", EPSILON)),
            dtype=policy_name(layer),
        )
        config, old = made.get_config(), _config(layer)
        config |= {key: old[key] for key in SETTINGS if key in old and key in config}
        if "axis" in config:
            config["axis"] = axis
        elif not isinstance(made, keras.layers.Identity) and not _is_last(axis, layer):
            raise ValueError(f"it knows no axis, and the channels are on axis {axis}")
        new = type(made).from_config({**config, **settings})
        new.trainable = layer.trainable
        if layer.built:
            _build(layer, new)
            _take_weights(layer, new)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"replacement: {normalizer!r} does not fit the place of {layer.name!r} "
            f"({type(layer).__name__}): {_one_line(error)}"
        ) from error
    return new


def _check_settings(normalizer: str, settings: dict[str, Any]) -> None:
    """Raises for settings that a registered normalizer does not have."""
    factory = NORMALIZERS.get(normalizer)
    if not settings:
        return
    made = factory("any", momentum=MOMENTUM, epsilon=EPSILON, dtype="float32")
    known: set[str] = set()
    for kind in type(made).__mro__:
        if issubclass(kind, keras.Layer) and kind is not keras.Layer:
            known |= set(inspect.signature(kind).parameters)
    # What is the place's and no setting of a normalizer.
    known -= {"axis", "name", "dtype", "trainable"}
    known &= set(made.get_config()) | set(EXTRAS)
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(
            f"exchange: {normalizer!r} ({type(made).__name__}) has no setting {unknown[0]!r}; "
            f"known: {', '.join(sorted(known)) or 'none'}{did_you_mean(unknown[0], known)}"
        )


def _is_alike(layer: keras.Layer, new: keras.Layer) -> bool:
    """Whether a new layer has the settings of the old one, and its weights."""
    ones, others = (
        [keras.ops.convert_to_numpy(weight) for weight in one.weights] for one in (layer, new)
    )
    return len(ones) == len(others) and layer.get_config() == new.get_config() and all(
        np.array_equal(one, other, equal_nan=True) for one, other in zip(ones, others)
    )


def _is_normalizer_in(model: keras.Model) -> Callable[[keras.Layer], bool]:
    """Whether a layer of that model is exchanged: see `exchange`."""
    if any(map(is_batch_normalization, model._flatten_layers())):
        return is_batch_normalization
    return lambda layer: (
        is_batch_normalization(layer) or isinstance(layer, OTHERS)
        or type(layer).__module__.startswith("bn_keras.normalizers.")
    )


def called_from_code(model: keras.Model) -> set[int]:
    """Ids of the layers that something else than Keras's own models and layers may call."""
    known: set[int] = set()
    other: set[int] = set()
    for holder in model._flatten_layers():
        kind: Any = type(holder)
        is_graph = isinstance(holder, (Functional, keras.Sequential)) and any(
            kind.call is base.call for base in (Functional, keras.Sequential)
        )
        is_known = is_graph or kind is Adapted or kind.__module__.startswith("keras.")
        (known if is_known else other).update(map(id, held_by(holder)))
    everything = {id(layer) for layer in model._flatten_layers()}
    return other | (everything - known)


def _fitted(layer: keras.Layer, new: keras.Layer, is_called_from_code: bool) -> keras.Layer:
    """A new layer made ready for the place of another one: named, frozen, built, adapted.

    Raises:
        ValueError: it does not fit there.
    """
    new.name = layer.name
    if not layer.trainable:
        new.trainable = False
    if layer.built:
        shape = _input_shape(layer)
        _build(layer, new)
        outputs = new.compute_output_spec(keras.KerasTensor(shape, dtype=new.compute_dtype)).shape
        if outputs != shape:
            raise ValueError(f"it turns shape {shape} into {outputs}; expected the same shape")
    used = {"mask"} if is_called_from_code and _takes(layer, "mask") else set()
    for node in layer._inbound_nodes:
        given = layer._call_signature.bind(*node.arguments.args, **node.arguments.kwargs).arguments
        used |= {name for name in list(given)[1:] if given[name] is not None}
    unknown = {name for name in used - {"training"} if not _takes(new, name)}
    if unknown - {"mask", "update_statistics"}:
        raise ValueError(f"the model calls it with {', '.join(sorted(unknown))}, unknown to it")
    if not unknown:
        return new
    adapted = Adapted(new)
    _build(layer, adapted)
    return adapted


def _build(layer: keras.Layer, new: keras.Layer) -> None:
    """Builds a layer for the inputs of another one, under the names of that."""
    new._path, new._parent_path = layer._path, layer._parent_path
    if not new.built:
        new.build(_input_shape(layer))


def _input_shape(layer: keras.Layer) -> tuple[Optional[int], ...]:
    """The shape of the first input of a built layer.

    Raises:
        ValueError: nobody knows it.
    """
    config = layer.get_build_config() or {}
    shapes = [config["input_shape"]] if "input_shape" in config else list(
        config.get("shapes_dict", {}).values()
    )
    if not shapes or not isinstance(shapes[0], (list, tuple)):
        raise ValueError(f"the shape of its inputs is not known, only {config}")
    return tuple(shapes[0])


def _channel_axis(layer: keras.Layer) -> tuple[int, Optional[int]]:
    """The axis over whose places a normalizer has its weights, and their number if it is built.

    Raises:
        ValueError: it has several such axes, or other statistics than one for each channel.
    """
    axis = getattr(layer, "axis", -1)
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if len(axes) != 1:
        raise ValueError(f"it normalizes along the axes {axes}; expected one channel axis")
    if not layer.built:
        return axes[0], None
    shape = _input_shape(layer)
    channels = shape[axes[0]]
    if is_batch_normalizer(layer) and tuple(layer.moving_mean.shape) != (channels,):
        raise ValueError(
            f"its statistics have the shape {tuple(layer.moving_mean.shape)} for inputs of shape "
            f"{shape}; expected one for each place of axis {axes[0]}"
        )
    return axes[0], channels


def policy_name(layer: keras.Layer) -> str:
    """The name of a layer's dtype policy; Identity has no config with a policy itself in it."""
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        policy = policy[layer.path]
    return policy.name


def _config(layer: keras.Layer) -> dict[str, Any]:
    try:
        return layer.get_config()
    except NotImplementedError:  # somebody's own, whose settings nobody knows
        return {}


def _is_last(axis: int, layer: keras.Layer) -> bool:
    return axis == -1 or layer.built and axis == len(_input_shape(layer)) - 1


def _take_weights(layer: keras.Layer, new: keras.Layer) -> None:
    """Gives a new layer the weights of another one that both have."""
    olds = {variable.name: variable for variable in layer.variables}
    frozen = [v for v in layer._trainable_variables if not v.trainable]
    for variable in new.variables:
        old = olds.get(variable.name)
        if old is None or tuple(old.shape) != tuple(variable.shape):
            continue
        variable.assign(old)
        if any(old is other for other in frozen):
            variable.trainable = False
    if hasattr(new, "renorm_mean") and not hasattr(layer, "renorm_mean") and "moving_mean" in olds:
        deviation = keras.ops.sqrt(new.moving_variance + new.epsilon)
        new.renorm_mean.assign(new.moving_mean)
        for variable in (new.renorm_stddev, new.moving_stddev):
            variable.assign(deviation)


def _check_calls(model: keras.Model, copy: keras.Model, called: list[str]) -> None:
    """Raises where the code of a model runs with its own normalizers and not with the new ones.

    It is traced, with inputs of known shapes; a model whose inputs are not known is not tried.
    """
    try:
        inputs = random_inputs(model)
    except ValueError:
        return
    for training in (False, True):
        error = _error_of(copy, inputs, training)
        if error is not None and _error_of(model, inputs, training) is None:
            raise ValueError(
                f"exchange: {_culprit(error, copy)!r} cannot be called with the new normalizers: "
                f"{in_a_line(error)}; expected code that does no more with "
                f"its normalizers ({', '.join(called[:4])}{', …' if len(called) > 4 else ''}) than "
                "to call them."
            ) from error


def _error_of(model: keras.Model, inputs: Any, training: bool) -> Optional[Exception]:
    """The error that tracing a model raises, if it does. Its state stays as it is."""
    mode = {"training": training} if "training" in model.call_signature_parameters else {}
    tensors = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, dtype=str(x.dtype)), inputs
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backend.compute_output_spec(lambda x: model(x, **mode), tensors)
    except Exception as error:
        return error
    return None


def _culprit(error: Exception, model: keras.Model) -> str:
    """The path of the innermost layer whose code raised an error."""
    names, found = paths(model), ""
    place = error.__traceback__
    while place is not None:
        found = names.get(id(place.tb_frame.f_locals.get("self")), found)
        place = place.tb_next
    return found or model.name


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _takes(layer: keras.Layer, argument: str) -> bool:
    parameters = layer._call_signature.parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
