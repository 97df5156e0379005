"""What is measured of a model's batch normalization again and again while the model trains.

A `Watch` reads the model's variables, and sends a few batches through a copy of it: neither changes
the model, its layers' seeds or its random draws to come.
"""

import contextlib
import random
from typing import Any, Callable, Iterator, Optional

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from bn_keras.diagnostics.evaluations import Batches, Evaluations, Scorer
from bn_keras.diagnostics.finding import CannotLook
from bn_keras.diagnostics.gap import distance
from bn_keras.diagnostics.passes import (
    Array,
    Call,
    Moments,
    Passes,
    as_array,
    moments,
    normalizers,
    paths_of,
    pooled,
)
from bn_keras.surgery import calls, certificate, statistics
from bn_keras.surgery.examples import Batch, not_finite
from bn_keras.texts import in_a_line

# (path of a layer or weight, or None for the whole model; quantity) → value.
Values = dict[tuple[Optional[str], str], float]

PERCENTILES = (1, 15, 50, 85, 99)
MOST_VALUES = 4000  # of a layer's outputs in a batch, evenly spaced: enough for percentiles
MOST_OF_A_WEIGHT = 100_000  # evenly spaced values whose change is measured
FEW = 2  # examples that show how a model calls its layers
SMALL_GAMMA = 1e-3
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


class Watch:
    """Measures of one model; `begin` at the beginning of each epoch, the others at its end.

    Args:
        model: a built keras.Model.
        batches: of examples, or None.
        loss: as `compile` takes it; None for the one that the model is compiled with.

    Attributes:
        model: as given.
        layers: path of each built batch normalization → the layer.
        unseen: what cannot be looked at → why.
        called: path → the calls of the layer as `fit` makes them; empty if unknown.
        rectified: paths of those whose very outputs a ReLU layer takes. A relu that code of the
            model's own, or an operation in a graph of layers, computes is not seen.
        not_finite: how many of the examples hold NaN or infinity. Their batches come first, so that
            a look that has time for a few batches sees them.
        invariant: weights in front of batch normalization by their paths: their size does not
            matter to the outputs. A layer counts whose very outputs the normalization takes.
    """

    def __init__(
        self, model: keras.Model, batches: Optional[Batches], loss: Any = None
    ) -> None:
        self.model, self._loss = model, loss
        self.not_finite = 0 if batches is None else batches.not_finite
        self._batches = batches
        if batches is not None and self.not_finite:
            order = sorted(batches.batches, key=lambda one: not not_finite(one.x).any())
            self._batches = batches._replace(batches=order)
        self.unseen: dict[str, str] = {}
        self.called: dict[str, list[Call]] = {}
        self.rectified: set[str] = set()
        self.invariant: dict[str, keras.Variable] = {}
        self._passes: Optional[Passes] = None
        self._scorer: Optional[Scorer] = None
        self._signature = _signature(model)
        layers = normalizers(model)
        self.layers = dict(zip(paths_of(model, layers), layers))
        with kept_randomness():
            self._prepare()
        for path, layer in list(self.layers.items()):
            if not isinstance(layer.moving_mean, keras.Variable):
                self.unseen[path] = "it was never called, so that it has no statistics"
                del self.layers[path]

    def fits(self, model: keras.Model) -> bool:
        """Whether it is about this model, which has the same variables and frozen layers still."""
        return self.model is model and self._signature == _signature(model)

    def begin(self) -> None:
        """Remembers the weights and statistics from which changes are measured."""
        self._statistics = self._statistics_now()
        self._affine = self._affine_now()
        self._skipped = self._skipped_now()
        self._weights = {path: _sample(weight) for path, weight in self._trained().items()}

    def changes(self) -> Values:
        """What the variables say of the epoch since `begin`.

        Returns:
            Of each batch normalization: mean_change (standard deviations) and variance_change
            (factor) of its statistics, as `gap.distance` defines them; not_finite, the share of
            channels with statistics that are no numbers; updated and affine_updated, 1 or 0,
            whether anything of its statistics, or of gamma and beta, moved; gamma, the mean size,
            and small_gammas, the share below 1e-3; skipped_batches of our layers in this epoch.
            Of each trainable weight of two axes or more: update_ratio, the standard deviation of
            its change divided by that of the weight. Of those in front of batch normalization:
            effective_learning_rate, the learning rate divided by the squared norm (van Laarhoven
            2017, https://arxiv.org/abs/1706.05350, section 3; for plain SGD).
        """
        found: Values = {}
        now, affine = self._statistics_now(), self._affine_now()
        for path, layer in self.layers.items():
            before, after = self._statistics[path], now[path]
            shift, factor = distance(layer, before, after)
            found[path, "mean_change"], found[path, "variance_change"] = shift, factor
            found[path, "updated"] = float(_differs(before, after))
            found[path, "not_finite"] = _bad(after)
            if affine[path]:
                found[path, "affine_updated"] = float(_differs(self._affine[path], affine[path]))
            if "gamma" in affine[path]:
                sizes = np.abs(affine[path]["gamma"])
                found[path, "gamma"] = float(sizes.mean())
                found[path, "small_gammas"] = float(np.mean(sizes < SMALL_GAMMA))
        for path, count in self._skipped_now().items():
            found[path, "skipped_batches"] = float(count - self._skipped[path])
        for path, weight in self._trained().items():
            if path in self._weights:
                new, old = _sample(weight), self._weights[path]
                with np.errstate(all="ignore"):
                    found[path, "update_ratio"] = float(np.std(new - old) / np.std(old))
        rate = self._learning_rate()
        if rate is not None:
            for path, weight in self.invariant.items():
                square = keras.ops.sum(keras.ops.square(keras.ops.cast(weight.value, "float32")))
                with np.errstate(all="ignore"):
                    found[path, "effective_learning_rate"] = float(rate / as_array(square))
        return found

    def passes(self, goes_on: Callable[[], bool]) -> Values:
        """What some batches say, sent through a copy of the model.

        Args:
            goes_on: asked after each batch but the last, whether there is time for another one.

        Returns:
            Of each batch normalization: mean_lag and variance_lag, how far the moving statistics
            are from those of the batches as training takes them (only if it normalizes with
            batches in training), and values, how many of a channel these are of; inputs_not_finite,
            1 or 0, whether NaN or infinity goes into it; output_p1 to
            output_p99, percentiles behind it; dead_channels, the share of channels whose outputs
            never were above 0. Of the model: batches that were looked at; loss_in_training_mode and
            loss_in_inference on them, dropout off in both; gap, the second less the first, and
            gap_of_best_batch, the smallest one of a batch. {} if nothing can be looked at.
        """
        if self._passes is None or self._batches is None:
            return {}
        losses, seen = [], [_Behind(layer) for layer in self._passes.layers]
        with kept_randomness():
            self._passes.refresh()
            for number, batch in enumerate(self._batches.batches, 1):
                training = self._passes.outputs(
                    batch.x, range(len(seen)), lambda one: seen[one.layer].add(one)
                )
                if self._scorer is not None:
                    losses.append([
                        as_array(self._scorer.loss(batch.y, outputs, batch.sample_weight))
                        for outputs in (training, self._passes.outputs(batch.x))
                    ])
                if number < len(self._batches.batches) and not goes_on():
                    break
        found: Values = {(None, "batches"): float(number)}
        if losses:
            in_training, in_inference = np.mean(losses, 0)
            found[None, "loss_in_training_mode"] = float(in_training)
            found[None, "loss_in_inference"] = float(in_inference)
            found[None, "gap"] = float(in_inference - in_training)
            found[None, "gap_of_best_batch"] = float(np.min(np.subtract.reduce(losses, 1) * -1))
        for path, behind, averaged in zip(self._passes.paths, seen, self._passes.averaged):
            if path in self.layers and behind.moments:
                found.update({(path, name): value for name, value in behind.summary().items()})
                if self.in_batch_mode(path):
                    found.update({(path, name): value
                                  for name, value in behind.lag(averaged).items()})
        return found

    def in_batch_mode(self, path: str) -> bool:
        """Whether `fit` lets a layer normalize with its batch, in one of its calls at least."""
        return any(call.batch_mode for call in self.called.get(path, ()))

    # ------------------------------------------------------------ before the first epoch

    def _prepare(self) -> None:
        """Makes the copy of the model, and looks at how its layers are called."""
        try:
            passes = Passes(self.model)
            self.layers = dict(zip(passes.paths, passes.given))  # untracked ones as well
            if not self.layers:
                return
            few = None if self._batches is None else _few(self.model, self._batches.first)
            x = certificate.random_inputs(self.model) if few is None else few.x
            found = passes.survey(x, training=True)
            self.called = {passes.paths[index]: made for index, made in found.items()}
            self.invariant = self._in_front()
            self.rectified = {passes.paths[index] for index in _rectified(passes, x)}
        except Exception as error:  # of the model's own code: watching must not stop a training
            self.unseen["the model's forward pass"] = in_a_line(error)
            return
        if few is None:
            return
        self._passes = passes
        try:
            self._scorer = Evaluations(
                passes, Batches([few], FEW, None, FEW), loss=self._loss
            ).scorer
        except CannotLook as error:
            self.unseen["the loss in training mode and in inference"] = str(error)

    def _in_front(self) -> dict[str, keras.Variable]:
        places = certificate.paths(self.model)
        sources = {call.source for made in self.called.values() for call in made}
        return {
            variable.path: variable
            for layer in self.model._flatten_layers()
            if places.get(id(layer)) in sources and _is_linear(layer)
            for variable in (getattr(layer, name, None) for name in KERNELS)
            if isinstance(variable, keras.Variable)
        }

    # ------------------------------------------------------------ what variables say

    def _statistics_now(self) -> dict[str, dict[str, Array]]:
        return {
            path: {name: as_array(getattr(layer, name))
                   for name in statistics.STATISTICS if name != "updates"
                   and isinstance(getattr(layer, name, None), keras.Variable)}
            for path, layer in self.layers.items()
        }

    def _affine_now(self) -> dict[str, dict[str, Array]]:
        return {
            path: {name: as_array(getattr(layer, name)) for name in ("gamma", "beta")
                   if isinstance(getattr(layer, name, None), keras.Variable)}
            for path, layer in self.layers.items()
        }

    def _skipped_now(self) -> dict[str, int]:
        return {path: layer.skipped_batches for path, layer in self.layers.items()
                if hasattr(layer, "skipped_batches")}

    def _trained(self) -> dict[str, keras.Variable]:
        return {weight.path: weight for weight in self.model.trainable_variables
                if len(weight.shape) >= 2}

    def _learning_rate(self) -> Optional[float]:
        rate = getattr(getattr(self.model, "optimizer", None), "learning_rate", None)
        return None if rate is None else float(keras.ops.convert_to_numpy(rate))


class _Behind:
    """What goes into a batch normalization and comes out, over some batches."""

    def __init__(self, layer: keras.Layer) -> None:
        self._layer = layer
        self.moments: list[Moments] = []
        self._values: list[Array] = []
        self._highest: list[Array] = []

    def add(self, seen: Any) -> None:
        """Takes in a call."""
        self.moments.append(moments(self._layer, seen.inputs, seen.mask))
        flat = keras.ops.reshape(seen.outputs, (-1,))
        self._values.append(as_array(flat[::max(1, flat.shape[0] // MOST_VALUES) | 1]))
        axis = getattr(self._layer, "axis", -1) % len(seen.outputs.shape)
        others = [number for number in range(len(seen.outputs.shape)) if number != axis]
        self._highest.append(as_array(keras.ops.max(seen.outputs, others)))

    def summary(self) -> dict[str, float]:
        values = np.concatenate(self._values)
        lost = not all(np.isfinite(one.mean + one.variance).all() for one in self.moments)
        found = {
            "inputs_not_finite": float(lost),
            "dead_channels": float(np.mean(np.max(self._highest, 0) <= 0)),
        }
        for percent, value in zip(PERCENTILES, np.percentile(values, PERCENTILES)):
            found[f"output_p{percent}"] = float(value)
        return found

    def lag(self, averaged: Any) -> dict[str, float]:
        found = pooled(self.moments)
        exact = {"moving_mean": found.mean, "moving_variance": found.variance}
        shift, factor = distance(self._layer, exact, averaged)
        return {
            "mean_lag": shift, "variance_lag": factor, "values": float(np.min(found.values)),
        }


@contextlib.contextmanager
def kept_randomness() -> Iterator[None]:
    """Leaves the random draws to come as they are: of Python, NumPy and Keras without a seed."""
    states = random.getstate(), np.random.get_state()
    keras_own = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    before = None if keras_own is None else keras.ops.convert_to_numpy(keras_own.state)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if keras_own is not None:
            keras_own.state.assign(before)
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, keras_own)


def _few(model: keras.Model, batch: Batch) -> Batch:
    """The first examples of a batch; all of them for a model that takes no other number."""
    if any(x.shape[0] for x in getattr(model, "inputs", None) or ()):
        return batch
    return Batch(*(
        part if part is None else keras.tree.map_structure(lambda array: array[:FEW], part)
        for part in batch
    ))


def _signature(model: keras.Model) -> list[Any]:
    flags = [layer.trainable for layer in model._flatten_layers()]
    return [*map(id, model.variables), *flags]


def _rectified(passes: Passes, x: Any) -> set[int]:
    """The batch normalizations whose very outputs a ReLU layer takes, by their numbers."""
    made: dict[int, tuple[Any, int]] = {}  # id of an output → (kept alive, number)
    found: set[int] = set()

    def relu(layer: keras.Layer, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        taken = next(iter(layer._call_signature.bind(*args, **kwargs).arguments.values()))
        if id(taken) in made:
            found.add(made[id(taken)][1])
        return call(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in passes.model._flatten_layers():
            if _is_relu(layer):
                stack.enter_context(calls.redirected(layer, relu))
        passes.outputs(x, see=lambda one: made.update(
            {id(one.outputs): (one.outputs, one.layer)}
        ))
    return found


def _is_relu(layer: keras.Layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope
    relus = (keras.activations.relu, keras.activations.relu6)
    return isinstance(layer, keras.layers.Activation) and layer.activation in relus


def _is_linear(layer: keras.Layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _sample(variable: keras.Variable) -> Array:
    """Evenly spaced values of a variable."""
    flat = keras.ops.reshape(keras.ops.convert_to_tensor(variable), (-1,))
    return as_array(flat[::max(1, flat.shape[0] // MOST_OF_A_WEIGHT) | 1])


def _differs(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return any(not np.array_equal(value, other[name], equal_nan=True)
               for name, value in one.items())


def _bad(values: dict[str, Array]) -> float:
    """Share of the channels whose statistics are no mean and variance."""
    mean, variance = values["moving_mean"], values["moving_variance"]
    return float(np.mean(~np.isfinite(mean) | ~np.isfinite(variance) | (variance < 0)))
