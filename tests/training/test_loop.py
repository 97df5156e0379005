"""The in-graph loop against Keras's own training and against NumPy."""

import functools

import keras
import numpy as np
import pytest

from bn_keras import data, loop, losses
from bn_keras.config import RunConfig
from bn_keras.models.blocks import StackedDense
from bn_keras.nets import build
from bn_keras.optimizers import FusedAdam, FusedSGD

# Adam makes steps of the rate's size out of rounding noise: at 1e-3, 1e-4 apart after 50 steps.
RATE = 3e-4

SOFTMAX = loop.Task(losses.softmax)


def examples(count=64, features=6):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, features)).astype("float32")
    return images, (images[:, 0] > 0).astype(np.int32)


def small_trainer(optimizer=None, **settings):
    images, labels = examples()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    return loop.Trainer(model, SOFTMAX, optimizer, images, labels, **settings)


def stack_of_two(optimizer):
    """A trainer of two linear nets side by side, on (batch, runs, 6)."""
    images, labels = examples()
    inputs = keras.Input((2, 6))
    x = StackedDense(2, 2, name="dense")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Reshape((2, 2))(x))
    kernel = np.random.default_rng(3).normal(size=(2, 6, 2))
    trainer = loop.Trainer(model, SOFTMAX, optimizer, images, labels, runs=2)
    return trainer, [kernel, np.zeros(4)]


def gradient(images, labels, kernel, bias):
    """Of the mean softmax cross entropy of a linear net, in NumPy: of its kernel, of its bias."""
    probabilities = np.exp(images @ kernel + bias)
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(2)[labels]) / len(labels)
    return images.T @ error, error.sum(0)


def whole(steps=1):
    """Batches of all 64 examples, (steps, 64, 1)."""
    return np.tile(np.arange(64)[None, :, None], (steps, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, loss, dtype",
    # In float32, conv_bn_relu makes .001 of the last digit's rounding within some steps.
    [("mnist_cnn", "sigmoid", "float32"), ("conv_bn_relu", "softmax", "float64")],
)
def test_losses_equal_those_of_fit(model, loss, dtype):
    """Same weights, batches and optimizer: our layer, loop and Adam against Keras's three."""
    mnist = data.load("mnist", train_size=500, test_size=10)
    ours = build(RunConfig(model=model, dtype_policy=dtype), mnist)
    keras_run = RunConfig(model=model, dtype_policy=dtype, normalizer="keras_batch")
    theirs = build(keras_run, mnist)
    indices = loop.batch_indices(len(mnist.train), 32, 20, np.random.default_rng(1))

    trainer = loop.Trainer(
        ours, loop.Task(getattr(losses, loss)), FusedAdam(RATE), mnist.train.images,
        mnist.train.labels,
    )
    parts = np.split(indices[:, :, None], 2)
    found = np.concatenate([trainer.train(part).loss[:, 0] for part in parts])

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
    theirs.fit(images, labels, batch_size=32, shuffle=False, verbose=0, callbacks=[record])
    # fit reports the mean over the epoch so far.
    sums = np.array(means) * np.arange(1, 21)
    np.testing.assert_allclose(found, np.diff(sums, prepend=0), atol=1e-4)
    assert found[-5:].mean() < found[:5].mean()


@pytest.mark.slow
def test_training_learns_what_can_be_learned():
    batches = np.tile(np.arange(64).reshape(2, 32, 1), (100, 1, 1))
    steps = small_trainer().train(batches)
    assert steps.loss.shape == steps.accuracy.shape == (200, 1)
    assert steps.accuracy[-2:].mean() > 0.95 and steps.loss[-1] < steps.loss[0]


def test_loss_and_accuracy_are_those_of_the_batch_before_its_update():
    trainer, (images, labels) = small_trainer(), examples()
    logits = np.asarray(trainer.model(images), float)
    right = (logits.argmax(1) == labels).mean()
    loss = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(64), labels])
    steps = trainer.train(whole())
    assert steps.loss[0, 0] == pytest.approx(loss, rel=1e-5)
    assert steps.accuracy[0, 0] == pytest.approx(right)


def test_the_gradient_norm_is_that_of_the_last_step():
    trainer = small_trainer()
    trainer.train(whole(3))
    kernel, bias = (variable.numpy().astype(float) for variable in trainer.model.variables)
    expected = np.sqrt(sum((part**2).sum() for part in gradient(*examples(), kernel, bias)))
    assert trainer.train(whole()).gradient_norm == pytest.approx([expected], rel=1e-4)


@pytest.mark.slow
def test_every_run_of_a_stack_has_its_own_rate_and_gradient_norm():
    """Two runs, two rates, two batches: the updates and norms that NumPy computes for each."""
    trainer, (kernel, bias) = stack_of_two(FusedSGD())
    images, labels = examples()
    rates, batches = (0.1, 3.0), np.stack([np.arange(32), np.arange(32, 64)], -1)
    trainer.reset([kernel, bias], rates)
    steps = trainer.train(batches[None])
    found_kernel, found_bias = (variable.numpy() for variable in trainer.model.variables)
    for run, rate in enumerate(rates):
        rows = batches[:, run]
        of_kernel, of_bias = gradient(images[rows], labels[rows], kernel[run], np.zeros(2))
        norm = np.sqrt((of_kernel**2).sum() + (of_bias**2).sum())
        assert steps.gradient_norm[run] == pytest.approx(norm, rel=1e-5)
        np.testing.assert_allclose(
            found_kernel[run], kernel[run] - rate * of_kernel, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(found_bias[2 * run:2 * run + 2], -rate * of_bias, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer", [FusedAdam(), keras.optimizers.SGD(momentum=0.9)], ids=["adam", "momentum"]
)
def test_optimizers_whose_step_is_not_the_gradient_times_the_rate_refuse_several_rates(optimizer):
    trainer, start = stack_of_two(optimizer)
    trainer.reset(start, (0.1, 0.1))
    name = type(optimizer).__name__
    with pytest.raises(ValueError, match=rf"rates \[0.1, 0.2\] for one {name}; expected one rate"):
        trainer.reset(start, (0.1, 0.2))


@pytest.mark.slow
def test_training_in_mixed_float16_scales_the_loss_and_not_what_is_reported():
    """The scaled gradients survive in float16, and neither update nor norm shows the factor."""
    plain, scaled = small_trainer(), small_trainer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**12)
    )
    start = [variable.numpy() for variable in plain.model.variables]
    scaled.reset(start, [0.1])
    first, second = plain.train(whole()), scaled.train(whole())
    np.testing.assert_allclose(second.loss, first.loss, rtol=1e-6)
    np.testing.assert_allclose(second.gradient_norm, first.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(
        scaled.model.layers[0].kernel, plain.model.layers[0].kernel, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_reset_repeats_a_run_exactly_in_one_trace(jit_compile):
    trainer = small_trainer(keras.optimizers.Adam(0.1), jit_compile=jit_compile)
    start = [variable.numpy() for variable in trainer.model.variables]
    batches = np.arange(64).reshape(4, 16, 1)
    first = trainer.train(batches)
    trainer.reset(start, [0.1])
    again = trainer.train(batches[:2])
    np.testing.assert_array_equal(again.loss, first.loss[:2])
    trainer.reset(start, [0.2])
    other = trainer.train(batches)
    assert other.loss[0] == first.loss[0] and other.loss[-1] != first.loss[-1]
    assert trainer._train.experimental_get_tracing_count() == 1


def test_penalties_are_trained_on_and_not_reported():
    """With images of 0 the loss has no gradient for the kernel; the penalty .5 * k² alone has."""
    model = keras.Sequential([
        keras.Input((6,)), keras.layers.Dense(2, use_bias=False, kernel_regularizer="l2")
    ])
    model.layers[0].kernel_regularizer.l2 = 0.5
    kernel = model.layers[0].kernel.numpy()
    images = np.zeros((8, 6), np.float32)
    trainer = loop.Trainer(
        model, SOFTMAX, keras.optimizers.SGD(0.1), images, np.zeros(8, np.int32)
    )
    steps = trainer.train(np.arange(8)[None, :, None])
    assert steps.loss[0, 0] == pytest.approx(np.log(2))
    np.testing.assert_allclose(model.layers[0].kernel, kernel * 0.9, rtol=1e-5)


def test_a_loss_that_is_not_finite_is_found_at_its_step():
    images, labels = examples()
    poisoned = np.vstack([images, np.full((1, 6), np.nan, "float32")])
    trainer = loop.Trainer(
        small_trainer().model, SOFTMAX, keras.optimizers.SGD(0.1), poisoned,
        np.append(labels, 0),
    )
    batches = np.zeros((5, 4, 1), int)
    batches[3, 1] = 64
    steps = trainer.train(batches)
    assert steps.first_non_finite() == [3] and np.isnan(steps.loss[4])


def test_the_first_step_that_is_not_finite_is_found_run_by_run():
    found = np.array([[1.0, np.inf, 1.0], [2.0, 1.0, 1.0], [np.nan, np.nan, 1.0]])
    steps = loop.Steps(found, np.zeros((3, 3)), np.zeros(3))
    np.testing.assert_array_equal(steps.first_non_finite(), [2, 0, -1])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
def test_evaluation_counts_every_example_once(batch_size):
    images, labels = examples()
    forward = functools.partial(small_trainer().model, training=False)
    evaluate = loop.Evaluator(loop.as_stack(forward, None), SOFTMAX, images, labels)
    logits = np.asarray(forward(images), float)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(64), labels])
    loss, share = evaluate(images, labels, batch_size)
    assert loss == pytest.approx([expected], rel=1e-5)
    assert share == pytest.approx([(logits.argmax(1) == labels).mean()])


def test_evaluation_tells_runs_apart():
    trainer, start = stack_of_two(FusedSGD())
    trainer.reset(start, (0.1, 0.1))
    images, labels = examples()
    evaluate = loop.Evaluator(
        functools.partial(trainer.model, training=False), SOFTMAX, images, labels, runs=2
    )
    loss, share = evaluate(images, labels, 50)
    for run in range(2):
        logits = images @ start[0][run]
        expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(64), labels])
        assert loss[run] == pytest.approx(expected, rel=1e-5)
        assert share[run] == pytest.approx((logits.argmax(1) == labels).mean())


def test_an_output_that_is_not_a_number_is_no_hit():
    logits = np.array([[[np.nan, np.nan]], [[2.0, 1.0]], [[np.inf, 1.0]]])
    labels = np.zeros((3, 1), np.int32)
    assert SOFTMAX.accuracy(keras.ops.convert_to_tensor(labels), logits).numpy() == pytest.approx(
        [1 / 3]
    )


def test_a_regression_has_no_accuracy():
    labels = keras.ops.convert_to_tensor(np.zeros((3, 2), np.float32))
    assert np.isnan(SOFTMAX.accuracy(labels, np.zeros((3, 2, 1)))).tolist() == [True, True]


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


def test_a_fixed_order_takes_the_examples_as_they_stand_again_and_again():
    batches = loop.batch_indices(5, 2, 4, None)
    assert batches.ravel().tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


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
    of_one_size = loop.batch_indices(10, 4, 7, np.random.default_rng(5))
    assert [end for end, _ in loop.chunks(of_one_size, 2, 3)] == [2, 3, 4, 6, 7]
    # Batches of several runs, (steps, batch, runs).
    several = list(loop.chunks(np.stack([batches, batches], -1), 5))
    assert [part.shape for _, part in several] == [
        (2, 4, 2), (1, 2, 2), (2, 4, 2), (1, 2, 2), (1, 4, 2)
    ]


def test_values_and_variables_must_be_as_many():
    trainer = small_trainer()
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        trainer.reset([np.zeros((6, 2))], [0.1])
