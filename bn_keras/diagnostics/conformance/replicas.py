"""Probes under tf.distribute: two replicas against one big batch."""

import functools
from typing import Any, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from bn_keras.batch_norm import reference
from bn_keras.diagnostics.conformance.suite import (
    Maker,
    NotApplicable,
    alike,
    draw,
    probe,
    tf,
    value,
)
from bn_keras.diagnostics.severity import ROBUSTNESS

DEVICES = ["CPU:0", "CPU:1"]


def make_logical_devices() -> None:
    """Splits the CPU in two, which a process can do only before it first uses it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.list_logical_devices()
    tf.get_logger().setLevel("ERROR")  # every probe is traced anew, which TensorFlow warns of


@functools.cache
def two_replicas() -> Any:
    """The process's one strategy: TensorFlow mixes up the all-reduces of several."""
    if len(tf.config.list_logical_devices("CPU")) < 2:
        raise NotApplicable("TensorFlow was started with one logical CPU; two make two replicas")
    return tf.distribute.MirroredStrategy(DEVICES)


def spread(arrays: Iterable[Any]) -> Any:
    """One array for each replica, of whatever shapes."""
    values = iter([tf.constant(array) for array in arrays])
    return two_replicas().experimental_distribute_values_from_function(lambda _: next(values))


def local(values: Any) -> List[np.ndarray]:
    """What each replica returned."""
    return [np.asarray(part) for part in two_replicas().experimental_local_results(values)]


def trained(
    make: Maker, parts: Sequence[Any], masks: Optional[Sequence[Any]] = None, **settings: Any
) -> Tuple[Any, List[np.ndarray]]:
    """A layer after one training step in which each replica saw its part; and the outputs."""
    with two_replicas().scope():
        layer = make(momentum=0.0, **settings)
        layer.build(parts[0].shape)

    @tf.function
    def step(x: Any, mask: Any) -> Any:
        masked = {} if mask is None else {"mask": mask}  # a layer need not take one
        return layer(x, training=True, **masked)

    y = two_replicas().run(step, [spread(parts), None if masks is None else spread(masks)])
    return layer, local(y)


@probe(ROBUSTNESS)
def replicas_statistics_are_averaged(make: Maker) -> str:
    """Saved statistics must be those of all replicas; the first one's are a part of the data."""
    make.needs_keras("no replicas")
    parts = [draw(4, 2, mean=1.0), draw(4, 2, mean=5.0, seed=1)]
    layer, _ = trained(make, parts)
    return alike(value(layer, "moving_mean"), np.mean([part.mean(0) for part in parts], 0))


@probe(ROBUSTNESS)
def synchronized_replicas_are_one_big_batch(make: Maker) -> str:
    """Small batches on many devices: what synchronized=True is for."""
    make.needs_keras("no replicas")
    parts = [draw(3, 2, mean=1.0), draw(8, 2, mean=2.0, seed=1)]
    _, outputs = trained(make, parts, synchronized=True)
    expected, _, _ = reference.forward(np.concatenate(parts))
    return alike(np.concatenate(outputs), expected)


@probe(ROBUSTNESS)
def synchronized_gradients_cross_the_replicas(make: Maker) -> str:
    """A gradient that stays in its replica is not the gradient of what was computed."""
    make.needs_keras("no replicas")
    with two_replicas().scope():
        layer = make(synchronized=True)
        layer.build((None, 2))

    @tf.function
    def gradient(x: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * dy)
        return tape.gradient(loss, x)

    parts, weights = draw(2, 4, 2), draw(2, 4, 2, seed=1)
    found = local(two_replicas().run(gradient, [spread(parts), spread(weights)]))
    expected, _, _ = reference.backward(weights.reshape(8, 2), parts.reshape(8, 2))
    return alike(np.concatenate(found), expected)


@probe(ROBUSTNESS)
def synchronized_variance_keeps_its_digits(make: Maker) -> str:
    """The same cancellation as in one process, in the code path that few look at."""
    make.needs_keras("no replicas")
    parts = [draw(256, 2, mean=1e4, seed=seed) for seed in range(2)]
    layer, _ = trained(make, parts, synchronized=True)
    return alike(value(layer, "moving_variance"), np.concatenate(parts).astype(float).var(0), 0.01)


@probe(ROBUSTNESS)
def a_mask_is_synchronized_too(make: Maker) -> str:
    """Sequences on several devices: a mask must not switch synchronization off."""
    make.needs_mask()
    parts = [draw(4, 3, 2, mean=mean) for mean in (1.0, 5.0)]
    _, outputs = trained(make, parts, [np.ones((4, 3), bool)] * 2, synchronized=True)
    expected, _, _ = reference.forward(np.concatenate(parts))
    return alike(np.concatenate(outputs), expected)
