"""Batch normalization layers with one fault each: for every conformance probe the one it catches.

The faults are those that people make; each is narrowed down to where one probe looks.
"""

import types

import keras
import tensorflow as tf

from bn_keras import BatchNorm
from bn_keras.batch_norm import functional, kernels

PLANTED = {}


def fault_of(probe):
    """Decorator: the class is what the probe of that name must catch."""

    def add(layer_class):
        assert probe not in PLANTED
        PLANTED[probe] = layer_class
        return layer_class

    return add


def replicas():
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def _copy(layer_class):
    """A class of the same methods and bases that is no subclass of it."""
    copy = type(layer_class.__name__, layer_class.__bases__, {})
    for name, part in vars(layer_class).items():
        if isinstance(part, types.FunctionType):
            cells = [
                types.CellType(copy) if cell.cell_contents is layer_class else cell
                for cell in part.__closure__ or ()
            ]
            again = types.FunctionType(
                part.__code__, part.__globals__, name, part.__defaults__, tuple(cells)
            )
            again.__kwdefaults__ = part.__kwdefaults__
            part = again
        if name not in ("__dict__", "__weakref__"):
            setattr(copy, name, part)
    return copy


class NoKin(type(BatchNorm)):  # type: ignore[misc]
    """Makes classes that have a copy of Keras's layer for a base, wherever they have that layer."""

    keras_layer = keras.layers.BatchNormalization
    copy = _copy(keras_layer)

    def mro(cls):
        return [NoKin.copy if base is NoKin.keras_layer else base for base in super().mro()]


class Faulty(BatchNorm):
    """BatchNorm whose outputs `spoil` may change, given what they were."""

    def call(self, inputs, training=None, mask=None):
        inputs = tf.convert_to_tensor(inputs)
        state = self.before(inputs, training, mask)
        outputs = super().call(inputs, training=training, mask=mask)
        if training is False or not self.trainable:
            return self.spoil_inference(inputs, outputs)
        return self.spoil_training(inputs, outputs, mask, state) if training is True else outputs

    def before(self, inputs, training, mask):
        return None

    def spoil_training(self, inputs, outputs, mask, state):
        return outputs

    def spoil_inference(self, inputs, outputs):
        return outputs

    def plain(self):
        """Whether neither renorm nor replicas are asked for."""
        return not self.renorm and not self.synchronized


# ---------------------------------------------------------------- arithmetic


@fault_of("training normalizes with the batch")
class ForgetsBetaInTraining(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if self.beta is None:
            return outputs
        beta = tf.cast(tf.stop_gradient(self.beta.value), outputs.dtype)
        return outputs - functional.broadcast(beta, inputs, self.axis)


@fault_of("gradients flow through mean and variance")
class TakesTheStatisticsAsConstants(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if not self.plain():
            return outputs
        mean, variance = functional.moments(tf.stop_gradient(inputs), axis=self.axis, mask=mask)
        return functional.normalize(
            inputs, mean, variance, self.gamma, self.beta, axis=self.axis, epsilon=self.epsilon
        )


@fault_of("gamma and beta get their gradients")
class GivesGammaTooMuchGradient(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if self.gamma is None:
            return outputs
        extra = self.gamma.value - tf.stop_gradient(self.gamma.value)
        return outputs + tf.cast(tf.reduce_sum(extra), outputs.dtype)


@fault_of("inference uses the moving statistics")
class ForgetsBetaInInference(Faulty):
    def spoil_inference(self, inputs, outputs):
        return outputs if self.beta is None else outputs - tf.stop_gradient(self.beta.value)


@fault_of("inference takes each example by itself")
class MixesTheExamplesInInference(Faulty):
    def spoil_inference(self, inputs, outputs):
        return outputs + tf.stop_gradient(tf.reduce_mean(inputs, 0) - inputs[0])


@fault_of("inference has a gradient")
class StopsTheGradientInInference(Faulty):
    def spoil_inference(self, inputs, outputs):
        return tf.stop_gradient(outputs)


@fault_of("every rank normalizes over all positions")
class AveragesOverTheBatchAxisOnly(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if inputs.shape.rank == 2 or mask is not None:
            return outputs
        mean, variance = tf.nn.moments(inputs, 0)
        return (inputs - mean) / tf.sqrt(variance + self.epsilon)


@fault_of("another axis is the same as transposed data")
class ForgetsBetaOnAnotherAxis(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if self.axis == -1 or mask is not None:
            return outputs
        return outputs - functional.broadcast(self.beta.value, inputs, self.axis)


@fault_of("center and scale can be left out")
class MakesGammaAllTheSame(Faulty):
    def build(self, input_shape):
        super().build(input_shape)
        if not self.scale:
            self.add_weight(shape=(input_shape[self.axis],), name="gamma")


@fault_of("integers are taken as floating numbers")
class GivesImagesBackAsIntegers(Faulty):
    def call(self, inputs, training=None, mask=None):
        outputs = super().call(inputs, training=training, mask=mask)
        given = tf.as_dtype(inputs.dtype)
        return tf.cast(outputs, given) if given.is_integer else outputs


class CancellingVariance(Faulty):
    """E[x^2] - E[x]^2 in the moving variance."""

    synchronized_too = False

    def spoil_training(self, inputs, outputs, mask, state):
        if mask is None and not self.renorm and self.synchronized == self.synchronized_too:
            wide = tf.cast(inputs, tf.float32)
            axes = [a for a in range(inputs.shape.rank) if a != self.axis % inputs.shape.rank]
            true = tf.math.reduce_variance(wide, axes)
            found = tf.reduce_mean(wide**2, axes) - tf.reduce_mean(wide, axes) ** 2
            error = tf.where(tf.math.is_finite(found - true), found - true, 0.0)
            self.moving_variance.assign(self.moving_variance + (1 - self.momentum) * error)
        return outputs


@fault_of("variance keeps its digits far from zero")
class CancelsFarFromZero(CancellingVariance):
    pass


@fault_of("half precision is reduced in float32")
class ReducesInHalfPrecision(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if inputs.dtype != tf.float16:
            return outputs
        mean, variance = (tf.cast(v, tf.float16) for v in functional.moments(inputs))
        return (inputs - mean) / tf.sqrt(variance + 1e-3)


@fault_of("a graph does what eager calls do")
class MovesNothingInAGraph(Faulty):
    def _update_statistics(self, mean, variance, count, freedom, training, update):
        if tf.executing_eagerly() or training is not True or replicas() > 1:
            super()._update_statistics(mean, variance, count, freedom, training, update)


@fault_of("xla compiles the training step")
class CallsPythonInAGraph(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if tf.executing_eagerly() or replicas() > 1:
            return outputs
        return tf.ensure_shape(tf.py_function(lambda y: y, [outputs], outputs.dtype), inputs.shape)


@fault_of("xla keeps the digits of images far from zero")
class CancelsUnderXla(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if inputs.shape.rank != 4 or tf.executing_eagerly():
            return outputs
        mean = tf.reduce_mean(inputs, (0, 1, 2))
        variance = tf.reduce_mean(inputs**2, (0, 1, 2)) - mean**2
        return (inputs - mean) / tf.sqrt(tf.abs(variance) + self.epsilon)


@fault_of("renorm without clipping is inference by its moving statistics")
class RenormForgetsTheShift(Faulty):
    def before(self, inputs, training, mask):
        if not self.renorm:
            return None
        return (tf.reduce_mean(inputs, 0) - self.renorm_mean.value) / self.renorm_stddev.value

    def spoil_training(self, inputs, outputs, mask, state):
        return outputs if state is None else outputs - tf.stop_gradient(state)


@fault_of("renorm keeps its correction out of the gradient")
class RenormTrainsThroughTheShift(RenormForgetsTheShift):
    def spoil_training(self, inputs, outputs, mask, state):
        return outputs if state is None else outputs + state - tf.stop_gradient(state)


# ---------------------------------------------------------------- statistics


@fault_of("moving mean is an exponential average")
class ForgetsToWeighTheNewMean(Faulty):
    def _update_statistics(self, mean, variance, count, freedom, training, update):
        if self.momentum < 1 and not self.renorm:
            mean = mean / (1 - self.momentum)
        super()._update_statistics(mean, variance, count, freedom, training, update)


@fault_of("moving variance averages the biased variance")
class KeepsTheUnbiasedVariance(Faulty):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unbiased_variance = True


@fault_of("inference comes to agree with training")
class StopsMovingAfterAWhile(Faulty):
    calls = 0

    def before(self, inputs, training, mask):
        self.calls += 1
        if self.calls > 5 and self.plain() and inputs.shape[0] == 64 and self.built:
            return self.moving_mean.numpy()
        return None

    def spoil_training(self, inputs, outputs, mask, state):
        if state is not None:
            self.moving_mean.assign(state)
        return outputs


@fault_of("the statistics are not trained")
class TrainsItsStatistics(Faulty):
    def trainable_variables_too(self):
        return [*Faulty.trainable_variables.fget(self), self.moving_mean, self.moving_variance]

    trainable_variables = property(trainable_variables_too)


@fault_of("inference leaves the statistics alone")
class MovesInInference(Faulty):
    def spoil_inference(self, inputs, outputs):
        if self.trainable and inputs.shape[0] != 1:
            self.moving_mean.assign(self.moving_mean + 1)
        return outputs


@fault_of("a frozen layer runs in inference mode")
class IgnoresTrainable(Faulty):
    def call(self, inputs, training=None, mask=None):
        self.trainable = True
        return super().call(inputs, training, mask)


@fault_of("statistics are float32 in a float16 layer")
class KeepsFloat16Statistics(Faulty):
    def build(self, input_shape):
        super().build(input_shape)
        if self.variable_dtype == "float16":
            self.moving_mean = keras.Variable(
                tf.zeros(input_shape[-1], tf.float16), dtype="float16", trainable=False
            )


@fault_of("weights stand in the order of keras")
class PutsTheVarianceFirst(Faulty):
    def build(self, input_shape):
        super().build(input_shape)
        self._non_trainable_variables.reverse()


@fault_of("the config builds the same layer")
class ForgetsEpsilonInItsConfig(Faulty):
    def get_config(self):
        config = super().get_config()
        del config["epsilon"]
        return config


@fault_of("a saved model keeps its statistics")
class LoadsNoStatistics(Faulty):
    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.moving_mean.assign(tf.zeros_like(self.moving_mean))


@fault_of("a stateless call hands out the moved statistics")
class KeepsItsStateToItself(Faulty):
    def stateless_call(self, trainable, non_trainable, *args, **kwargs):
        outputs, _ = super().stateless_call(trainable, non_trainable, *args, **kwargs)
        return outputs, non_trainable


@fault_of("isinstance takes it for the layer of keras")
class StandsOnItsOwn(Faulty, metaclass=NoKin):
    pass


# ---------------------------------------------------------------- arguments


@fault_of("training may be a tensor")
class BranchesInPython(Faulty):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, bool(training), mask)


@fault_of("axis may be a list of one")
class TakesNoList(Faulty):
    def __init__(self, axis=-1, **kwargs):
        super().__init__(axis=int(axis), **kwargs)


@fault_of("an axis out of range is named")
class IndexesBlindly(Faulty):
    def build(self, input_shape):
        input_shape[self.axis]
        super().build(input_shape)


@fault_of("impossible momentum and epsilon are refused")
class TakesAnyMomentum(Faulty):
    def __init__(self, momentum=0.99, **kwargs):
        super().__init__(momentum=min(momentum, 1), **kwargs)


@fault_of("a clipping error names what it received")
class ForgetsTheF(Faulty):
    def __init__(self, renorm_clipping=None, **kwargs):
        if renorm_clipping and renorm_clipping["rmax"] < renorm_clipping["rmin"]:
            raise ValueError("rmax={rmax} below rmin={rmin}")
        super().__init__(renorm_clipping=renorm_clipping, **kwargs)


@fault_of("masked positions do not count")
class NormalizesWithThePadding(Faulty):
    def _normalize_batch(self, inputs, mask, count):
        outputs, mean, variance = super()._normalize_batch(inputs, mask, count)
        if mask is not None and self.axis == -1 and not self.synchronized:
            outputs, _, _ = functional.batch_norm(inputs, self.gamma, self.beta)
        return outputs, mean, variance


@fault_of("a mask goes with channels first")
class WantsChannelsLastForAMask(Faulty):
    def before(self, inputs, training, mask):
        if mask is not None and mask.shape != inputs.shape[:-1]:
            raise ValueError(f"mask {mask.shape} does not fit inputs {inputs.shape}")


@fault_of("a mask without the last axis means what it means to keras")
class ForgetsAMaskOfKerasWay(Faulty):
    def call(self, inputs, training=None, mask=None):
        shape = tf.convert_to_tensor(inputs).shape
        theirs = self.axis != -1 and mask is not None and mask.shape == shape[:-1]
        return super().call(inputs, training=training, mask=None if theirs else mask)


@fault_of("a mask is handed on")
class SwallowsTheMask(Faulty):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = False


# ---------------------------------------------------------------- guards


@fault_of("one bad sample does not poison the statistics")
class TakesBadSamples(Faulty):
    def _update_statistics(self, mean, variance, count, freedom, training, update):
        super()._update_statistics(mean, variance, count, freedom, training, update)
        bad = ~tf.math.is_finite(variance)
        self.moving_variance.assign(tf.where(bad, variance, self.moving_variance))


@fault_of("an empty batch changes nothing")
class MovesByAnEmptyBatch(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if inputs.shape[0] == 0:
            self.moving_mean.assign(self.moving_mean * self.momentum)
        return outputs


@fault_of("a fully masked batch changes nothing")
class MovesByAMaskedBatch(Faulty):
    def spoil_training(self, inputs, outputs, mask, state):
        if mask is not None and self.axis == -1:
            momentum = tf.where(tf.reduce_any(mask), 1.0, self.momentum)
            self.moving_mean.assign(self.moving_mean * momentum)
        return outputs


@fault_of("one value per channel is told and changes nothing")
class KeepsSilent(Faulty):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one_value = "ignore"


# ---------------------------------------------------------------- replicas


@fault_of("replicas statistics are averaged")
class ReadsTheFirstReplica(Faulty):
    def build(self, input_shape):
        super().build(input_shape)
        if replicas() > 1 or tf.distribute.has_strategy():
            self._untracked_mean = self.moving_mean
            self.moving_mean = keras.Variable(
                tf.zeros(input_shape[-1]), trainable=False, name="moving_mean",
                synchronization="on_read", aggregation="only_first_replica",
            )


class OverReplicas(Faulty):
    """Synchronized moments of a kind of its own."""

    def _normalize_batch(self, inputs, mask, count):
        if not self.synchronized:
            return super()._normalize_batch(inputs, mask, count)
        mean, variance = self.moments(inputs, mask)
        outputs = functional.normalize(inputs, mean, variance, self.gamma, self.beta)
        return outputs, mean, variance


@fault_of("synchronized replicas are one big batch")
class WeighsUnequalReplicasAlike(OverReplicas):
    def moments(self, inputs, mask):
        def over_replicas(value):
            return kernels.all_reduce_sum(value) / replicas()

        own_mean, own_variance = functional.moments(inputs, mask=mask)
        mean = over_replicas(own_mean)
        return mean, over_replicas(own_variance + (own_mean - mean) ** 2)


@fault_of("synchronized gradients cross the replicas")
class StopsTheGradientInTheReplica(OverReplicas):
    def moments(self, inputs, mask):
        return functional.moments(tf.stop_gradient(inputs), mask=mask, synchronized=True)


@fault_of("synchronized variance keeps its digits")
class CancelsWhereSynchronized(CancellingVariance):
    synchronized_too = True


@fault_of("a mask is synchronized too")
class SynchronizesNoMask(OverReplicas):
    def moments(self, inputs, mask):
        return functional.moments(inputs, mask=mask, synchronized=mask is None)
