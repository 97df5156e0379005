"""The in-graph loop against Keras's own training."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import bn_keras
from bn_keras import data, loop, losses
from bn_keras.config import RunConfig
from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel
from bn_keras.optimizers import FusedAdam
from bn_keras.runner import build_model

# Adam makes steps of the rate's size out of rounding noise: at 1e-3, 1e-4 apart after 50 steps.
RATE = 3e-4


@pytest.fixture(scope="module")
def mnist():
    return data.load("mnist", train_size=2000, test_size=200)


def small_trainer(optimizer=None, **settings):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(64, 6)).astype("float32")
    labels = (images[:, 0] > 0).astype(np.int32)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    trainer = loop.Trainer(model, losses.softmax, optimizer, images, labels, **settings)
    return trainer, images, labels


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, loss, dtype",
    # In float32, conv_bn_relu makes .001 of the last digit's rounding within 50 steps.
    [("mnist_cnn", "sigmoid", "float32"), ("conv_bn_relu", "softmax", "float64")],
)
def test_losses_equal_those_of_fit_over_50_steps(model, loss, dtype, mnist):
    """Same weights, batches and optimizer: our layer, loop and Adam against Keras's three."""
    ours = build_model(RunConfig(model=model, dtype_policy=dtype), mnist)
    keras_run = RunConfig(model=model, dtype_policy=dtype, normalizer="keras_batch")
    theirs = build_model(keras_run, mnist)
    indices = loop.batch_indices(len(mnist.train), 64, 50, np.random.default_rng(1))

    trainer = loop.Trainer(
        ours, getattr(losses, loss), FusedAdam(RATE), mnist.train.images, mnist.train.labels
    )
    found = np.concatenate([trainer.train(part).loss for part in np.split(indices, 5)])

    images, labels = (array[indices.ravel()] for array in (mnist.train.images, mnist.train.labels))
    if loss == "sigmoid":
        labels, expected_loss = np.eye(10)[labels], keras.losses.BinaryCrossentropy(True)
    else:
        expected_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    means = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: means.append(logs["loss"])
    )
    theirs.compile(keras.optimizers.Adam(RATE), expected_loss)
    theirs.fit(images, labels, batch_size=64, shuffle=False, verbose=0, callbacks=[record])
    # fit reports the mean over the epoch so far.
    sums = np.array(means) * np.arange(1, 51)
    np.testing.assert_allclose(found, np.diff(sums, prepend=0), atol=1e-4)
    assert found[-5:].mean() < found[:5].mean()


def test_training_learns_what_can_be_learned():
    trainer, images, labels = small_trainer()
    batches = np.tile(np.arange(64).reshape(2, 32), (100, 1))
    steps = trainer.train(batches)
    assert steps.loss.shape == steps.accuracy.shape == (200,)
    assert steps.accuracy[-2:].mean() > 0.95 and steps.loss[-1] < steps.loss[0]


def test_the_gradient_norm_is_that_of_the_last_step():
    trainer, images, labels = small_trainer()
    kernel = trainer.model.layers[0].kernel.numpy().astype(float)
    probabilities = np.exp(images @ kernel)
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(2)[labels]) / 64
    expected = np.sqrt((images.T @ error).__pow__(2).sum() + (error.sum(0) ** 2).sum())
    assert trainer.train(np.arange(64)[None]).gradient_norm == pytest.approx(expected, rel=1e-4)


def test_the_gradient_norm_is_free_of_the_loss_scale():
    plain, *_ = small_trainer()
    scaled, *_ = small_trainer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    start = [variable.numpy() for variable in plain.model.variables]
    scaled.reset(start, 0.1)
    batch = np.arange(64)[None]
    first, second = plain.train(batch), scaled.train(batch)
    assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-5)
    np.testing.assert_allclose(
        scaled.model.layers[0].kernel, plain.model.layers[0].kernel, rtol=1e-5
    )


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_reset_repeats_a_run_exactly_in_one_trace(jit_compile):
    trainer, *_ = small_trainer(keras.optimizers.Adam(0.1), jit_compile=jit_compile)
    start = [variable.numpy() for variable in trainer.model.variables]
    batches = np.arange(64).reshape(4, 16)
    first = trainer.train(batches)
    trainer.reset(start, 0.1)
    again = trainer.train(batches[:2])
    np.testing.assert_array_equal(again.loss, first.loss[:2])
    trainer.reset(start, 0.2)
    other = trainer.train(batches)
    assert other.loss[0] == first.loss[0] and other.loss[-1] != first.loss[-1]
    assert trainer._train.experimental_get_tracing_count() == 1


def test_a_loss_that_is_not_finite_is_found_at_its_step():
    trainer, images, labels = small_trainer()
    poisoned = np.vstack([images, np.full((1, 6), np.nan, "float32")])
    trainer = loop.Trainer(
        trainer.model, losses.softmax, keras.optimizers.SGD(0.1), poisoned, np.append(labels, 0)
    )
    batches = np.zeros((5, 4), int)
    batches[3, 1] = 64
    steps = trainer.train(batches)
    assert steps.first_non_finite() == 3 and np.isnan(steps.loss[4])
    finite = loop.Steps(np.array([1.0, 2.0]), np.array([0.0, 0.0]), 1.0)
    assert finite.first_non_finite() is None


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
def test_evaluation_counts_every_example_once(batch_size):
    trainer, images, labels = small_trainer()
    forward = functools.partial(trainer.model, training=False)
    evaluate = loop.Evaluator(forward, losses.softmax, (6,), tf.float32)
    logits = np.asarray(forward(images), float)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(64), labels])
    loss, share = evaluate(images, labels, batch_size)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert share == pytest.approx((logits.argmax(1) == labels).mean())


def test_a_logit_that_is_not_a_number_is_no_hit():
    logits = tf.constant([[np.nan, np.nan], [2.0, 1.0]])
    assert loop.accuracy(tf.constant([0, 0]), logits).numpy() == 0.5


def test_batches_are_permutations_fixed_by_the_generator():
    first = loop.batch_indices(10, 3, 7, np.random.default_rng(5))
    again = loop.batch_indices(10, 3, 7, np.random.default_rng(5))
    other = loop.batch_indices(10, 3, 7, np.random.default_rng(6))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (7, 3) and first.dtype == np.int32
    assert not np.array_equal(first, other)
    for epoch in (first[:3], first[3:6]):
        assert len(np.unique(epoch)) == 9
    assert len(np.unique(first)) == 10, "the example that one epoch leaves out is not another's"


@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffled", "fixed"])
def test_an_epoch_may_end_with_a_smaller_batch_of_what_is_left(shuffled):
    rng = np.random.default_rng(5) if shuffled else None
    batches = loop.batch_indices(10, 4, 7, rng, keep_last=True)
    assert batches.shape == (7, 4)
    for epoch in (batches[:3], batches[3:6]):
        assert sorted(epoch.ravel()) == [-1, -1, *range(10)]
        assert list(epoch[2, 2:]) == [-1, -1]
    even = loop.batch_indices(12, 4, 6, None, keep_last=True)
    assert (even.ravel() == [*range(12)] * 2).all()


def test_calls_end_at_multiples_of_the_intervals_and_where_the_batch_size_changes():
    batches = loop.batch_indices(10, 4, 7, np.random.default_rng(5), keep_last=True)
    cuts = list(loop.chunks(batches, 5))
    assert [(end, part.shape) for end, part in cuts] == [
        (2, (2, 4)), (3, (1, 2)), (5, (2, 4)), (6, (1, 2)), (7, (1, 4))
    ]
    assert sorted(np.concatenate([part.ravel() for _, part in cuts])[:10]) == list(range(10))
    whole = loop.batch_indices(10, 4, 7, np.random.default_rng(5))
    assert [end for end, _ in loop.chunks(whole, 2, 3)] == [2, 3, 4, 6, 7]
    # Batches of several runs, (steps, batch, runs).
    several = list(loop.chunks(np.stack([batches, batches], -1), 5))
    assert [part.shape for _, part in several] == [
        (2, 4, 2), (1, 2, 2), (2, 4, 2), (1, 2, 2), (1, 4, 2)
    ]


class DoubledInTraining(keras.layers.Layer):
    """Any layer that does something else in training, and infers unless it is told."""

    def call(self, inputs, training=None):
        return 2 * inputs if training else inputs


@pytest.mark.parametrize("normalizer", [bn_keras.BatchNorm, keras.layers.BatchNormalization])
def test_batch_statistics_mend_an_evaluation_with_stale_averages(normalizer):
    """Population statistics that never moved spoil inference, not the weights."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dropout(0.5)(DoubledInTraining()(normalizer(name="bn")(inputs)))
    functional = keras.Model(inputs, keras.layers.Dense(3)(outputs))
    x = rng.normal(50.0, 9.0, (64, 4)).astype("float32")
    before = [variable.numpy() for variable in functional.variables]
    copy = BatchStatisticsModel(functional)
    functional.layers[-1].kernel.assign(rng.normal(size=(4, 3)))
    copy.refresh()
    found = np.asarray(copy(x))
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    np.testing.assert_allclose(found, normalized @ functional.layers[-1].kernel.numpy(), atol=1e-4)
    for variable, value in zip(functional.variables[:-2], before[:-2]):
        np.testing.assert_array_equal(variable.numpy(), value)
