"""Two replicas in this process, for the tests of tf.distribute."""

import functools

import numpy as np
import tensorflow as tf


@functools.cache
def two_replicas():
    """The session's one strategy: TensorFlow mixes up the all-reduces of several in a process."""
    assert len(tf.config.list_logical_devices("CPU")) >= 2, "conftest.py makes two"
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def spread(arrays):
    """One array for each replica, of whatever shapes."""
    values = iter([tf.constant(array) for array in arrays])
    return two_replicas().experimental_distribute_values_from_function(lambda _: next(values))


def local(values):
    """What each replica returned."""
    return [np.asarray(part) for part in two_replicas().experimental_local_results(values)]
