"""BatchNorm on whatever backend KERAS_BACKEND names, against the reference and Keras's layer.

Run by `test_backends.py` in a process for each backend; prints how many checks it made.
"""

import itertools

import keras
import numpy as np

from bn_keras import BatchNorm
from bn_keras.batch_norm import reference
from bn_keras.normalizers.activated import ActivatedBatchNorm
from bn_keras.normalizers.conditional import ConditionalBatchNorm
from bn_keras.normalizers.frozen import FrozenBatchNorm
from bn_keras.normalizers.ghost import GhostBatchNorm
from bn_keras.normalizers.renorm import BatchRenorm, Ramp
from bn_keras.surgery import statistics

SHAPES = [(6, 3), (2, 3, 2, 4, 3)]


def data(shape, seed=0):
    return np.random.default_rng(seed).normal(1.5, 2.0, shape).astype("float32")


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def check_against_reference_and_keras():
    """Two training steps and an inference, over ranks, axes, masks and renorm."""
    checks = 0
    for shape, masked, renorm in itertools.product(SHAPES, (False, True), (False, True)):
        for axis in {1, len(shape) - 1}:
            if masked and axis != len(shape) - 1:
                continue  # Keras's layer has no mask there
            settings = {"axis": axis, "momentum": 0.7, "renorm": renorm}
            layers = [BatchNorm(**settings), keras.layers.BatchNormalization(**settings)]
            for seed in range(2):
                x = data(shape, seed)
                mask = np.random.default_rng(seed).random(shape[:-1]) < 0.7 if masked else None
                ours, theirs = (array(layer(x, training=True, mask=mask)) for layer in layers)
                np.testing.assert_allclose(ours, theirs, atol=2e-5)
                if not renorm:
                    expected, _, _ = reference.forward(x, axis=axis, mask=mask)
                    np.testing.assert_allclose(ours, expected, atol=2e-5)
            for one, other in zip(layers[0].weights, layers[1].weights, strict=True):
                np.testing.assert_allclose(array(one), array(other), atol=1e-5)
            ours, theirs = (array(layer(x, training=False)) for layer in layers)
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
            checks += 1
    return checks


def check_fit():
    """compile and fit, with a bad batch in between, learn what Keras's layer learns."""
    losses = []
    for kind in (BatchNorm, keras.layers.BatchNormalization):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(8), kind(momentum=0.9),
             keras.layers.Activation("relu"), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse")
        x = data((64, 4))
        history = model.fit(x, x.sum(1), epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
        assert not np.allclose(array(model.layers[1].moving_mean), 0)
    np.testing.assert_allclose(*losses, rtol=1e-4)
    return 1


def check_guards_and_averages():
    """Bad batches leave the statistics alone; the averages are those of NumPy."""
    batches = [data((6, 3), seed) for seed in range(4)]
    means = np.array([batch.mean(0) for batch in batches])
    weights = 0.9 ** np.arange(4)[::-1]
    for settings, expected in (
        ({"momentum": None}, means.mean(0)),
        ({"momentum": 0.9, "debias": True}, weights @ means / weights.sum()),
    ):
        layer = BatchNorm(**settings)
        for number, batch in enumerate(batches):
            layer(batch, training=True)
            if number == 1:
                layer(np.full((6, 3), np.nan, "float32"), training=True)
                layer(batch[:0], training=True)
        assert layer.skipped_batches == 2
        np.testing.assert_allclose(array(layer.moving_mean), expected, rtol=1e-5)
        before = statistics.snapshot(layer)
        statistics.reset(layer)
        assert not array(layer.moving_mean).any()
        statistics.restore(layer, before)
        np.testing.assert_allclose(array(layer.moving_mean), expected, rtol=1e-5)
    return 2


def check_variants():
    """Each against its definition; compile and fit run them in the backend's graphs."""
    x = data((7, 5, 3))
    ghost = GhostBatchNorm(virtual_batch_size=3)
    expected = [reference.forward(part)[0] for part in (x[:3], x[3:])]
    np.testing.assert_allclose(array(ghost(x, training=True)), np.concatenate(expected), atol=2e-5)
    gamma = data((7, 3), 1)
    conditional = ConditionalBatchNorm()(x, gamma=gamma, training=True)
    expected = reference.forward(x)[0] * gamma[:, None]
    np.testing.assert_allclose(array(conditional), expected, atol=5e-5)
    layers = [
        GhostBatchNorm(virtual_batch_size=6), BatchRenorm(rmax=Ramp(1, 3, 2, 4), dmax=1.0),
        ActivatedBatchNorm(activation="relu"), ConditionalBatchNorm(),
        FrozenBatchNorm(freeze="statistics"), FrozenBatchNorm(freeze="affine"),
    ]
    for layer in layers:
        model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        x = data((64, 4))
        history = model.fit(x, x.sum(1), epochs=5, verbose=0).history["loss"]
        assert history[-1] < history[0], type(layer).__name__
    return 2 + len(layers)


if __name__ == "__main__":
    total = check_against_reference_and_keras() + check_fit() + check_guards_and_averages()
    total += check_variants()
    print(keras.backend.backend(), total)
