"""Training and evaluation in the graph, over arrays that lie in memory.

One call of `Trainer.train` runs many steps: batches are gathered by index inside the graph, which
costs a fraction of feeding them. Nothing here knows of configurations or of normalization.
"""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Steps:
    """What k training steps gave.

    Attributes:
        loss: shape (k,), each step's mean loss over its batch, before its update; without the
            model's penalties.
        accuracy: shape (k,), likewise.
        gradient_norm: Euclidean norm of the last step's gradient over all weights.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    gradient_norm: float

    def first_non_finite(self):
        """Index of the first step whose loss is inf or NaN, or None."""
        bad = np.flatnonzero(~np.isfinite(self.loss))
        return int(bad[0]) if len(bad) else None


class Trainer:
    """Trains a Keras model over one resident set of examples.

    Args:
        model: maps a batch of inputs to logits; built.
        loss: `(labels, logits) -> (batch,)`.
        optimizer: a Keras optimizer; built here, on the model's trainable weights.
        inputs: array (n, ...).
        labels: integer array (n,).
        jit_compile: compile the steps with XLA: faster for small dense nets, slower for
            convolutions on a CPU.
    """

    def __init__(self, model, loss, optimizer, inputs, labels, jit_compile=False):
        self.model = model
        self.optimizer = optimizer
        self._loss = loss
        self._inputs = tf.constant(inputs)
        self._labels = tf.constant(labels, tf.int32)
        optimizer.build(model.trainable_variables)
        self._optimizer_start = [variable.numpy() for variable in optimizer.variables]
        # One signature: neither another number of steps nor another seed traces again.
        signature = [tf.TensorSpec([None, None], tf.int32)]
        self._train = tf.function(self._steps, input_signature=signature, jit_compile=jit_compile)

    def reset(self, variables, learning_rate):
        """Starts over in the same graph.

        Args:
            variables: an array for each of `model.variables`.
            learning_rate: of the run to come.
        """
        assign_all(self.model.variables, variables)
        assign_all(self.optimizer.variables, self._optimizer_start)
        self.optimizer.learning_rate = learning_rate

    def train(self, indices):
        """Runs k steps in one graph call.

        Args:
            indices: integer array (k, batch) of examples, one row a step.

        Returns:
            The `Steps`.
        """
        # By its concrete function: called directly, the functions of several trainers would be
        # taken for one that is traced again and again, and warned about.
        train = self._train.get_concrete_function()
        loss, accuracy, norm = train(tf.constant(indices, tf.int32))
        return Steps(loss.numpy(), accuracy.numpy(), float(norm))

    def _steps(self, indices):
        steps = tf.shape(indices)[0]
        losses = tf.TensorArray(tf.float32, steps)
        accuracies = tf.TensorArray(tf.float32, steps)
        norm = tf.constant(0.0)
        for step in tf.range(steps):
            inputs = tf.gather(self._inputs, indices[step])
            labels = tf.gather(self._labels, indices[step])
            loss, logits, gradients, factor = self._step(inputs, labels)
            # The norm reads every gradient once more, so only the reported step pays for it.
            if step == steps - 1:
                norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32) / factor
            losses = losses.write(step, tf.cast(loss, tf.float32))
            accuracies = accuracies.write(step, accuracy(labels, logits))
        return losses.stack(), accuracies.stack(), norm

    def _step(self, inputs, labels):
        """One update; returns loss, logits, the gradients and the factor that they carry."""
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(inputs, training=True)
            loss = tf.reduce_mean(self._loss(labels, logits))
            # Penalties are trained on and not reported: the loss is that of an evaluation.
            total = tf.add_n([loss, *self.model.losses])
            # Linear: what it makes of 1 is the factor that mixed_float16 puts on the gradients.
            factor = self.optimizer.scale_loss(tf.ones_like(loss))
            scaled = total * factor
        gradients = tape.gradient(scaled, [weight.value for weight in weights])
        self.optimizer.apply(gradients, weights)
        return loss, logits, gradients, tf.cast(factor, tf.float32)


class Evaluator:
    """Mean loss and accuracy of a forward pass over a whole array, in one graph call.

    Args:
        forward: `(inputs) -> logits`, such as a model with `training=False` bound.
        loss: `(labels, logits) -> (batch,)`.
        inputs_shape, inputs_dtype: of one example.
    """

    def __init__(self, forward, loss, inputs_shape, inputs_dtype):
        self._forward = forward
        self._loss = loss
        self._evaluate = tf.function(
            self._batches,
            input_signature=[
                tf.TensorSpec([None, *inputs_shape], inputs_dtype),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([], tf.int32),
            ],
        )

    def __call__(self, inputs, labels, batch_size=200):
        """Returns `(loss, accuracy)` as floats; with batch_size=1 one example at a time."""
        evaluate = self._evaluate.get_concrete_function()  # as in Trainer.train
        loss, share = evaluate(
            tf.constant(inputs), tf.constant(labels, tf.int32), tf.constant(batch_size)
        )
        return float(loss), float(share)

    def _batches(self, inputs, labels, batch_size):
        count = tf.shape(inputs)[0]
        loss_sum = tf.constant(0.0)
        correct = tf.constant(0.0)
        start = tf.constant(0)
        while start < count:
            stop = tf.minimum(start + batch_size, count)
            logits = self._forward(inputs[start:stop])
            part = labels[start:stop]
            loss_sum += tf.cast(tf.reduce_sum(self._loss(part, logits)), tf.float32)
            correct += accuracy(part, logits) * tf.cast(stop - start, tf.float32)
            start = stop
        total = tf.cast(count, tf.float32)
        return loss_sum / total, correct / total


def accuracy(labels, logits):
    """Share of the examples whose largest logit is the label's. A NaN logit is a miss."""
    guesses = tf.argmax(logits, axis=-1, output_type=tf.int32)
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.reduce_mean(tf.cast(tf.equal(guesses, labels) & finite, tf.float32))


NO_EXAMPLE = -1  # fills up the row of a batch that is smaller than the others


def batch_indices(examples, batch_size, steps, rng, keep_last=False):
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


def chunks(batches, *intervals):
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


def assign_all(variables, values):
    """Gives every variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
