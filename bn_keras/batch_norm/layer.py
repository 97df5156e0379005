"""The `BatchNorm` layer: what a Keras layer needs around `functional` and `Population`."""

import contextlib
import warnings
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import keras
from keras import ops

from bn_keras.batch_norm import arguments, callers, functional
from bn_keras.batch_norm.functional import Tensor
from bn_keras.batch_norm.population import Population, both
from bn_keras.batch_norm.renorm import RenormPopulation, check_clipping

EXTRAS = {
    "debias": False,
    "unbiased_variance": False,
    "one_value": "warn",
    "explicit_training": False,
    "replica_group_size": None,
    "gradient_accumulation_steps": None,
}


# Keras derives the groups of a weights file and the automatic names of layers from the name of the
# class: under Keras's own name, files and `get_layer` calls work for either layer.
@keras.saving.register_keras_serializable(package="bn_keras", name="BatchNorm")
class BatchNormalization(keras.layers.BatchNormalization):
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
            statistics stay as they are in any case. Only shapes that are known can warn: not a
            mask, and not `fit`, whose batch size is open; there `skipped_batches` tells, and
            "error" stops on TensorFlow.
        explicit_training: make it an error when nobody says whether it is training or inference.
        replica_group_size: if synchronized, over consecutive groups of that many replicas only.
        gradient_accumulation_steps: calls that make one update of the moving statistics, with the
            pooled mean and variance of their batches. None takes the number from the optimizer
            that the called model is compiled with. (Each batch is still normalized by itself: no
            accumulation makes that a large batch.)
        **kwargs: `name`, `dtype`, `trainable`, as for every Keras layer.

    Call arguments:
        inputs: tensor of rank 2 or more. Numbers that are no floats are taken as float32.
        training: True for batch statistics, False for population statistics; a Python bool or a
            boolean scalar tensor, also inside `tf.function`. None follows Keras's context.
        mask: boolean tensor; False positions do not count in the batch's statistics. Of the shape
            inputs.shape[:-1], as Keras's layers hand masks on, or of the inputs' shape without
            `axis`; where both fit, or sizes are open, it is the first. Inference ignores it.
        update_statistics: False leaves the moving statistics alone in training, for a second pass
            over a batch; a bool or a boolean scalar tensor.

    Shapes:
        Outputs have the shape of the inputs and the layer's compute dtype; every weight has the
        shape (channels,).

    Raises:
        ValueError: a setting out of range, a mask or axis that does not fit the inputs, a schedule
            that gives no momentum, or what `one_value` and `explicit_training` ask to refuse.

    A batch in which nothing counts (it is empty, or fully masked) or whose statistics are not
    finite leaves the moving statistics as they are; `skipped_batches` says how often that was (on
    JAX: in calls outside of compiled training; under `tf.distribute` each replica counts). The
    outputs and gradients of a batch with NaN or inf are NaN all the same: only the optimizer can
    leave that step out, as `keras.optimizers.LossScaleOptimizer` does.

    A pass that is run again for its activations (`tf.recompute_grad`, `keras.RematScope`,
    `torch.utils.checkpoint`) moves the statistics once. `TimeDistributed` gives this layer the
    whole sequence, normalized over batch and time; in an RNN cell it sees one time step at a time,
    and warns.

    With `trainable=False` the layer runs in inference mode, whatever `training` says, and its
    statistics stay as they are; this is Keras's rule too.

    Where it differs from Keras's layer, beside what was said above: `axis` may be a list or tuple
    of one; settings are checked; moving statistics are float32 at least, and whoever reads them
    under `tf.distribute` gets their mean over all replicas where Keras gives the first one's;
    synchronized statistics are computed in two passes and count masks; values far from zero keep
    their digits. All else is equal within rounding, weights files and the layer's automatic name
    included.

    Reference:
        Ioffe & Szegedy, 2015, https://arxiv.org/abs/1502.03167, algorithms 1 and 2.
    """

    def __init__(
        self,
        axis: Any = -1,
        momentum: Any = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Optional[Dict[str, Any]] = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        *,
        debias: bool = False,
        unbiased_variance: bool = False,
        one_value: str = "warn",
        explicit_training: bool = False,
        replica_group_size: Optional[int] = None,
        gradient_accumulation_steps: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(momentum, dict):  # a schedule, as get_config writes it
            momentum = keras.saving.deserialize_keras_object(momentum)
        momentum = arguments.momentum(momentum, debias)
        super().__init__(
            axis=arguments.axis(axis),
            epsilon=arguments.epsilon(epsilon),
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm=renorm,
            renorm_clipping=check_clipping(renorm_clipping) if renorm else renorm_clipping,
            renorm_momentum=arguments.number("renorm_momentum", renorm_momentum, 0.0, 1.0),
            synchronized=synchronized,
            **kwargs,
        )
        self.momentum = momentum  # Keras's constructor takes numbers only
        arguments.floating(self.compute_dtype)
        arguments.floating(self.variable_dtype)
        self.debias = arguments.flag("debias", debias)
        self.unbiased_variance = arguments.flag("unbiased_variance", unbiased_variance)
        self.one_value = arguments.one_value(one_value)
        self.explicit_training = arguments.flag("explicit_training", explicit_training)
        self.replica_group_size = arguments.count(
            "replica_group_size", replica_group_size, "replicas"
        )
        if replica_group_size is not None and not synchronized:
            raise ValueError(
                f"BatchNorm: replica_group_size={replica_group_size} with synchronized="
                f"{synchronized}; expected synchronized=True."
            )
        self.gradient_accumulation_steps = arguments.count(
            "gradient_accumulation_steps", gradient_accumulation_steps, "micro-batches"
        )
        self.population: Any = None  # a Population, once the layer is built
        self._holds = 0
        self._told_of_steps = False

    # Overridden by variants, each in a file of its own in `normalizers`.
    trains_affine = True
    counts_updates = False

    def build(self, input_shape: Sequence[Optional[int]]) -> None:
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
        for wanted, name in ((self.scale, "gamma"), (self.center, "beta")):
            if wanted:
                weight = self.add_weight(
                    shape=(channels,),
                    name=name,
                    initializer=getattr(self, f"{name}_initializer"),
                    regularizer=getattr(self, f"{name}_regularizer"),
                    constraint=getattr(self, f"{name}_constraint"),
                    trainable=self.trains_affine,
                    autocast=False,
                )
                setattr(self, name, weight)
        settings = {"epsilon": self.epsilon, "renorm_momentum": self.renorm_momentum}
        self.population = (RenormPopulation if self.renorm else Population)(
            channels,
            # Statistics in half precision lose small updates: never below float32.
            keras.backend.result_type(self.variable_dtype, "float32"),
            self.moving_mean_initializer,
            self.moving_variance_initializer,
            momentum=self.momentum,
            debias=self.debias,
            unbiased_variance=self.unbiased_variance,
            counts_updates=self.counts_updates,
            pools=(self.gradient_accumulation_steps or 1) > 1,
            **(settings if self.renorm else {}),
        )
        for variable in self.population.variables:  # Keras tracks what is an attribute of its own
            setattr(self, variable.name, variable)
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={self.axis: channels})

    @property
    def momentum(self) -> Any:
        """Weight of the old statistic; set, it counts from the next call or trace on."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: Any) -> None:
        value = arguments.momentum(value, getattr(self, "debias", False))
        if getattr(self, "population", None) is not None:
            self.population.momentum = value
        self._momentum = value

    def call(
        self,
        inputs: Tensor,
        training: Any = None,
        mask: Optional[Tensor] = None,
        update_statistics: Any = True,
    ) -> Tensor:
        if training is None and self.explicit_training:
            raise ValueError(
                f"BatchNorm {self.name!r}: called without `training`; expected training=True or "
                "training=False, in this call or that of the model (explicit_training=True asks "
                "for it)."
            )
        if mask is None:
            # Keras hands a mask on by itself only where the inputs are the one tensor argument.
            mask = getattr(inputs, "_keras_mask", None)
        x = self._in_compute_dtype(inputs)
        training = _known(training) if self.trainable else False
        if training is False:
            # Inference uses no mask. Its number of axes is checked all the same, as Keras does.
            if mask is not None and len(mask.shape) != len(x.shape) - 1:
                functional.mask_like(x, mask, self.axis)
            return ops.cast(self._infer(x), self.compute_dtype)
        count = functional.count(x, axis=self.axis, **self._scope(mask))
        freedom = self._freedom(x, count)
        self._tell_one_value(count, freedom, training)
        self._tell_single_steps()
        if training is True:
            outputs, mean, variance = self._normalize_batch(x, mask, count)
        else:
            outputs, mean, variance = ops.cond(
                training,
                lambda: self._normalize_batch(x, mask, count),
                lambda: (self._infer(x), *self._population_moments(x)),
            )
        self._update_statistics(mean, variance, count, freedom, training, update_statistics)
        return ops.cast(outputs, self.compute_dtype)

    @property
    def skipped_batches(self) -> int:
        """How many training batches have not been taken into the moving statistics (an int).

        Set it to 0 to count anew; it is in no file and no `weights`.
        """
        return 0 if self.population is None else int(self.population.skipped.numpy())

    @skipped_batches.setter
    def skipped_batches(self, count: int) -> None:
        self.population.skipped.assign(count)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """A context in which calls leave the moving statistics alone.

        What `bn_keras.statistics.held` does for a whole model.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def get_config(self) -> Dict[str, Any]:
        config = super().get_config()
        if callable(self.momentum):
            config["momentum"] = keras.saving.serialize_keras_object(self.momentum)
        # What Keras's layer does not know stands in the config only where it was asked for, so
        # that either layer takes the other's config.
        extras = {
            name: getattr(self, name)
            for name, default in EXTRAS.items() if getattr(self, name) != default
        }
        return {**config, **extras}

    # ------------------------------------------------------------ the steps of `call`

    def _in_compute_dtype(self, inputs: Tensor) -> Tensor:
        """The inputs as numbers to compute with: as Keras's layer takes them.

        Half precision stays as it is where the outputs have it, too: the kernels reduce in float32.
        """
        x = ops.convert_to_tensor(inputs)
        if keras.backend.standardize_dtype(x.dtype) == self.compute_dtype:
            return x
        return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))

    def _infer(self, x: Tensor) -> Tensor:
        """Inference: normalizes with the population statistics."""
        mean, variance = self._population_moments(x)
        return functional.normalize(
            x, mean, variance, self.gamma, self.beta, axis=self.axis, epsilon=self.epsilon
        )

    def _population_moments(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        dtype = keras.backend.result_type(x.dtype, "float32")
        return ops.cast(self.moving_mean, dtype), ops.cast(self.moving_variance, dtype)

    def _scope(self, mask: Optional[Tensor]) -> Dict[str, Any]:
        """What the batch statistics are taken over."""
        return {
            "mask": mask,
            "synchronized": self.synchronized,
            "group_size": self.replica_group_size,
        }

    def _freedom(self, x: Tensor, count: functional.Count) -> functional.Count:
        """Degrees of freedom of the batch's variance. A variant with more means has fewer."""
        return count - 1

    def _normalize_batch(
        self, x: Tensor, mask: Optional[Tensor], count: functional.Count
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Training: normalizes with the batch. Returns outputs, mean and biased variance."""
        settings = {"axis": self.axis, "epsilon": self.epsilon, "n": count, **self._scope(mask)}
        if not self.renorm:
            return functional.batch_norm(x, self.gamma, self.beta, **settings)
        wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        x_hat, mean, variance = functional.batch_norm(wide, None, None, **settings)
        outputs = self.population.correct(
            x_hat, mean, variance, self.gamma, self.beta, self.axis, self._clipping()
        )
        return ops.cast(outputs, x.dtype), mean, variance

    def _clipping(self) -> Optional[Dict[str, Any]]:
        """rmax, rmin and dmax of renorm, numbers or scalar tensors. A variant has schedules."""
        return self.renorm_clipping

    def _update_statistics(
        self,
        mean: Tensor,
        variance: Tensor,
        count: functional.Count,
        freedom: functional.Count,
        training: Any,
        update_statistics: Any,
    ) -> None:
        """Moves the population statistics, once a batch."""
        if self._holds or callers.recomputing():
            return
        if not ops.is_tensor(update_statistics):
            update_statistics = arguments.flag("update_statistics", update_statistics)
        when = both(training, _known(update_statistics))
        steps = self._micro_batches()
        self.population.update(mean, variance, count, freedom, when=when, micro_batches=steps)

    def _micro_batches(self) -> int:
        """How many calls make one update of the statistics."""
        if self.gradient_accumulation_steps is not None:
            return self.gradient_accumulation_steps
        steps, taken = callers.micro_batches()
        if steps > 1 and keras.backend.backend() == "jax":
            warnings.warn(
                f"BatchNorm {self.name!r}: the optimizer accumulates gradients over {steps} "
                "micro-batches, each of which moves the moving statistics. On JAX, only "
                f"gradient_accumulation_steps={steps} as an argument of the layer pools them.",
                stacklevel=2,
            )
            return 1
        if steps > 1:
            self.population.open_pool(taken)
        return steps

    def _tell_one_value(
        self, count: functional.Count, freedom: functional.Count, training: Any
    ) -> None:
        """Warns or raises, as asked, where a channel has one value."""
        text = (
            f"BatchNorm {self.name!r}: one value per channel in training; its output is beta, "
            "whatever the input. Expected a batch of 2 or more, or one_value=\"ignore\"."
        )
        if isinstance(count, int) and training is True:
            alone = count > 0 >= freedom
            if alone and self.one_value == "error":
                raise ValueError(text)
            if alone and self.one_value == "warn":
                warnings.warn(text, stacklevel=2)
        elif self.one_value == "error":
            alone = ops.logical_and(ops.any(count > 0), ops.all(freedom <= 0))
            functional.require(ops.logical_not(both(alone, training)), text)

    def _tell_single_steps(self) -> None:
        """Warns once where a wrapper or a cell hands out one time step at a time."""
        giver = None if self._told_of_steps else callers.one_step_at_a_time()
        if giver is None:
            return
        self._told_of_steps = True
        warnings.warn(
            f"BatchNorm {self.name!r}: called by {giver}, one time step at a time: each step is "
            "normalized by itself, and moves the moving statistics by itself. To normalize over "
            "batch and time, apply the layer to the whole sequence, or give what is around it the "
            "time steps as examples of one batch (keras.ops.reshape).",
            stacklevel=2,
        )


BatchNorm = BatchNormalization


def _known(flag: Any) -> Any:
    """A flag as a Python bool where its value can be known now, else as a boolean tensor."""
    if not ops.is_tensor(flag):
        return bool(flag)
    value = functional.concrete(ops.cast(flag, "float32"))
    return ops.cast(flag, "bool") if value is None else bool(value)


callers.normalize_whole_sequences(BatchNorm)
callers.let_recomputed_layers_take_keywords()
