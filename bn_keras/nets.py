"""The net of a run and its task: one of the toolkit's models, or a net of the user's own.

A net of one's own is a function of a normalizer, or a finished keras.Model in which the normalizers
are exchanged; it comes from Python, from a file, or by name from keras.applications.
"""

import collections
import contextlib
import dataclasses
import functools
import inspect
import random
import re
import threading
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.utils import naming

from bn_keras import objects, own
from bn_keras.config import RUN_FIELDS, ConfigError, RunConfig
from bn_keras.data import Splits
from bn_keras.labels import Labels
from bn_keras.loop import Task
from bn_keras.models.blocks import ModelSpec, at_place
from bn_keras.plan import (
    APPLICATIONS,
    KERAS_FILE,
    compile_config,
    is_keras_file,
    is_own_net,
    loss_name,
)
from bn_keras.registry import LOSSES, MODELS, NORMALIZERS, did_you_mean

# Random weights of a user's function follow from the process's random state, of which there is one.
_BUILDING = threading.RLock()
_LOADED: Dict[str, Any] = {}
TRIED, LOSSES_TRIED = 2, 7  # examples on which a new net and its loss are tried
# Reductions of a Keras loss that are a mean over the batch, as long as no example has a weight.
AVERAGES = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
# Settings that only the toolkit's own models read.
OF_OUR_MODELS = ("activation", "initializer", "bias", "dropout", "l2", "depth")
# Normalizers that do more than a layer at their place can.
CHANGE_THE_NET = [
    name for name in NORMALIZERS.names()
    if {"standardizes_kernels", "scales_branches"} & set(NORMALIZERS.properties(name))
]


@dataclasses.dataclass(frozen=True)
class Told:
    """A Task, and what was assumed to find it."""

    task: Task
    notes: Tuple[str, ...] = ()


def build(config: RunConfig, splits: Splits, runs: Optional[int] = None) -> keras.Model:
    """A new model for a run, with the initial weights that its seed gives.

    Args:
        config: RunConfig.
        splits: the data, for the shape of its examples.
        runs: None, or how many runs stand side by side in the model.

    Raises:
        ConfigError: the model cannot be built, or does not fit the data.
    """
    if not is_own_net(config.model):
        return _ours(config, splits, runs)
    for name in OF_OUR_MODELS:
        if getattr(config, name) != RUN_FIELDS[name].default:
            raise ConfigError(
                f"{name}={getattr(config, name)!r} with model={own.short(config.model)!r}: only "
                "the toolkit's own models read that setting; expected it inside the net"
            )
    with _BUILDING, _seeded(config.seed):
        source = _source(config.model)
        if isinstance(source, keras.Model):
            from bn_keras.surgery.initialize import reinitialize, reseed

            model = _exchanged(source, config)
            (reinitialize if config.weights == "new" else reseed)(model, config.seed)
        elif config.model.startswith(APPLICATIONS):
            model = _exchange(_made(source, _of_the_data(splits), config), config)
        else:
            model = _called(source, config, splits)
        outputs = _tried(model, config, splits)
    _check_outputs(outputs, config, splits)
    return model


def task(config: RunConfig, model: keras.Model, splits: Splits) -> Told:
    """What the net of a run is to do.

    Args:
        config: RunConfig.
        model: a net that `build` made for it.
        splits: the data.

    Raises:
        ConfigError: a loss that does not fit the labels.
    """
    numbers = splits.regression
    notes: Tuple[str, ...] = ()
    source = _source(config.model) if is_own_net(config.model) else None
    if isinstance(source, keras.Model) and config.weights != "new":
        notes = ("weights: every seed starts from those of the model; weights='new' draws others",)
    optimizer = None if own.is_given(config.model) else getattr(source, "optimizer", None)
    if optimizer is not None and not own.is_own(config.optimizer):
        notes += (
            f"optimizer: {config.optimizer}, as the settings say, and not the "
            f"{type(optimizer).__name__} that the model was compiled with",
        )
    if isinstance(source, keras.Model) or config.model.startswith(APPLICATIONS):
        notes += _without_offsets(config, model)
    if config.loss is not None and own.is_own(config.loss):
        told = _keras_task(own.short(config.loss), own.get(config.loss), model, splits)
        return dataclasses.replace(told, notes=(*notes, *told.notes))
    if config.loss is not None or not is_own_net(config.model):
        return Told(Task(LOSSES.get(loss_name(config, numbers) or "")))
    if is_keras_file(config.model):
        loss = _compiled_part(config.model, "loss")
    else:
        compiled = source if isinstance(source, keras.Model) else model
        loss = compiled.loss if getattr(compiled, "compiled", False) else None
    if loss is not None:
        name = _named(loss)
        told = _keras_task(name, loss, model, splits)
        notes += (f"loss: {name}, as compiled",)
    else:
        told = _guessed(model, splits)
    return dataclasses.replace(told, notes=(*notes, *told.notes))


def _without_offsets(config: RunConfig, model: keras.Model) -> Tuple[str, ...]:
    """A note where a finished net left its offsets to normalizers, and now has none in their place.

    A comparison with a net that has offsets then differs in more than the normalization.
    """
    layers = model._flatten_layers()
    gone = any(type(layer) is keras.layers.Identity for layer in layers)
    bare = sum(getattr(layer, "use_bias", None) is False for layer in layers)
    if not (gone and bare):
        return ()
    return (
        f"{own.short(config.normalizer)}: {bare} layers of this net have no bias, as the offset of "
        "its normalizers stood for it; in this arm nothing does. A function build(normalizer) "
        "can give them a bias",
    )


def _check_loss(name: str, task: Task, labels: Any, outputs: Any, given: Any) -> None:
    """Tries a loss on the labels and outputs of a few examples, by itself and inside a graph.

    Args:
        name: of the loss, for messages.
        task: of the loss.
        labels, outputs: tensors (n, ...).
        given: the labels as the loss gets them.

    Raises:
        ConfigError: it fails, gives no numbers, or not one for each example.
    """
    says, count = f"loss={name!r}", len(outputs)
    gets = f"labels as in fit, of shape {_shape(given)}, and outputs of shape {_shape(outputs)}"
    expected = "expected a function (labels, outputs) that gives one loss an example, or several"
    try:
        where = ""
        values = np.asarray(task.loss(labels, outputs), np.float64)
        where = " inside a graph"
        tf.function(task.loss).get_concrete_function(labels, outputs)
    except Exception as error:
        raise ConfigError(
            f"{says}: raised{where} {objects.told(error)}; it got {gets}; {expected}"
        ) from error
    if values.shape[:1] != (count,):
        raise ConfigError(f"{says}: gave values of shape {values.shape} for {gets}; {expected}")
    if _shape(outputs) == (count, 1) and values.shape == (count, count) != (1, 1):
        raise ConfigError(
            f"{says}: gave values of shape {values.shape} for {gets}, as it compares each label "
            "with all outputs, in fit as well; expected labels of the outputs' shape: y[:, None]"
        )


def _shape(tensor: Any) -> Tuple[int, ...]:
    return tuple(tensor.shape)


def _ours(config: RunConfig, splits: Splits, runs: Optional[int]) -> keras.Model:
    properties: Dict[str, Any] = {}
    if not own.is_own(config.normalizer):
        properties = NORMALIZERS.properties(config.normalizer)
    spec = ModelSpec(
        input_shape=splits.train.images.shape[1:],
        classes=splits.classes,
        normalizer=_normalizer(config),
        activation=config.activation,
        **splits.pixel_scale(config.pixels),
        dtype=config.dtype_policy,
        seed=config.seed,
        initializer=config.initializer,
        bias=config.bias,
        dropout=config.dropout,
        l2=config.l2,
        depth=config.depth,
        runs=runs,
        standardizes_kernels=properties.get("standardizes_kernels", False),
        scales_branches=properties.get("scales_branches", False),
    )
    try:
        return MODELS.get(config.model)(spec)
    except ValueError as error:
        raise ConfigError(
            f"model={config.model!r} cannot be built for images of shape {spec.input_shape} with "
            f"these settings: {str(error).strip().splitlines()[0]}"
        ) from error


def as_it_takes(config: RunConfig, splits: Splits) -> Splits:
    """The data as the run's net takes them.

    The toolkit's models scale pixels themselves. For a net of one's own a dataset's are scaled
    here, as `pixels` says; what the user gave stays as it is.
    """
    return splits.scaled(config.pixels) if is_own_net(config.model) else splits


def _normalizer(config: RunConfig) -> Callable[..., Any]:
    """`(name) -> layer` of the run's normalizer, a registered one or the user's own."""
    if own.is_own(config.normalizer):
        return functools.partial(_of_ones_own, own.get(config.normalizer))
    return functools.partial(
        NORMALIZERS.get(config.normalizer),
        momentum=0.9 if config.momentum is None else config.momentum,
        epsilon=1e-3 if config.epsilon is None else config.epsilon,
        dtype=config.dtype_policy,
    )


def _of_ones_own(make: Callable[..., Any], name: Optional[str] = None) -> Any:
    """The layer of a user's class or function, under a name if it takes one."""
    parameters = inspect.signature(make).parameters.values()
    named = any(part.name == "name" or part.kind is part.VAR_KEYWORD for part in parameters)
    layer = make(name=name) if named else make()
    if not isinstance(layer, keras.Layer):
        raise ConfigError(
            f"normalizer: {make!r} gave {layer!r}; expected a keras.Layer, such as a class of "
            "layers or a function that returns one"
        )
    return layer


def _source(name: str) -> Any:
    """What stands behind the name of a net of one's own: a keras.Model, or a function."""
    if own.is_given(name):
        return own.get(name)
    if name not in _LOADED:
        where = own.place(name)
        if where.startswith(APPLICATIONS):
            _LOADED[name] = _application(where.removeprefix(APPLICATIONS))
        elif where.endswith(KERAS_FILE):
            _LOADED[name] = _loaded(where)
        elif objects.is_object_name(where):
            _LOADED[name] = _made_at_once(name, objects.load_object(where))
        else:
            own.get(name)  # says that it is of another process
    return _LOADED[name]


def _made_at_once(name: str, found: Any) -> Any:
    """What a name of a file or module stands for; the model of a function without arguments."""
    if not inspect.isfunction(found) or inspect.signature(found).parameters:
        return found
    with _seeded(0):
        try:
            model = found()
        except Exception as error:
            raise ConfigError(
                f"model={own.short(name)!r}: raised {objects.told(error)}; expected build("
                "normalizer), or a function without arguments that returns a finished model"
            ) from error
    _check_model(model, name)
    return model


def _loaded(path: str) -> keras.Model:
    """The model of a file, not compiled: what it was compiled with may be the user's own."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a file of a stranger's fails in every way there is
        raise ConfigError(
            f"model={path}: cannot be loaded ({objects.told(error)}); "
            "expected a file that model.save wrote. If the net has layers of your own, name the "
            "function that builds it, my_net.py:build, or one that loads it, my_net.py:make."
        ) from error


def compiled_optimizer(name: str) -> Any:
    """The Keras optimizer with which the model of a `.keras` file was compiled.

    Args:
        name: the file's, as `RunConfig.optimizer` holds it.

    Raises:
        ConfigError: the file cannot be read, its model was not compiled, or the optimizer is of a
            class that is not known here.
    """
    optimizer = _compiled_part(name, "optimizer")
    if optimizer is None:
        raise ConfigError(
            f"optimizer={own.short(name)!r}: the model of this file was not compiled; expected a "
            "registered name, or a file with an optimizer"
        )
    return optimizer


def _compiled_part(name: str, part: str) -> Any:
    """The "loss" or "optimizer" with which the model of a file was compiled; None without one.

    Raises:
        ConfigError: it cannot be made again.
    """
    config = compile_config(own.place(name))
    if config is None:
        raise ConfigError(f"{part}={own.short(name)!r}: the file cannot be read")
    found = config.get(part)
    try:
        return keras.saving.deserialize_keras_object({part: found}, safe_mode=True)[part]
    except Exception as error:
        kind = found.get("class_name") if isinstance(found, dict) else found
        label = found["config"] if kind == "function" else kind  # type: ignore[index]
        raise ConfigError(
            f"model={own.short(name)!r}: its {part} {label!r}, with which it was compiled, cannot "
            f"be made again ({objects.told(error)}); expected another one, --{part}=NAME, or "
            "my_net.py:make, a function that loads the model where its classes and functions are "
            "known"
        ) from error


def _application(name: str) -> Callable[..., keras.Model]:
    """`(input_shape, classes) -> model` of a net of keras.applications, with its normalizers."""
    known = [key for key, value in vars(keras.applications).items()
             if inspect.isfunction(value) and key[0].isupper()]
    if name not in known:
        raise ConfigError(
            f"model={APPLICATIONS}{name}: no net of keras.applications{did_you_mean(name, known)}; "
            f"expected one of {', '.join(sorted(known))}"
        )

    return functools.partial(
        getattr(keras.applications, name), weights=None, classifier_activation=None
    )


def _called(function: Callable[..., Any], config: RunConfig, splits: Splits) -> keras.Model:
    """The net that a user's function gives."""
    if not callable(function) or isinstance(function, type):
        kind = function.__name__ if isinstance(function, type) else repr(function)[:60]
        raise ConfigError(
            f"model={own.short(config.model)!r} is {kind}; expected a function that takes a "
            "normalizer and returns a keras.Model, or a finished keras.Model"
        )
    normalizer, asked_for = _factory(config)
    offers = {"normalizer": normalizer, **_of_the_data(splits)}
    names = list(inspect.signature(function).parameters)
    if not names:
        raise ConfigError(
            f"model={own.short(config.model)!r} takes no argument; expected build(normalizer), "
            "which puts normalizer() where a normalizer belongs, or the model that it returns"
        )
    arguments = {name: offers[name] for name in names if name in offers}
    if names[0] not in offers:  # whatever its name is, the first one is the normalizer
        arguments[names[0]] = normalizer
    model = _made(function, arguments, config)
    inside = {id(layer) for layer in model._flatten_layers()}
    if not any(id(layer) in inside for layer in asked_for):
        how = "never called" if not asked_for else "does not use a layer of"
        raise ConfigError(
            f"model={own.short(config.model)!r} {how} the normalizer that it was given, so "
            "that all arms would be the same net; expected normalizer() where a normalizer belongs"
        )
    _name_places(model)
    return model


def _name_places(model: keras.Model) -> None:
    """Notes names for the layers that Keras has named: it counts on from one net to the next."""
    seen = collections.Counter[str]()
    for layer in model._flatten_layers():
        kind = naming.to_snake_case(type(layer).__name__)
        if re.fullmatch(rf"{kind}(_\d+)?", layer.name) and not hasattr(layer, "_place_in_net"):
            at_place(layer, f"{kind}_{seen[kind]}" if seen[kind] else kind, normalizer=False)
            seen[kind] += 1


def _of_the_data(splits: Splits) -> Dict[str, Any]:
    """What a function that builds a net may want to know."""
    shapes = keras.tree.map_structure(lambda part: part.shape[1:], splits.train.images)
    return {"input_shape": shapes, "classes": splits.classes}


def _made(
    function: Callable[..., Any], arguments: Mapping[str, Any], config: RunConfig
) -> keras.Model:
    """The net that a function gives under the run's dtype policy."""
    try:
        with _policy(config.dtype_policy):
            model = function(**arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model={own.short(config.model)!r}, normalizer={config.normalizer!r}: building it "
            f"raised {objects.told(error)}"
        ) from error
    _check_model(model, config.model)
    return model


def _factory(config: RunConfig) -> Tuple[Callable[..., Any], List[Any]]:
    """`(name=None) -> layer` for a user's function, and a list that gets every layer it made."""
    made: List[Any] = []
    make = _normalizer(config)
    if config.normalizer in CHANGE_THE_NET:
        raise ConfigError(
            f"normalizer={config.normalizer!r} with model={own.short(config.model)!r}: it changes "
            "more than its own place, which only the toolkit's models let it do; expected another"
        )

    def normalizer(name: Optional[str] = None) -> Any:
        made.append(at_place(make(name), name or f"normalizer_{len(made) + 1}"))
        return made[-1]

    return normalizer, made


def _replacement(layer: keras.Layer, config: RunConfig) -> Any:
    from bn_keras.surgery.exchange import replacement

    if own.is_own(config.normalizer):
        return at_place(_normalizer(config)(layer.name), layer.name)
    return at_place(replacement(
        layer, config.normalizer, momentum=config.momentum, epsilon=config.epsilon
    ), layer.name)


def _exchanged(model: keras.Model, config: RunConfig) -> keras.Model:
    """A copy of a finished net with the run's normalizer in place of its own."""
    if config.dtype_policy != RUN_FIELDS["dtype_policy"].default:
        raise ConfigError(
            f"dtype_policy={config.dtype_policy!r} with model={own.short(config.model)!r}: a "
            "finished net has policies of its own; expected a function that builds it"
        )
    return _exchange(model, config)


def _exchange(model: keras.Model, config: RunConfig) -> keras.Model:
    from bn_keras.surgery.certificate import ALREADY, paths
    from bn_keras.surgery.exchange import exchanged

    try:
        copy, rows = exchanged(model, functools.partial(_replacement, config=config))
        as_they_were = {row.path for row in rows if row.fate == ALREADY}
        known = paths(copy)
        for layer in copy._flatten_layers():
            if known[id(layer)] in as_they_were:
                at_place(layer, layer.name)
        return copy
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model={own.short(config.model)!r}, normalizer={config.normalizer!r}: {error}"
        ) from error


def _check_model(model: Any, name: str) -> None:
    if isinstance(model, keras.Model):
        return
    kind = type(model)
    named = "nothing" if model is None else f"a {kind.__module__}.{kind.__name__}"
    more = "expected a keras.Model"
    if any(base.__module__.startswith("tf_keras") for base in kind.__mro__):
        more = "that is Keras 2; expected a model of Keras 3, as `import keras` has it"
    raise ConfigError(f"model={own.short(name)!r} gave {named}; {more}")


def _tried(model: keras.Model, config: RunConfig, splits: Splits) -> Any:
    """The outputs for two examples, in inference mode; builds a model that is not built."""
    examples = keras.tree.map_structure(lambda part: part[:TRIED], splits.train.images)
    try:
        return model(examples, training=False)
    except Exception as error:
        shapes = keras.tree.map_structure(lambda part: part.shape[1:], splits.train.images)
        raise ConfigError(
            f"model={own.short(config.model)!r}, normalizer={config.normalizer!r}: does not take "
            f"the examples, of shape {shapes}: {objects.told(error)}"
        ) from error


def _check_outputs(outputs: Any, config: RunConfig, splits: Splits) -> None:
    name = f"model={own.short(config.model)!r}, normalizer={config.normalizer!r}"
    if not hasattr(outputs, "shape"):
        number = len(keras.tree.flatten(outputs))
        raise ConfigError(f"{name}: it has {number} outputs; expected one tensor")
    shape = tuple(outputs.shape)
    if splits.regression:
        labels = splits.train.labels.shape[1:]
        if shape != (TRIED, *(labels or (1,))):
            raise ConfigError(
                f"{name}: outputs of shape {shape[1:]} for labels of shape {labels}; expected "
                f"outputs of shape {labels or (1,)}"
            )
        return
    fits = len(shape) == 2 and shape[0] == TRIED and (
        shape[1] >= splits.classes or (shape[1] == 1 and splits.classes == 2)
    )
    if not fits:
        raise ConfigError(
            f"{name}: outputs of shape {shape[1:]} for {splits.classes} classes; expected "
            f"({splits.classes},)" + (" or (1,)" if splits.classes == 2 else "")
        )


def _keras_task(name: str, loss: Any, model: keras.Model, splits: Splits) -> Told:
    """The task of a Keras loss, an object, a function or a name: as in `fit`, for each example.

    Raises:
        ConfigError: it is none, or does not fit labels and outputs.
    """
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not callable(loss):
        raise ConfigError(f"loss: received {loss!r}; expected one Keras loss or function")
    form = Labels(loss, splits.label_shape, splits.regression)
    made = loss if isinstance(loss, keras.losses.Loss) else LossFunctionWrapper(loss)
    from_logits = getattr(loss, "from_logits", False) or getattr(
        loss, "_fn_kwargs", {}
    ).get("from_logits", False)

    def of_each(labels: Any, outputs: Any) -> Any:
        # Keras computes losses in float32; those of float64 nets stay finer here.
        dtype = keras.backend.result_type(outputs.dtype, made.dtype)
        given = form(labels, outputs)
        return made.call(keras.ops.cast(given, dtype), keras.ops.cast(outputs, dtype))

    task = Task(of_each, threshold=0.0 if from_logits else 0.5)
    examples = splits.train.first(LOSSES_TRIED)
    outputs = keras.ops.convert_to_tensor(model(examples.images, training=False))
    labels = keras.ops.convert_to_tensor(examples.labels)
    _check_loss(name, task, labels, outputs, form(labels, outputs))
    notes = form.notes(name, outputs.shape[-1])
    if made.reduction not in AVERAGES:
        notes += (
            f"loss: {name} has reduction={made.reduction!r}; here the mean over the batch is "
            "trained on, so a learning rate makes other steps than in fit",
        )
    return Told(task, notes)


def _guessed(model: keras.Model, splits: Splits) -> Told:
    """The usual loss for the labels, by what the net's last layer gives."""
    last = model.layers[-1] if model.layers else None
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    probabilities = activation in ("softmax", "sigmoid") or isinstance(last, keras.layers.Softmax)
    labels = splits.train.labels
    one_output = model.output_shape[-1] == 1 if hasattr(model, "output_shape") else False
    if splits.regression and not (labels.ndim == 2 and np.isin(labels, (0, 1)).all()):
        loss: Any = keras.losses.MeanSquaredError()
    elif splits.regression or one_output:
        loss = keras.losses.BinaryCrossentropy(from_logits=not probabilities)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    kind = "" if isinstance(loss, keras.losses.MeanSquaredError) else (
        " of probabilities, as its last layer gives them" if probabilities else
        " of logits, as its last layer has no softmax or sigmoid"
    )
    told = _keras_task(_named(loss), loss, model, splits)
    note = f"loss: {_named(loss)}{kind}; --loss or loss= takes another"
    return dataclasses.replace(told, notes=(note, *told.notes))


def _named(loss: Any) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's random state set by a seed, and afterwards as they were.

    Keras draws the seeds of all its layers from Python's. TensorFlow's own seed stays alone: to set
    it makes TensorFlow forget all compiled functions, 10 s of work for MobileNetV2.
    """
    before = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(name)
        yield
    finally:
        keras.config.set_dtype_policy(before)
