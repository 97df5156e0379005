"""The loss along a batch's gradient: how far a step may go, and how long its gradient holds.

A reader compares a net with and without BN, or the same net at several times of its training:

    found = landscape(model, x, y, "sparse_categorical_crossentropy")
    found.loss_range, found.effective_smoothness

The loss is that of training: BN normalizes with the statistics of the batch. Its gradient goes
through these statistics, so the examples of a batch belong together, and each batch has a landscape
of its own. Dropout is off: with it every step would land on another function.

References:
    Santurkar et al. 2018, https://arxiv.org/abs/1805.11604, section 3.1 and figure 4.
    Bjorck et al. 2018, https://arxiv.org/abs/1806.02375, section 3.1 and figure 3.
"""

import dataclasses
from typing import Any, Callable, List, Optional, Sequence, Tuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.loop import NO_EXAMPLE, Steps, take
from bn_keras.registry import PROBES

# Santurkar et al. go up to .4 times the gradient, where their net without BN breaks down.
STEP_SIZES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The loss L of a batch at weights w and at w - step_size * g, with g the gradient at w.

    Attributes:
        step_sizes: shape (k,).
        loss: L(w), the mean over the batch, without the model's penalties.
        gradient_norm: Euclidean norm of g over all trainable weights.
        losses: shape (k,), L(w - step_size * g).
        gradient_changes: shape (k,), the norm of the gradient there less g.
    """

    step_sizes: NDArray[np.float64]
    loss: float
    gradient_norm: float
    losses: NDArray[np.float64]
    gradient_changes: NDArray[np.float64]

    @property
    def loss_range(self) -> Tuple[float, float]:
        """Lowest and highest loss on the way (Santurkar et al., figure 4a)."""
        return float(self.losses.min()), float(self.losses.max())

    @property
    def relative_losses(self) -> NDArray[np.float64]:
        """Shape (k,), the loss behind each step divided by that before (Bjorck et al., figure 3).

        Above 1 the step makes the loss worse: training diverges at such learning rates.
        """
        return self.losses / self.loss

    @property
    def gradient_predictiveness(self) -> Tuple[float, float]:
        """Smallest and largest change of the gradient (Santurkar et al., figure 4b)."""
        return float(self.gradient_changes.min()), float(self.gradient_changes.max())

    @property
    def smoothness(self) -> NDArray[np.float64]:
        """Shape (k,), the change of the gradient divided by the distance moved.

        For L = 1/2 w'Aw it is |A g| / |g| whatever the step, at most A's largest eigenvalue. NaN
        where the gradient is zero, so that nothing moves.
        """
        moved = self.step_sizes * self.gradient_norm
        changes = self.gradient_changes
        return np.divide(changes, moved, out=np.full_like(moved, np.nan), where=moved > 0)

    @property
    def effective_smoothness(self) -> float:
        """The largest of `smoothness` (effective beta; Santurkar et al., figure 4c)."""
        return float(self.smoothness.max())


def landscape(
    model: keras.Model, x: Any, y: Any, loss: Any = None,
    step_sizes: Sequence[float] = STEP_SIZES,
) -> Landscape:
    """Looks at the loss of one batch along its gradient; the model stays as it is.

    It takes as many forward and backward passes over the batch as there are step sizes, and one.

    Args:
        model: a built keras.Model of any kind; what `copy_model` cannot copy is named. A frozen
            layer stays in inference mode, and its weights where they are.
        x, y: a batch, in the structure that the model takes and gives.
        loss: a name, an object or a function `(y, outputs) -> losses` of Keras, of which the mean
            counts; None for the one that the model was compiled with.
        step_sizes: multiples of the gradient, above 0; learning rates of plain SGD.

    Raises:
        TypeError: no model that can be copied.
        ValueError: the model is not built or has nothing to train; no loss; a step size that is not
            above 0.
    """
    sizes = np.asarray(step_sizes, np.float64)
    if sizes.ndim != 1 or not sizes.size or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(
            f"landscape: received step_sizes={step_sizes!r}; expected finite numbers above 0."
        )
    of_examples = _loss_of(model, loss)
    terrain = _Terrain(model, lambda forward: tf.reshape(
        tf.reduce_mean(of_examples(y, forward(x))), [1]
    ))
    found, = terrain.look(sizes)
    return found


class _Terrain:
    """Losses of the runs of a model's copy, at its weights and at steps from there.

    Args:
        model: of one run, or of several side by side.
        losses: `(forward, *arguments) -> losses`, shape (runs,).
        runs: how many.
    """

    def __init__(
        self, model: keras.Model, losses: Callable[..., Any], runs: int = 1
    ) -> None:
        self._copy = _TrainableCopy(model)
        self._weights = self._copy.trainable_variables
        if not self._weights:
            raise ValueError(
                f"landscape: {model.name!r} has no trainable weights; expected some, to move along "
                "their gradient."
            )
        self._losses, self._runs = losses, runs

    def look(self, step_sizes: NDArray[np.float64], *arguments: Any) -> List[Landscape]:
        """The Landscape of each run; the arguments are those that `losses` takes."""
        self._copy.refresh()
        start = [tf.identity(weight.value) for weight in self._weights]
        loss, gradients = self._loss_and_gradients(*arguments)
        losses, changes = [], []
        for size in step_sizes:
            for weight, value, gradient in zip(self._weights, start, gradients):
                weight.assign(value - tf.cast(size, value.dtype) * gradient)
            there, others = self._loss_and_gradients(*arguments)
            losses.append(there)
            changes.append(self._norms([b - a for a, b in zip(gradients, others)]))
        return [
            Landscape(step_sizes, float(at), float(norm), np.array(along), np.array(change))
            for at, norm, along, change in zip(
                loss, self._norms(gradients), np.transpose(losses), np.transpose(changes)
            )
        ]

    def _loss_and_gradients(self, *arguments: Any) -> Tuple[NDArray[np.float64], List[Any]]:
        with tf.GradientTape() as tape:
            losses = self._losses(self._copy, *arguments)
            # No run's weights are in another's loss: the gradient of the sum is that of each.
            total = tf.reduce_sum(losses)
        gradients = tape.gradient(
            total, [weight.value for weight in self._weights],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return np.asarray(losses, np.float64), [tf.convert_to_tensor(one) for one in gradients]

    def _norms(self, gradients: List[Any]) -> NDArray[np.float64]:
        """Shape (runs,); every weight has its runs one behind the other."""
        squares = [
            tf.reduce_sum(tf.square(tf.cast(tf.reshape(one, [self._runs, -1]), tf.float64)), 1)
            for one in gradients
        ]
        return np.asarray(tf.sqrt(tf.add_n(squares)))


class _TrainableCopy(BatchStatisticsModel):
    """A BatchStatisticsModel whose weights can be moved."""

    @property
    def trainable_variables(self) -> List[keras.Variable]:
        """Of the copy, in the order of the model's."""
        found: List[keras.Variable] = self._copy.trainable_variables
        return found


def _loss_of(model: keras.Model, loss: Any) -> Callable[[Any, Any], Any]:
    if loss is None:
        loss = getattr(model, "loss", None)
    if loss is None or isinstance(loss, (list, tuple, dict)):
        raise ValueError(
            f"landscape: received loss={loss!r} for {model.name!r}; expected a loss of Keras, or a "
            "function (y, outputs) -> losses, for several outputs too."
        )
    found: Callable[[Any, Any], Any] = keras.losses.get(loss)
    return found


@PROBES.register("landscape", metrics={
    "landscape/lowest_loss": ("lowest loss along the gradient", "", None),
    "landscape/highest_loss": ("highest loss along the gradient", "", "high"),
    "landscape/gradient_change": ("largest change of the gradient", "", "high"),
    "landscape/smoothness": ("effective beta-smoothness", "", "high"),
    "median_smoothness": ("effective beta-smoothness, median", "", "high"),
})
class LandscapeProbe(Probe):
    """The landscape of the last training batch at every evaluation, for steps of STEP_SIZES.

    `landscape/smoothness` is Landscape.effective_smoothness; the metric `median_smoothness` is its
    median over all evaluations.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets, argument)
        self._terrain = _Terrain(nets.net, self._losses, nets.runs)

    def start(self) -> Values:
        self._seen: List[NDArray[Any]] = []
        return {}

    def during(self, step: int, steps: Steps) -> Values:
        indices = self.nets.batches[step - 1]
        indices = indices[(indices != NO_EXAMPLE).all(1)]
        train = self.nets.splits.train
        found = self._terrain.look(
            np.array(STEP_SIZES), take(train.images, indices), tf.gather(train.labels, indices)
        )
        ranges = np.array([run.loss_range for run in found])
        smoothness = np.array([run.effective_smoothness for run in found])
        self._seen.append(smoothness)
        return {
            "landscape/lowest_loss": ranges[:, 0], "landscape/highest_loss": ranges[:, 1],
            "landscape/gradient_change": np.array([run.gradient_changes.max() for run in found]),
            "landscape/smoothness": smoothness,
        }

    def at_end(self) -> Values:
        if not self._seen:
            return {}
        return {"median_smoothness": np.median(self._seen, 0)}

    def _losses(self, forward: Any, images: Any, labels: Any) -> Any:
        losses = self.nets.task.losses(labels, self.nets.as_stack(forward)(images))
        return tf.reduce_mean(losses, 0)
