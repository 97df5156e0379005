"""Optimizers by name: Keras's own, Adam and SGD with TensorFlow's fused update kernels."""

from typing import Any

import keras
import tensorflow as tf

from bn_keras import own
from bn_keras.registry import OPTIMIZERS


@OPTIMIZERS.register("adam")
class FusedAdam(keras.optimizers.Adam):
    """Adam (Kingma & Ba 2015), Keras's formula and state, each weight updated by one kernel.

    Keras's update is some ten elementwise ops a weight; the kernel reads and writes the memory
    once, which makes 3.2 million weights about three times as fast on a CPU. The kernel has no
    amsgrad, so that argument is not offered.
    """

    def __init__(
        self, learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-7, **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **kwargs
        )
        if self.amsgrad:
            raise ValueError(
                "FusedAdam: received amsgrad=True; expected amsgrad=False, or "
                "keras.optimizers.Adam, which has it."
            )

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Applies one gradient to one weight and its two moments, in place."""
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        # Not tf.cast, which would round the numbers to float32 on their way to float64.
        beta_1, beta_2 = tf.constant(self.beta_1, dtype), tf.constant(self.beta_2, dtype)
        step = tf.cast(self.iterations.value + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(learning_rate, dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


@OPTIMIZERS.register("sgd", rate_per_run=True)
class FusedSGD(keras.optimizers.SGD):
    """Plain stochastic gradient descent, each weight updated by one kernel in one pass."""

    def __init__(self, learning_rate: float = 0.01, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        if self.momentum or self.nesterov:
            raise ValueError(
                f"FusedSGD: received momentum={self.momentum}, nesterov={self.nesterov}; expected "
                "plain SGD, or keras.optimizers.SGD for one with momentum."
            )

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Applies one gradient to one weight, in place."""
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle,
            alpha=tf.cast(learning_rate, variable.dtype),
            delta=tf.cast(gradient, variable.dtype),
        )


@OPTIMIZERS.register("momentum")
def momentum(learning_rate: float) -> keras.optimizers.Optimizer:
    """SGD with Polyak's momentum of .9."""
    return keras.optimizers.SGD(learning_rate, momentum=0.9)


@OPTIMIZERS.register("rmsprop")
def rmsprop(learning_rate: float) -> keras.optimizers.Optimizer:
    """RMSprop with Keras's decay of .9."""
    return keras.optimizers.RMSprop(learning_rate)


# Scale and offset of any normalizer, and the bias of any layer, by the names that Keras gives them;
# the others are those of filter response normalization, DyT and SkipInit (PReLU has an alpha).
SPARED = ("gamma", "beta", "bias", "tau", "epsilon", "dyt_alpha", "skip_alpha")
NORMALIZERS = (
    keras.layers.BatchNormalization, keras.layers.LayerNormalization,
    keras.layers.GroupNormalization, keras.layers.RMSNormalization,
)


def exclude_from_weight_decay(
    optimizer: keras.optimizers.Optimizer, model: keras.Layer
) -> keras.optimizers.Optimizer:
    """Spares the scale and offset of every normalizer, and every bias, from weight decay.

    Decay pulls weights to 0, which for a scale means to switch its channel off; AdamW does so to
    gamma unless it is told not to. Call it before the optimizer is built. All other weights are
    decayed, one-dimensional ones too.

    Args:
        optimizer: a Keras optimizer with a `weight_decay`, or a wrapper around one, such as
            `LossScaleOptimizer`, nested or not. Weights that it spares already stay spared.
        model: the model that it is to train, of any kind, built.

    Returns:
        The optimizer as given, wrappers included.

    Raises:
        TypeError: not a Keras optimizer, or not a Keras model or layer.
        ValueError: the optimizer decays nothing, or the model is not built.
    """
    inner = own.innermost(optimizer)  # the wrapper's own list has no effect
    if not hasattr(inner, "weight_decay") or not hasattr(inner, "exclude_from_weight_decay"):
        raise TypeError(
            f"exclude_from_weight_decay: {_named(optimizer, inner)} has no weight_decay; expected "
            "a Keras optimizer such as keras.optimizers.AdamW."
        )
    if inner.weight_decay is None:
        raise ValueError(
            f"exclude_from_weight_decay: {_named(optimizer, inner)} has weight_decay=None and "
            "decays nothing; expected an optimizer with a weight_decay, such as "
            "keras.optimizers.AdamW(weight_decay=0.004), or no call of this function."
        )
    if not isinstance(model, keras.Layer):
        raise TypeError(
            f"exclude_from_weight_decay: received a {type(model).__name__} as model; expected a "
            "keras.Model or a layer."
        )
    if not model.built:
        raise ValueError(
            f"exclude_from_weight_decay: {model.name!r} is not built and has no weights yet; "
            "expected a model that was called once on data, or built."
        )
    spared = [
        weight for layer in model._flatten_layers() for weight in layer._trainable_variables
        if isinstance(layer, NORMALIZERS) or hasattr(layer, "moving_mean")
        or weight.name in SPARED or weight.name.endswith("_bias")
    ]
    before: set[Any] = getattr(inner, "_exclude_from_weight_decay", set())
    pattern = getattr(inner, "_exclude_from_weight_decay_pattern", None)
    inner.exclude_from_weight_decay(
        var_list=spared, var_names=None if pattern is None else [pattern.pattern]
    )
    inner._exclude_from_weight_decay |= before
    return optimizer


def _named(optimizer: keras.optimizers.Optimizer, inner: keras.optimizers.Optimizer) -> str:
    outer, name = type(optimizer).__name__, type(inner).__name__
    return name if inner is optimizer else f"{name} in the {outer}"
