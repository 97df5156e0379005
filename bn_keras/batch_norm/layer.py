"""The `BatchNorm` layer: weights, training policy and serialization around `functional`."""

import warnings

import keras
from keras import constraints, initializers, ops, regularizers

from bn_keras.batch_norm import functional, population
from bn_keras.batch_norm import renorm as renormalization

ONE_VALUE = ("warn", "error", "ignore")
EXTRAS = {
    "debias": False,
    "unbiased_variance": False,
    "one_value": "warn",
    "explicit_training": False,
    "replica_group_size": None,
}


# Keras derives the groups of a weights file and the automatic names of layers from the name of the
# class: under Keras's own name, files and `get_layer` calls work for either layer.
@keras.saving.register_keras_serializable(package="bn_keras", name="BatchNorm")
class BatchNormalization(keras.layers.Layer):
    """Batch normalization: a drop-in for `keras.layers.BatchNormalization`, faster on TensorFlow.

    In training, each channel is normalized with the mean and variance of the batch:

        y = gamma * (x - batch_mean) / sqrt(batch_variance + epsilon) + beta

    in inference with the population statistics:

        y = gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta

    and every training call moves these towards the batch's:

        moving = momentum * moving + (1 - momentum) * batch

    >>> import numpy as np
    >>> layer = BatchNorm(momentum=0.5)
    >>> x = np.array([[1.0], [3.0]], "float32")
    >>> np.round(layer(x, training=True).numpy().ravel(), 3).tolist()
    [-1.0, 1.0]
    >>> float(layer.moving_mean.numpy()[0])
    1.0

    Args:
        axis: the channel axis; -1 is the field's convention for TensorFlow.
        momentum: weight of the old statistic in the moving average. The default .99 needs some
            500 steps before inference works; take .9 for short runs. None averages all batches
            alike (the cumulative average); a schedule, `(updates) -> momentum`, such as those of
            `keras.optimizers.schedules`, gives each update its own.
        epsilon: added to the variance, so that a constant channel does not divide by zero.
        center: learn the offset `beta`.
        scale: learn the factor `gamma`; superfluous in front of a linear layer or a relu.
        beta_initializer, gamma_initializer: start values of the learned weights.
        moving_mean_initializer, moving_variance_initializer: start values of the statistics.
        beta_regularizer, gamma_regularizer: penalties on the learned weights.
        beta_constraint, gamma_constraint: projections of the learned weights.
        renorm: batch renormalization (Ioffe 2017): training uses the moving statistics too.
        renorm_clipping: dict with any of rmax, rmin, dmax, the bounds of its correction.
        renorm_momentum: momentum of the statistics that renorm uses in training.
        synchronized: take batch statistics over all replicas of `tf.distribute`.
        debias: let the first batch replace the initial statistics and weigh the next ones
            accordingly, so that inference is right from the first step on.
        unbiased_variance: put n / (n - 1) times the batch's variance into the moving variance, as
            PyTorch does; the batch itself is normalized with the biased one either way.
        one_value: what to do in training when a channel has one value only, whose variance says
            nothing and whose output is just beta: "warn", "error" or "ignore". The moving
            statistics stay as they are in any case. A graph in which the batch size is open, or a
            mask, cannot warn: there `skipped_batches` tells, and "error" stops on TensorFlow.
        explicit_training: make it an error when nobody says whether it is training or inference.
        replica_group_size: if synchronized, over consecutive groups of that many replicas only.
        **kwargs: `name`, `dtype`, `trainable`, as for every Keras layer.

    Call arguments:
        inputs: floating tensor of rank 2 or more.
        training: True for batch statistics, False for population statistics; a Python bool or a
            boolean scalar tensor, also inside `tf.function`. None follows Keras's context.
        mask: boolean tensor of the inputs' shape without the channel axis; False positions do not
            count in the statistics.

    Shapes:
        Outputs have the shape of the inputs; every weight has the shape (channels,).

    Raises:
        ValueError: a setting out of range, a mask or axis that does not fit the inputs, or what
            `one_value` and `explicit_training` ask to refuse.

    A batch in which nothing counts (it is empty, or fully masked) or whose statistics are not
    finite leaves the moving statistics as they are; `skipped_batches` says how often that was (on
    JAX: in calls outside of compiled training; under `tf.distribute` each replica counts).

    With `trainable=False` the layer runs in inference mode, whatever `training` says, and its
    statistics stay as they are; this is Keras's rule too.

    Where it differs from Keras's layer: `training` may be a tensor; `axis` may be a list or tuple
    of one; a mask works with any axis; momentum, epsilon and axis are checked; batches that say
    nothing do not touch the population statistics; these are float32 at least, and whoever reads
    them under `tf.distribute` gets their mean over all replicas where Keras gives the first one's;
    synchronized statistics are computed in two passes and count masks. All else is equal within
    rounding, weights files and the layer's automatic name included.

    Reference:
        Ioffe & Szegedy, 2015, https://arxiv.org/abs/1502.03167, algorithms 1 and 2.
    """

    def __init__(
        self,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        moving_mean_initializer="zeros",
        moving_variance_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        renorm=False,
        renorm_clipping=None,
        renorm_momentum=0.99,
        synchronized=False,
        *,
        debias=False,
        unbiased_variance=False,
        one_value="warn",
        explicit_training=False,
        replica_group_size=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.axis = _single_axis(axis)
        if isinstance(momentum, dict):  # a schedule, as get_config writes it
            momentum = keras.saving.deserialize_keras_object(momentum)
        self.momentum = population.check_momentum(momentum, debias)
        self.epsilon = _checked("epsilon", epsilon, 0.0, float("inf"))
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.renorm = renorm
        self.renorm_clipping = (
            renormalization.check_clipping(renorm_clipping) if renorm else renorm_clipping
        )
        self.renorm_momentum = _checked("renorm_momentum", renorm_momentum, 0.0, 1.0)
        if synchronized and keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"BatchNorm: synchronized=True on the {keras.backend.backend()} backend; it needs "
                "the TensorFlow backend (set KERAS_BACKEND=tensorflow)."
            )
        self.synchronized = synchronized
        if replica_group_size is not None and (not synchronized or replica_group_size < 1):
            raise ValueError(
                f"BatchNorm: replica_group_size={replica_group_size} with synchronized="
                f"{synchronized}; expected a number of replicas with synchronized=True."
            )
        if one_value not in ONE_VALUE:
            raise ValueError(
                f"BatchNorm: one_value={one_value!r}; expected one of {', '.join(ONE_VALUE)}."
            )
        self.replica_group_size = replica_group_size
        self.debias = debias
        self.unbiased_variance = unbiased_variance
        self.one_value = one_value
        self.explicit_training = explicit_training
        self.supports_masking = True
        self.gamma = None
        self.beta = None

    # What the variants, each in a file of its own, do otherwise.
    trains_affine = True
    # Groups of channels that have nothing to do with each other, such as nets that are trained side
    # by side: a bad value in one leaves the statistics of the others free to move.
    guarded_groups = 1

    def build(self, input_shape):
        rank = len(input_shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"BatchNorm: axis={self.axis} is out of range for input shape {input_shape}; "
                f"expected {-rank} <= axis < {rank}."
            )
        channels = input_shape[self.axis]
        if channels is None:
            raise ValueError(
                f"BatchNorm: axis={self.axis} of input shape {input_shape} is unknown; expected a "
                "fixed number of channels there."
            )
        # Statistics over half-precision numbers lose small updates: never below float32.
        dtype = keras.backend.result_type(self.variable_dtype, "float32")

        def variance_root(shape, dtype=None):
            # A clone: a seeded initializer object may not be drawn from twice.
            initializer = self.moving_variance_initializer.clone()
            return ops.sqrt(initializer(shape, dtype=dtype))

        def statistic(name, initializer, shape=(channels,), dtype=dtype, aggregation="mean"):
            # Each replica moves its own copy; whoever reads from outside gets their mean.
            return keras.Variable(
                initializer,
                shape=shape,
                dtype=dtype,
                trainable=False,
                autocast=False,
                aggregation=aggregation,
                synchronization="on_read",
                name=name,
            )

        if self.scale:
            self.gamma = self.add_weight(
                shape=(channels,),
                name="gamma",
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                trainable=self.trains_affine,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                shape=(channels,),
                name="beta",
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                trainable=self.trains_affine,
                autocast=False,
            )
        self.moving_mean = statistic("moving_mean", self.moving_mean_initializer)
        self.moving_variance = statistic("moving_variance", self.moving_variance_initializer)
        if self.renorm:
            self.moving_stddev = statistic("moving_stddev", variance_root)
            self.renorm_mean = statistic("renorm_mean", self.moving_mean_initializer.clone())
            self.renorm_stddev = statistic("renorm_stddev", variance_root)
        if self._counts_updates():
            self.updates = statistic("updates", "zeros", (), "int32", "only_first_replica")
        self._skipped = _Untracked(statistic("skipped_batches", "zeros", (), "int32", "sum"))
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={self.axis: channels})

    def call(self, inputs, training=None, mask=None):
        if training is None and self.explicit_training:
            raise ValueError(
                f"BatchNorm {self.name!r}: called without `training`; expected training=True or "
                "training=False, in this call or that of the model (explicit_training=True asks "
                "for it)."
            )
        mask = self._checked_mask(inputs, mask)
        if not self.trainable:
            training = False
        if not _is_symbolic(training):
            if not training:
                return self._infer(inputs)
            count = self._count(inputs, mask)
            if isinstance(count, int):
                self._tell_one_value(count)
            elif self.one_value == "error":
                functional.require(ops.not_equal(count, 1), self._one_value_text())
            outputs, mean, variance = self._normalize_batch(inputs, mask, count)
            self._update_statistics(mean, variance, count)
            return outputs
        training = ops.cast(training, "bool")
        count = self._count(inputs, mask)
        if self.one_value == "error":
            fine = ops.logical_or(ops.logical_not(training), ops.not_equal(count, 1))
            functional.require(fine, self._one_value_text())
        outputs, mean, variance = ops.cond(
            training,
            lambda: self._normalize_batch(inputs, mask, count),
            lambda: (self._infer(inputs), *self._population(inputs)),
        )
        self._update_statistics(mean, variance, count, training)
        return outputs

    @property
    def skipped_batches(self):
        """How many training batches have not been taken into the moving statistics (an int).

        Set it to 0 to count anew; it is in no file and no `weights`.
        """
        return 0 if not self.built else int(self._skipped.variable.numpy())

    @skipped_batches.setter
    def skipped_batches(self, count):
        self._skipped.variable.assign(count)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        momentum = self.momentum
        if callable(momentum):
            momentum = keras.saving.serialize_keras_object(momentum)
        # What Keras's layer does not know stands in the config only where it was asked for, so
        # that either layer takes the other's config.
        extras = {
            name: getattr(self, name)
            for name, default in EXTRAS.items() if getattr(self, name) != default
        }
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(
                self.moving_variance_initializer
            ),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
            "renorm": self.renorm,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
            **extras,
        }

    def _infer(self, inputs):
        mean, variance = self._population(inputs)
        return functional.normalize(
            inputs, mean, variance, self.gamma, self.beta, axis=self.axis, epsilon=self.epsilon
        )

    def _population(self, inputs):
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        return ops.cast(self.moving_mean, dtype), ops.cast(self.moving_variance, dtype)

    def _normalize_batch(self, inputs, mask, count):
        settings = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            **self._scope(mask),
            "n": count,
        }
        if not self.renorm:
            outputs, mean, variance = functional.batch_norm(
                inputs, self.gamma, self.beta, **settings
            )
            return outputs, mean, self._estimate(variance, count, count - 1)
        wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        x_hat, mean, variance = functional.batch_norm(wide, None, None, **settings)
        r, d = renormalization.correction(
            mean,
            ops.sqrt(variance + self.epsilon),
            self.renorm_mean,
            self.renorm_stddev,
            self.epsilon,
            self._clipping(),
        )
        gamma = ops.ones_like(r) if self.gamma is None else ops.cast(self.gamma, r.dtype)
        beta = 0 if self.beta is None else ops.cast(self.beta, r.dtype)
        scale = functional.broadcast(r * gamma, inputs, self.axis)
        shift = functional.broadcast(d * gamma + beta, inputs, self.axis)
        outputs = ops.cast(x_hat * scale + shift, inputs.dtype)
        return outputs, mean, self._estimate(variance, count, count - 1)

    def _estimate(self, variance, count, freedom):
        """What a batch says of the population's variance, given its own and degrees of freedom."""
        if not self.unbiased_variance:
            return variance
        count, freedom = (ops.cast(number, variance.dtype) for number in (count, freedom))
        return variance * (count / ops.maximum(freedom, 1))

    def _clipping(self):
        """rmax, rmin and dmax of renorm, numbers or scalar tensors."""
        return self.renorm_clipping

    def _counts_updates(self):
        return population.counts_updates(self.momentum, self.debias)

    def _scope(self, mask):
        """What the batch statistics are taken over."""
        return {
            "mask": mask,
            "synchronized": self.synchronized,
            "group_size": self.replica_group_size,
        }

    def _count(self, inputs, mask):
        """Values of a channel that count: an int where the shapes tell, else a tensor."""
        return functional.count(inputs, axis=self.axis, **self._scope(mask))

    def _tell_one_value(self, count):
        """Warns or raises, as asked, where shapes tell that a channel has one value."""
        if count == 1 and self.one_value == "error":
            raise ValueError(self._one_value_text())
        if count == 1 and self.one_value == "warn":
            warnings.warn(self._one_value_text(), stacklevel=2)

    def _one_value_text(self):
        return (
            f"BatchNorm {self.name!r}: one value per channel in training; its output is beta, "
            "whatever the input. Expected a batch of 2 or more, or one_value=\"ignore\"."
        )

    def _update_statistics(self, mean, variance, count, training=None):
        """Moves the population statistics, unless the batch has nothing to say.

        Args:
            mean, variance: what the batch says of the population's, of shape (channels,).
            count: values of a channel behind them, an int or a tensor.
            training: None, or a boolean tensor: only where it is true.
        """
        # A mean that is not finite makes the variance so. And the variance of fewer than two
        # values is no estimate of anything.
        accepted = ops.all(ops.isfinite(variance))
        skipped = ops.logical_not(accepted)
        if self.guarded_groups > 1:
            groups = ops.reshape(ops.isfinite(variance), (self.guarded_groups, -1))
            accepted = ops.repeat(ops.all(groups, 1), groups.shape[1])
        if not isinstance(count, int) or count < 2:
            accepted = ops.logical_and(accepted, count >= 2)
            skipped = ops.logical_or(skipped, count < 2)
        if training is not None:
            accepted = ops.logical_and(accepted, training)
            skipped = ops.logical_and(skipped, training)
        self._skipped.variable.assign_add(ops.cast(skipped, "int32"))

        def rate_at(momentum):
            share = ops.convert_to_tensor(1.0 - momentum, self.moving_mean.dtype)
            return ops.where(accepted, share, ops.zeros_like(share))

        momentum = self.momentum
        if self._counts_updates():
            momentum = population.momentum_at(self.momentum, self.debias, self.updates.value)
            self.updates.assign_add(ops.cast(accepted, "int32"))
        rate = rate_at(momentum)
        functional.move(self.moving_mean, mean, rate)
        if not self.renorm:
            functional.move(self.moving_variance, variance, rate)
            return
        stddev = ops.sqrt(variance + self.epsilon)
        renorm_rate = rate_at(self.renorm_momentum)
        functional.move(self.renorm_mean, mean, renorm_rate)
        functional.move(self.renorm_stddev, stddev, renorm_rate)
        functional.move(self.moving_stddev, stddev, rate)
        squared = ops.square(ops.stop_gradient(self.moving_stddev))
        functional.move(
            self.moving_variance, ops.relu(squared - self.epsilon), ops.cast(accepted, rate.dtype)
        )

    def _checked_mask(self, inputs, mask):
        if mask is None:
            # Keras hands a mask on by itself only where the inputs are the one tensor argument.
            mask = getattr(inputs, "_keras_mask", None)
        if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
            raise ValueError(
                f"BatchNorm: mask of shape {tuple(mask.shape)} for inputs of shape "
                f"{tuple(inputs.shape)}; expected the inputs' shape without axis {self.axis}."
            )
        return mask


BatchNorm = BatchNormalization


class _Untracked:
    """Holds a variable that is to be no weight of the layer: files stay as Keras writes them."""

    def __init__(self, variable):
        self.variable = variable


def _single_axis(axis):
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    if len(axes) != 1 or isinstance(axes[0], bool) or int(axes[0]) != axes[0]:
        raise ValueError(
            f"BatchNorm: axis={axis!r}; expected one whole number, or a list or tuple of one."
        )
    return int(axes[0])


def _checked(name, value, low, high):
    number = float(value)
    if not low <= number <= high:
        raise ValueError(f"BatchNorm: {name}={value!r}; expected {low:g} <= {name} <= {high:g}.")
    return number


def _is_symbolic(training):
    """Whether `training` is a tensor whose value is only known when the graph runs."""
    if not ops.is_tensor(training):
        return False
    try:
        bool(training)
    except Exception:  # each backend has its own error for "no value while tracing"
        return True
    return False
