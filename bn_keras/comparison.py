"""`bn_keras.compare`: a net and data of one's own, with and without batch normalization.

    report = bn_keras.compare(build, (x_train, y_train, x_test, y_test), arms=["none", "batch"],
                              learning_rate=[0.01, 0.1, 1.0])

What the caller gives as objects gets names that settings can hold (`own.py`); from there on it is
the study `comparison`, as from the command line.
"""

import hashlib
import pathlib
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from bn_keras import api, own
from bn_keras.config import OWN_NET, RUN_FIELDS, ConfigError
from bn_keras.data.python import from_python
from bn_keras.plan import full_name, is_own_net, make_plan, optimizer_settings
from bn_keras.registry import LOSSES, OPTIMIZERS
from bn_keras.report.report import Report

Arms = Union[Sequence[Any], Mapping[str, Any]]


def compare(
    model: Any,
    data: Any = None,
    arms: Arms = ("none", "batch"),
    *,
    seeds: Optional[int] = None,
    first_seed: int = 0,
    optimizer: Any = None,
    loss: Any = None,
    metrics: Sequence[Any] = (),
    logdir: Union[str, pathlib.Path] = "runs",
    workers: Optional[int] = None,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Trains a net with each normalizer and several seeds, and reports what the normalizer changes.

    Ctrl-C keeps the runs that are finished; the same call trains the others.

    Args:
        model: one of

            - a function `build(normalizer)` that returns a keras.Model; `normalizer()` or
              `normalizer(name="...")` gives it a new layer, another one in each arm. Further
              parameters called `input_shape` and `classes` get what the data have. It is called
              once for each run, with Python's and NumPy's random state, from which Keras draws,
              set by the run's seed.
            - a finished keras.Model with batch normalization in it. Each arm is a copy with other
              normalizers and all else equal; the model itself stays as it is. All seeds start from
              its weights, unless weights="new". Optimizer, loss and metrics that it was compiled
              with are the default.
            - a name: of a registered model, or `my_net.py:build`, `my_package.nets:build`,
              `net.keras`, `applications:MobileNetV2`.

        data: `(x_train, y_train, x_test, y_test)`, or any other form that
            `bn_keras.data.python.from_python` takes: pairs, tf.data.Datasets, a dict, several
            inputs as a dict of arrays. x has shape (n, ...) and is given to the net as it is; y has
            shape (n,) for classes, one-hot rows too, and any for numbers. A text names a dataset,
            as --dataset does. None for the default, MNIST.
        arms: names of normalizers, "none" being the baseline; or a dict of names, each with a
            class of layers or a function that returns a layer, or a registered normalizer under
            its own name.
        seeds: how many runs of each arm; None for the fewest that can decide, 6 for two arms.
        first_seed: seeds count up from here.
        optimizer: a name, or a keras.optimizers.Optimizer, of which each run gets a copy.
        loss: a registered name, Keras's name of a loss, a keras.losses.Loss or a function
            `(y_true, y_pred) -> losses`, which gets the labels as `fit` gives them. None: what the
            model was compiled with, or the usual one for the labels and the net's last layer, which
            the report tells.
        metrics: Keras metrics or their names, evaluated on validation and test examples in the end.
        logdir: folder in which a work directory for these settings is made.
        workers: how many nets are trained at the same time; None for as many as there are cores.
        progress: whether to tell how far it is.
        **settings: fields of RunConfig, such as steps=500, batch_size=64, epochs=2. A list of
            values makes an axis, along which every arm is tried: learning_rate=[0.01, 0.1, 1.0].

    Returns:
        The Report; a notebook shows it as tables with a picture. The work directory has it as
        `report.html`, too.

    Raises:
        ConfigError: settings that do not go together, or a net that cannot be built, exchanged or
            fed with the data; the message says which arm.
        DataError: unfit data.
        UnknownName: an unknown normalizer, model, ….

    Example:
        >>> import keras, numpy as np
        >>> from bn_keras import compare
        >>> def build(normalizer):
        ...     layers = [keras.Input((4,)), keras.layers.Dense(8), normalizer(),
        ...               keras.layers.ReLU(), keras.layers.Dense(2)]
        ...     return keras.Sequential(layers)
        >>> x = np.random.default_rng(0).normal(size=(200, 4))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> report = compare(build, (x, y), seeds=2, steps=20, progress=False)
        >>> [f"{arm.name}: {arm.seeds} seeds" for arm in report.arms]
        ['none: 2 seeds', 'batch: 2 seeds']
    """
    values, axes = api.split(settings)
    given, compiled = _model(model)
    measured: List[str] = list(values.pop("measure", compiled.pop("measure", ())))
    taken = {"optimizer": optimizer, "loss": loss}
    overrides = {
        **compiled, **{name: value for name, value in taken.items() if value is not None}, **values,
    }
    overrides = {name: value for name, value in overrides.items() if name not in axes}
    overrides = {
        **_optimizer(overrides.pop("optimizer", None), {*overrides, *axes}), **overrides,
        **_loss(overrides.pop("loss", None)), "model": given,
    }
    for metric in metrics:
        measured.append(_metric(metric))
    if measured or "measure" in settings:
        usual = () if "measure" in settings else _usual_measure(given)
        overrides["measure"] = tuple(dict.fromkeys([*usual, *measured]))
    if isinstance(data, str):
        overrides["dataset"] = data
    elif data is not None:
        overrides["dataset"] = _data(data)
    plan = make_plan(
        "comparison", api.same_data_everywhere(overrides), seeds=seeds, first_seed=first_seed,
        normalizers=_arms(arms), axes=axes,
    )
    return api.finish(plan, logdir, workers, progress)


def _model(model: Any) -> Tuple[str, Dict[str, Any]]:
    """A model's name for settings, and the settings that it was compiled with."""
    if isinstance(model, (str, pathlib.Path)):
        return full_name(str(model)), {}
    import keras

    if isinstance(model, keras.Model):
        if not model.built:
            raise ConfigError(
                f"model={model.name!r} is not built and has no weights yet; expected a model that "
                "was called once on data, or a function that builds it"
            )
        return own.give(model.name, model, _content(model)), _compiled(model)
    if not callable(model) or isinstance(model, type):
        raise ConfigError(
            f"model: received {model!r:.80}; expected a function that takes a normalizer and "
            "returns a keras.Model, a finished keras.Model, or a name"
        )
    name = getattr(model, "__name__", type(model).__name__)
    return own.give(name, model, own.source_of(model)), {}


def _content(model: Any) -> bytes:
    """All that makes a finished model, for a digest: its layers and its weights."""
    try:
        config = model.to_json()
    except Exception:  # a subclassed model without a config; its weights have to do
        config = repr([(type(layer).__name__, layer.name) for layer in model._flatten_layers()])
    digest = hashlib.blake2b(config.encode())
    for weight in model.weights:
        digest.update(f"{weight.path} {weight.shape} {weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.digest()


def _compiled(model: Any) -> Dict[str, Any]:
    """Optimizer, loss and metrics of a compiled model, as settings."""
    if not getattr(model, "compiled", False):
        return {}
    config = model.get_compile_config() or {}
    found = {"optimizer": model.optimizer, "loss": model.loss}
    metrics = _deserialized(config.get("metrics"))
    if metrics:
        found["measure"] = [*_usual_measure(""), *map(_metric, metrics)]
    return {name: value for name, value in found.items() if value is not None}


def _deserialized(metrics: Any) -> List[Any]:
    """The metrics of a compiled model's config: texts, or configs, in lists of lists."""
    import keras

    if isinstance(metrics, (list, tuple)):
        return [found for part in metrics for found in _deserialized(part)]
    if isinstance(metrics, dict) and "class_name" in metrics:
        try:
            return [keras.saving.deserialize_keras_object(metrics)]
        except Exception as error:
            raise ConfigError(
                f"metrics: {metrics['class_name']}, with which the model was compiled, cannot be "
                "made again; expected a metric that is registered by "
                "keras.saving.register_keras_serializable(), or a model that is not compiled"
            ) from error
    # Keras computes "accuracy" for each kind of labels in its own way, and so do we.
    return [metrics] if isinstance(metrics, str) and metrics not in ("accuracy", "acc") else []


def _usual_measure(model: str) -> Tuple[str, ...]:
    """The probes of a net whose user names none."""
    if model and not is_own_net(model):
        return tuple(RUN_FIELDS["measure"].default)
    return tuple(OWN_NET["measure"])


def _optimizer(optimizer: Any, set_already: Any) -> Dict[str, Any]:
    """The settings that an optimizer stands for."""
    if optimizer is None:
        return {}
    if isinstance(optimizer, str):
        return {"optimizer": OPTIMIZERS.check(optimizer)}
    import keras

    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ConfigError(
            f"optimizer: received {optimizer!r:.80}; expected a name or a Keras optimizer"
        )
    config, rate = optimizer.get_config(), own.innermost(optimizer).get_config()["learning_rate"]
    config.pop("learning_rate", None)
    name = own.give(type(optimizer).__name__, optimizer, config)
    return optimizer_settings(name, rate, set_already, "optimizer")


def _loss(loss: Any) -> Dict[str, Any]:
    if loss is None:
        return {}
    if isinstance(loss, str) and loss in LOSSES.names():
        return {"loss": loss}
    import keras

    if isinstance(loss, str):
        try:
            keras.losses.get(loss)
        except ValueError as error:
            raise ConfigError(
                f"loss={loss!r}: unknown; expected one of {', '.join(LOSSES.names())}, Keras's "
                "name of a loss, a keras.losses.Loss or a function"
            ) from error
        return {"loss": own.give(loss, loss, loss)}
    from bn_keras import labels

    if not callable(loss):
        raise ConfigError(
            f"loss: received {loss!r:.80}; expected a name, a keras.losses.Loss or a function"
        )
    name = getattr(loss, "__name__", type(loss).__name__)
    content = loss.get_config() if isinstance(loss, keras.losses.Loss) else own.source_of(loss)
    # Up to 0.3 such a loss got one-hot labels: what it was trained to is another thing.
    marks = ["labels as in fit"] if labels.form(loss) == labels.AS_GIVEN else []
    return {"loss": own.give(name, loss, [name, content, *marks])}


def _metric(metric: Any) -> str:
    """The probe that measures a Keras metric."""
    import keras

    try:
        found = keras.metrics.get(metric)
    except ValueError as error:
        raise ConfigError(f"metrics: {error}") from error
    if not callable(found):
        raise ConfigError(f"metrics: received {metric!r:.80}; expected a Keras metric or its name")
    name = found.name if isinstance(found, keras.metrics.Metric) else found.__name__
    content = (
        found.get_config() if isinstance(found, keras.metrics.Metric) else own.source_of(found)
    )
    return f"keras_metric:{own.give(name, found, [type(found).__name__, content])}"


def _data(data: Any) -> str:
    source = from_python(data)
    digest = hashlib.blake2b(str(source.label_shape or "").encode())
    for split in (source.train, source.validation, source.test):
        if split is not None:
            split.add_to(digest)
    return own.give("data", source, digest.digest())


def _arms(arms: Arms) -> List[str]:
    """Names of normalizers, the user's own ones included."""
    if isinstance(arms, str) or not isinstance(arms, (Mapping, Sequence)):
        raise ConfigError(
            f"arms={arms!r}: expected a list of normalizers, such as ['none', 'batch'], or a dict"
        )
    named: Sequence[Tuple[Optional[str], Any]] = [(None, arm) for arm in arms]
    if isinstance(arms, Mapping):
        named = list(arms.items())
    found = []
    for name, arm in named:
        if isinstance(arm, str):
            if name not in (None, arm):
                raise ConfigError(
                    f"arms: received {arm!r} under the name {name!r}; expected {arm!r}: a "
                    "registered normalizer keeps its name, only one of your own gets another"
                )
            found.append(arm)
        elif callable(arm) and not hasattr(arm, "call_signature_parameters"):  # no layer itself
            label = name or str(getattr(arm, "__name__", type(arm).__name__))
            found.append(own.give(label, arm, [label, own.source_of(arm)]))
        else:
            raise ConfigError(
                f"arms: received {arm!r:.80}; expected a normalizer's name, a class of layers or a "
                "function that returns a new layer"
            )
    twice = {name for name in found if found.count(name) > 1}
    if twice:
        raise ConfigError(f"arms: received {', '.join(map(own.place, sorted(twice)))} twice")
    return found
