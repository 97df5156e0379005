"""The population statistics of a whole model: read, copied, reset, compared."""

import numpy as np


def batch_normalizers(model):
    """The layers of a model, nested ones and itself too, that keep population statistics."""
    return [layer for layer in model._flatten_layers() if is_batch_normalizer(layer)]


def is_batch_normalizer(layer):
    """Whether a layer keeps population statistics, whoever wrote it."""
    return hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance")


def skipped_batches(model):
    """How many training batches the BatchNorm layers of a model left out, added up (an int)."""
    return sum(getattr(layer, "skipped_batches", 0) for layer in batch_normalizers(model))


def reset_skipped_batches(model):
    """Lets every BatchNorm layer of a model count the batches it leaves out from 0."""
    for layer in batch_normalizers(model):
        if hasattr(layer, "skipped_batches"):
            layer.skipped_batches = 0


def snapshot(model):
    """Copies the population statistics of a model or layer.

    Returns:
        dict of weight path to array, such as `bn/moving_mean`; `restore` and `difference` take it.
    """
    return {
        weight.path: weight.numpy().copy()
        for layer in batch_normalizers(model) for weight in layer.non_trainable_variables
    }


def restore(model, statistics):
    """Puts a snapshot's statistics back.

    Raises:
        KeyError: the snapshot is of another model.
    """
    for layer in batch_normalizers(model):
        for weight in layer.non_trainable_variables:
            weight.assign(statistics[weight.path])


def difference(before, after):
    """How far population statistics moved between two snapshots.

    Returns:
        dict of layer path to `(mean, variance)`: the largest shift of a channel's mean, in standard
        deviations of before, and the largest factor by which a variance grew or shrank.
    """
    moved = {}
    for path, old_mean in before.items():
        layer, _, name = path.rpartition("/")
        if name != "moving_mean":
            continue
        old = np.maximum(before[f"{layer}/moving_variance"].astype(np.float64), 1e-12)
        new = np.maximum(after[f"{layer}/moving_variance"].astype(np.float64), 1e-12)
        shift = np.abs(after[path].astype(np.float64) - old_mean) / np.sqrt(old)
        moved[layer] = float(shift.max()), float(np.exp(np.abs(np.log(new / old)).max()))
    return moved


def reset(model):
    """Gives all population statistics of a model or layer their initial values again.

    The counts of skipped batches start over, too.
    """
    for layer in batch_normalizers(model):
        fresh = type(layer).from_config(layer.get_config())
        shape = [1] * layer.input_spec.ndim
        for axis, size in layer.input_spec.axes.items():
            shape[axis] = size
        fresh.build(tuple(shape))
        for weight, initial in zip(
            layer.non_trainable_variables, fresh.non_trainable_variables, strict=True
        ):
            weight.assign(initial)
    reset_skipped_batches(model)
