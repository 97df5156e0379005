"""Training and evaluation in the graph, of nets side by side.

One call of `Trainer.train` makes many steps: batches are gathered by index inside the graph, which
costs a fraction of feeding them. Examples that are on disk, as an np.memmap, are handed to the same
graph in pieces of some steps, with the same digits.

Everything has an axis of runs: (batch, runs, ...). A small net's step is all overhead, and twenty
of them in one step cost little more than one; each has its own weights, batches and learning rate,
and ends where it would end alone. A net that cannot stand beside others is a stack of one. Nothing
here knows of configurations or of normalization.
"""

import dataclasses
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bn_keras import on_disk

Forward = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Losses, accuracies and gradient norms of k training steps of all runs.

    Attributes:
        loss: shape (k, runs), each step's mean loss over its batch, before its update; without the
            model's penalties.
        accuracy: shape (k, runs), likewise; NaN for a regression.
        gradient_norm: shape (runs,), Euclidean norm of the last step's gradient over all weights.
    """

    loss: NDArray[Any]
    accuracy: NDArray[Any]
    gradient_norm: NDArray[Any]

    def first_non_finite(self) -> NDArray[Any]:
        """Shape (runs,): index of the first step whose loss is inf or NaN, or -1."""
        bad = ~np.isfinite(self.loss)
        return np.where(bad.any(0), bad.argmax(0), -1)


@dataclasses.dataclass(frozen=True)
class Task:
    """What outputs are to do: the loss, and what counts as right.

    Attributes:
        loss: `(labels, outputs) -> losses`, of shapes (n, ...) and (n, outputs...): one loss an
            example, or several, of which the mean counts.
        threshold: of a net of two classes that has one output, the output above which it says the
            second one: 0 for logits, .5 for probabilities.
    """

    loss: Callable[[Any, Any], Any]
    threshold: float = 0.0

    def losses(self, labels: Any, outputs: Any) -> Any:
        """(batch, runs) losses of (batch, runs, ...) labels and (batch, runs, ...) outputs."""
        shape = tf.shape(outputs)[:2]
        of_each = self.loss(_rows(labels), _rows(outputs))
        if len(of_each.shape) > 1:
            of_each = tf.reduce_mean(of_each, range(1, len(of_each.shape)))
        return tf.reshape(of_each, shape)

    def accuracy(self, labels: Any, outputs: Any) -> Any:
        """(runs,) shares of examples of the right class; NaN where the labels are numbers.

        Args:
            labels: (batch, runs); floats are numbers.
            outputs: (batch, runs, classes), of which the largest is the guess, or (batch, runs, 1)
                for two classes. Where one is not finite, the example is a miss.
        """
        if not labels.dtype.is_integer:
            return tf.fill([outputs.shape[1]], float("nan"))
        guesses = tf.argmax(outputs, axis=-1, output_type=tf.int32)
        if outputs.shape[-1] == 1:
            guesses = tf.cast(outputs[..., 0] > self.threshold, tf.int32)
        finite = tf.reduce_all(tf.math.is_finite(outputs), axis=-1)
        return tf.reduce_mean(tf.cast(tf.equal(guesses, labels) & finite, tf.float32), 0)


def as_stack(net: Forward, runs: Optional[int]) -> Forward:
    """A forward pass over (batch, runs, ...).

    Args:
        net: of `runs` nets side by side; or of one net alone, on (batch, ...), with runs=None.
        runs: how many nets it holds, or None.
    """
    if runs is not None:
        return net

    def alone(inputs: Any, **kwargs: Any) -> Any:
        inputs = keras.tree.map_structure(lambda part: tf.squeeze(part, 1), inputs)
        return tf.expand_dims(net(inputs, **kwargs), 1)

    return alone


class Trainer:
    """Trains nets side by side over one set of examples.

    Args:
        model: maps (batch, runs, ...) inputs to (batch, runs, outputs); with runs=None a net alone,
            which maps (batch, ...) to (batch, outputs). Built.
        task: the Task.
        optimizer: a Keras optimizer; built here, on the model's trainable weights.
        inputs: array (n, ...), or a nest of such; streamed if one of them is an np.memmap.
        labels: array (n,) of classes, or floats (n, ...) of numbers.
        runs: how many nets stand in the model; None for one that cannot stand beside others.
        jit_compile: compile the steps with XLA: faster for small dense nets, slower for
            convolutions on a CPU.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        optimizer: Any,
        inputs: Any,
        labels: NDArray[Any],
        runs: Optional[int] = None,
        jit_compile: bool = False,
    ):
        self.model, self.optimizer, self.runs = model, optimizer, runs or 1
        self._forward = as_stack(model, runs)
        self._task = task
        self._streamed = _on_disk(inputs)
        self._inputs, self._labels = inputs, labels
        if not self._streamed:
            self._inputs, self._labels = _constants(inputs), as_labels(labels)
        # A step of plain SGD is the gradient times the rate, so each run can have its own.
        plain_sgd = isinstance(optimizer, keras.optimizers.SGD) and not optimizer.momentum
        self._scales_gradients = plain_sgd and self.runs > 1
        self._rates = tf.Variable(tf.ones(self.runs), trainable=False)
        optimizer.build(model.trainable_variables)
        self._optimizer_start = [variable.numpy() for variable in optimizer.variables]
        # One signature: neither another number of steps nor another seed traces again.
        signature = [
            *_kinds(inputs, labels), tf.TensorSpec([None, None, self.runs], tf.int32),
        ]
        self._train = tf.function(self._steps, input_signature=signature, jit_compile=jit_compile)

    def reset(self, variables: Sequence[NDArray[Any]], learning_rates: Sequence[float]) -> None:
        """Starts over in the same graph.

        Args:
            variables: an array for each of `model.variables`.
            learning_rates: of the runs to come, one each; all equal unless the optimizer is plain
                SGD.

        Raises:
            ValueError: they differ and must not.
        """
        if len(set(learning_rates)) > 1 and not self._scales_gradients:
            raise ValueError(
                f"received learning rates {sorted(set(learning_rates))} for one "
                f"{type(self.optimizer).__name__}; expected one rate, or plain SGD"
            )
        assign_all(self.model.variables, variables)
        assign_all(self.optimizer.variables, self._optimizer_start)
        if self._scales_gradients:
            self._rates.assign(learning_rates)
            self.optimizer.learning_rate = 1.0
        else:
            self.optimizer.learning_rate = learning_rates[0]

    def train(self, indices: NDArray[Any]) -> Steps:
        """Makes k steps in one graph call; examples on disk take one for each piece.

        Args:
            indices: integer array (k, batch, runs) of examples.

        Returns:
            The `Steps`.
        """
        # By its concrete function: called directly, the functions of several trainers would be
        # taken for one that is traced again and again, and warned about.
        train = self._train.get_concrete_function()
        found = [
            (loss.numpy(), accuracy.numpy(), norm.numpy())
            for loss, accuracy, norm in (train(*part) for part in self._parts(indices))
        ]
        losses, accuracies, norms = zip(*found)
        return Steps(np.concatenate(losses), np.concatenate(accuracies), norms[-1])

    def _parts(self, indices: NDArray[Any]) -> Iterator[Tuple[Any, Any, tf.Tensor]]:
        """What the graph is called with: all that is in memory, else the examples of some steps."""
        if not self._streamed:
            yield self._inputs, self._labels, tf.constant(indices, tf.int32)
            return
        rows = on_disk.rows_of_a_piece(*keras.tree.flatten(self._inputs))
        steps = max(1, rows // indices[0].size)
        # Pieces of nearly equal length: XLA compiles the graph anew for each length.
        for part in np.array_split(indices, -(-len(indices) // steps)):
            wanted = part.reshape(-1)
            places = np.arange(wanted.size, dtype=np.int32).reshape(part.shape)
            inputs = keras.tree.map_structure(
                lambda array: on_disk.gather(array, wanted), self._inputs
            )
            yield _constants(inputs), as_labels(self._labels[wanted]), tf.constant(places)

    def _steps(
        self, all_inputs: Any, all_labels: tf.Tensor, indices: tf.Tensor
    ) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        steps = tf.shape(indices)[0]
        losses = tf.TensorArray(tf.float32, steps, element_shape=[self.runs])
        accuracies = tf.TensorArray(tf.float32, steps, element_shape=[self.runs])
        norm = tf.zeros([self.runs])
        for step in tf.range(steps):
            inputs = take(all_inputs, indices[step])
            labels = tf.gather(all_labels, indices[step])
            loss, outputs, gradients, factor = self._step(inputs, labels)
            # The norm reads every gradient once more, so only the reported step pays for it.
            if step == steps - 1:
                norm = self._norm(gradients) / factor
            losses = losses.write(step, tf.cast(loss, tf.float32))
            accuracies = accuracies.write(step, self._task.accuracy(labels, outputs))
        return losses.stack(), accuracies.stack(), norm

    def _step(self, inputs: Any, labels: tf.Tensor) -> Tuple[Any, Any, List[Any], Any]:
        """One update; returns losses, outputs, the gradients and the factor that they carry."""
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self._forward(inputs, training=True)
            loss = tf.reduce_mean(self._task.losses(labels, outputs), 0)
            # No run's weights are in another's loss: the gradient of the sum is that of each.
            # Penalties are trained on and not reported: the loss is that of an evaluation.
            penalties = [tf.cast(penalty, loss.dtype) for penalty in self.model.losses]
            total = tf.add_n([tf.reduce_sum(loss), *penalties])
            # Linear: what it makes of 1 is the factor that mixed_float16 puts on the gradients.
            factor = self.optimizer.scale_loss(tf.ones_like(total))
            scaled = total * factor
        gradients = tape.gradient(scaled, [weight.value for weight in weights])
        self.optimizer.apply(self._times_rates(gradients), weights)
        return loss, outputs, gradients, tf.cast(factor, tf.float32)

    def _times_rates(self, gradients: List[Any]) -> List[Any]:
        if not self._scales_gradients:
            return gradients
        return [
            tf.reshape(rows * tf.cast(self._rates, rows.dtype)[:, None], gradient.shape)
            for gradient, rows in zip(gradients, self._by_run(gradients))
        ]

    def _norm(self, gradients: List[Any]) -> tf.Tensor:
        squares = [
            tf.reduce_sum(tf.square(tf.cast(rows, tf.float32)), 1)
            for rows in self._by_run(gradients)
        ]
        return tf.sqrt(tf.add_n(squares))

    def _by_run(self, gradients: List[Any]) -> List[Any]:
        """Each gradient as (runs, values): every weight has its runs one behind the other."""
        return [tf.reshape(gradient, [self.runs, -1]) for gradient in gradients]


class Evaluator:
    """Mean loss and accuracy of a forward pass over a whole set of examples, in one graph call.

    Examples on disk take one call for each piece, with the same digits.

    Args:
        forward: `(batch, runs, ...) -> (batch, runs, outputs)`, such as `as_stack` of a model with
            `training=False` bound.
        task: the Task.
        inputs, labels: as for Trainer, of the kind that will be evaluated.
        runs: how many nets stand side by side.
    """

    def __init__(
        self,
        forward: Forward,
        task: Task,
        inputs: Any,
        labels: NDArray[Any],
        runs: int = 1,
    ):
        self._forward, self._task, self._runs = forward, task, runs
        sums = tf.TensorSpec([runs], tf.float32)
        self._evaluate = tf.function(
            self._batches,
            input_signature=[
                *_kinds(inputs, labels), tf.TensorSpec([], tf.int32), sums, sums,
            ],
        )

    def __call__(
        self, inputs: Any, labels: NDArray[Any], batch_size: int = 200
    ) -> Tuple[NDArray[Any], NDArray[Any]]:
        """Returns losses and accuracies, arrays (runs,); batch_size=1 is one example at a time."""
        evaluate = self._evaluate.get_concrete_function()  # as in Trainer.train
        size = max(1, len(labels))
        if _on_disk(inputs):
            rows = on_disk.rows_of_a_piece(*keras.tree.flatten(inputs))
            size = max(1, rows // batch_size) * batch_size
        sums = tf.zeros([self._runs]), tf.zeros([self._runs])
        for start in range(0, len(labels), size):
            part = keras.tree.map_structure(
                lambda array: on_disk.rows(array, start, start + size), inputs
            )
            part_labels = as_labels(labels[start:start + size])
            sums = evaluate(_constants(part), part_labels, tf.constant(batch_size), *sums)
        loss, share = (sum_of.numpy() / np.float32(len(labels)) for sum_of in sums)
        return loss, share

    def _batches(
        self, inputs: Any, labels: tf.Tensor, batch_size: tf.Tensor, loss_sum: tf.Tensor,
        right: tf.Tensor,
    ) -> Tuple[tf.Tensor, tf.Tensor]:
        """Adds the losses of some examples, and how many are right, to sums of earlier ones."""
        count = tf.shape(labels)[0]
        start = tf.constant(0)
        while start < count:
            stop = tf.minimum(start + batch_size, count)
            part, part_labels = keras.tree.map_structure(
                lambda of: tf.repeat(of[start:stop, None], self._runs, axis=1), (inputs, labels)
            )
            outputs = self._forward(part)
            losses = tf.reduce_sum(self._task.losses(part_labels, outputs), 0)
            loss_sum += tf.cast(losses, tf.float32)
            right += self._task.accuracy(part_labels, outputs) * tf.cast(stop - start, tf.float32)
            start = stop
        return loss_sum, right


def take(nest: Any, indices: Any) -> Any:
    """The examples of these indices, of an array, a tensor or every one of a nest, as tensors."""

    def rows(part: Any) -> tf.Tensor:
        if isinstance(part, np.ndarray):  # made a tensor, all of it would be copied
            flat = on_disk.gather(part, np.reshape(indices, -1))
            return tf.constant(flat.reshape(*np.shape(indices), *part.shape[1:]))
        return tf.gather(part, indices)

    return keras.tree.map_structure(rows, nest)


def _on_disk(inputs: Any) -> bool:
    return any(map(on_disk.is_on_disk, keras.tree.flatten(inputs)))


def _constants(inputs: Any) -> Any:
    return keras.tree.map_structure(tf.constant, inputs)


def _kinds(inputs: Any, labels: NDArray[Any]) -> List[Any]:
    """The signature of inputs and labels, of any number of examples."""
    return [
        keras.tree.map_structure(
            lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype), inputs
        ),
        tf.TensorSpec([None, *labels.shape[1:]], as_labels(labels[:1]).dtype),
    ]


def _rows(values: Any) -> Any:
    """(batch, runs, ...) as (batch * runs, ...)."""
    values = tf.convert_to_tensor(values)
    return tf.reshape(values, [-1, *values.shape[2:]])


def as_labels(labels: NDArray[Any]) -> Any:
    """Labels as tensors: classes as int32, numbers as float32."""
    numbers = np.asarray(labels).dtype.kind == "f"
    return tf.constant(labels, tf.float32 if numbers else tf.int32)


NO_EXAMPLE = -1  # fills up the row of a batch that is smaller than the others


def batch_indices(
    examples: int,
    batch_size: int,
    steps: int,
    rng: Optional[np.random.Generator],
    keep_last: bool = False,
) -> NDArray[Any]:
    """Index batches for `Trainer.train`: every epoch a fresh permutation.

    Args:
        examples: number of examples to draw from, at least batch_size.
        batch_size: examples a step.
        steps: number of rows.
        rng: a `numpy.random.Generator`, the same state gives the same batches; None takes the
            examples as they stand, again and again.
        keep_last: whether an epoch ends with a smaller batch of what is left. Else what is left is
            dropped, or, without rng, taken together with the next epoch's first examples.

    Returns:
        int32 array (steps, batch_size); NO_EXAMPLE at the end of a smaller batch's row.
    """
    if rng is None and not keep_last:
        starts = np.arange(steps)[:, None] * batch_size
        return ((starts + np.arange(batch_size)) % examples).astype(np.int32)
    per_epoch = (examples + (batch_size - 1) * keep_last) // batch_size
    epochs = -(-steps // per_epoch)
    used = min(examples, per_epoch * batch_size)
    order = np.full((epochs, per_epoch * batch_size), NO_EXAMPLE, np.int32)
    for epoch in order:
        epoch[:used] = (np.arange(examples) if rng is None else rng.permutation(examples))[:used]
    return order.reshape(-1, batch_size)[:steps]


def chunks(batches: NDArray[Any], *intervals: int) -> Iterator[Tuple[int, NDArray[Any]]]:
    """Cuts training into calls of `Trainer.train`.

    Args:
        batches: as `batch_indices` gives them, (steps, batch, ...).
        *intervals: steps after each multiple of which a call must end.

    Yields:
        `(end, indices)`: the steps done after the call, and its indices, batches of one size.
    """
    total = len(batches)
    sizes = (batches.reshape(*batches.shape[:2], -1)[:, :, 0] != NO_EXAMPLE).sum(1)
    ends = {step for every in intervals for step in range(every, total, every)}
    ends |= {int(step) + 1 for step in np.flatnonzero(np.diff(sizes))} | {total}
    begin = 0
    for end in sorted(ends):
        yield end, batches[begin:end, :sizes[begin]]
        begin = end


def assign_all(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Gives every variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
