"""Reading `tf.data.Dataset`s."""

from typing import Any


def is_dataset(value: Any) -> bool:
    """Whether a value is a tf.data.Dataset."""
    return hasattr(value, "element_spec") and hasattr(value, "as_numpy_iterator")


def untuned(dataset: Any) -> Any:
    """A dataset whose iterators end at once, unless its own options ask for tuning.

    TensorFlow 2.21 tunes a dataset's parallel calls and buffers in a thread that sleeps for as long
    as its iterator has lived, up to a minute. Now and then the end of the iterator does not wake
    it, and whoever lets go of the iterator waits. Without tuning, AUTOTUNE means all cores.

    Args:
        dataset: tf.data.Dataset.
    """
    import tensorflow as tf

    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
