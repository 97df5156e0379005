"""BatchNorm on drawn inputs and settings, in every mode, against NumPy in float64 and Keras.

One rule for all of them: an error against float64 is no larger than twice that of Keras's layer in
the same mode, plus rounding. `rounding` says how much that is for each dtype, and why.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from make import product_of

from bn_keras import BatchNorm
from bn_keras.batch_norm import reference

LATER = "traced, then xla"
# How many examples the fast run draws, and the slow one. Compiling takes some .5 s for each.
FAST = {"eager": 30, "graph": 6}
SLOW = {"eager": 100, "graph": 14, "open sizes": 14, "xla": 8, LATER: 8}
RANKS = (2, 3, 4, 5)
POLICIES = ("float32", "float64", "float16", "mixed_float16", "mixed_bfloat16")
INPUTS = ("floating", "wider", "uint8", "int32", "bool")
PLACES = ((0, 1), (3, 0.1), (30, 0.1), (1013, 1), (1e4, 1), (1e6, 1))
CONTENTS = ("alike", "constant channels", "one channel far", "one row far", "sorted")
MASKS = (None, "without the last axis", "without the channels")
TRAINING = (True, False, "tensor True", "tensor False")
LARGE = 100_000  # elements from which on other kernels serve the layer
UNITS = {
    name: float(tf.experimental.numpy.finfo(getattr(tf, name)).eps)
    for name in ("float16", "float32", "float64")
}
UNITS["bfloat16"] = 2.0**-7


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and its input; the values come from a generator with the seed."""

    shape: tuple
    axis: int
    policy: str
    inputs: str
    place: tuple
    content: str
    mask: str | None
    center: bool
    scale: bool
    training: bool | str
    seed: int

    @property
    def trains(self):
        return "True" in str(self.training)

    @property
    def autocast(self):
        return self.inputs != "wider"

    @property
    def compute_dtype(self):
        return self.policy.removeprefix("mixed_")

    @property
    def dtype(self):
        """Of what the layer is given."""
        if self.inputs == "wider":
            return "float64"
        return "float32" if self.inputs == "floating" else self.inputs

    @property
    def seen_dtype(self):
        """Of the numbers that the layer computes with, its autocast behind it."""
        return self.compute_dtype if self.inputs == "floating" else self.dtype

    @property
    def wide_dtype(self):
        """Of the computation: never below float32."""
        return "float64" if self.seen_dtype == "float64" else "float32"


@st.composite
def cases(draw):
    rank = draw(st.sampled_from(RANKS))
    axis = draw(st.integers(1, rank - 1) if rank > 2 else st.just(1))
    if draw(st.integers(0, 3)) == 0:
        channels = draw(st.sampled_from([3, 11, 32]))
        side = int(np.ceil((LARGE / channels) ** (1 / (rank - 1)))) + draw(st.integers(1, 3))
        shape = [side] * (rank - 1)
        shape.insert(axis, channels)
    else:
        shape = draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank))
        shape[0] += 1  # two values at least: what is normalized then is not the offset alone
    policy = draw(st.sampled_from(POLICIES))
    inputs = draw(st.sampled_from(("floating", "floating", *INPUTS)))
    # float16 ends at 65504; bool and uint8 have their own range.
    places = PLACES[:4] if policy.endswith("float16") and policy != "mixed_bfloat16" else PLACES
    mask = draw(st.sampled_from(MASKS))
    return Case(
        shape=tuple(shape),
        axis=axis,
        policy=policy,
        inputs=inputs,
        place=draw(st.sampled_from(places)),
        content=draw(st.sampled_from(CONTENTS)),
        mask="without the channels" if mask and axis == rank - 1 else mask,
        center=draw(st.booleans()),
        scale=draw(st.booleans()),
        training=draw(st.sampled_from(TRAINING)),
        seed=draw(st.integers(0, 2**16)),
    )


def values(case):
    """What the layer is given, the numbers that it then computes with in float64, and a mask."""
    random = np.random.default_rng(case.seed)
    mean, deviation = case.place
    x = mean + deviation * random.normal(size=case.shape)
    channels = np.moveaxis(x, case.axis, -1)
    if case.content == "constant channels":
        channels[..., ::2] = mean
    elif case.content == "one channel far":
        channels[..., 1:] -= mean
    elif case.content == "one row far":
        channels[(len(channels) // 2,)] += 10 * mean
    elif case.content == "sorted":
        channels.sort(axis=0)
    if case.inputs == "uint8":
        x = np.clip(x * 20 + 100, 0, 255)
    elif case.inputs == "bool":
        x = x > np.median(x)
    x = tf.constant(x.astype(case.dtype))
    seen = tf.cast(x, case.seen_dtype)
    return x, np.asarray(tf.cast(seen, tf.float64)), drawn_mask(case, random)


def drawn_mask(case, random):
    """A boolean mask that leaves each channel two values at least; None if there is none."""
    if case.mask is None:
        return None
    place = case.axis if case.mask == "without the channels" else len(case.shape) - 1
    mask = random.random(case.shape[:place] + case.shape[place + 1:]) < 0.7
    counts = kept(case, mask).sum(others(case))
    return mask if counts.min() >= 2 else np.ones_like(mask)


def place_of(case, mask):
    """The axis that a mask lacks. Where the last one fits, it is that, as for Keras's layer."""
    fits = all(size in (1, given) for size, given in zip(mask.shape, case.shape[:-1]))
    return len(case.shape) - 1 if fits else case.axis


def kept(case, mask):
    """A mask in the shape of x; None for none."""
    if mask is None:
        return None
    return np.broadcast_to(np.expand_dims(mask, place_of(case, mask)), case.shape)


def others(case):
    return tuple(axis for axis in range(len(case.shape)) if axis != case.axis)


def start(case, seen):
    """Weights by name, in numbers that half precision has, too: near to the data."""
    random = np.random.default_rng(case.seed + 1)
    channels = case.shape[case.axis]

    def eighths(low, high):
        return random.integers(low, high, channels) / 8

    mean, variance = seen.mean(others(case)), seen.var(others(case))
    unit = np.sqrt(variance + 1e-3)
    return {
        "gamma": eighths(4, 12) * random.choice([-1, 1], channels) if case.scale else None,
        "beta": eighths(-8, 8) if case.center else None,
        "moving_mean": np.float32(mean + unit * eighths(-8, 8)),
        "moving_variance": np.float32((variance + 1e-3) * eighths(4, 12)),
    }


def expected(case, seen, mask, weights, dy):
    """Outputs, gradients and moving statistics in float64, and the scale of each one's rounding."""
    gamma, beta = weights["gamma"], weights["beta"]
    mean, variance = (np.float64(weights[name]) for name in ("moving_mean", "moving_variance"))
    axes = others(case)

    def spread(per_channel):
        return np.expand_dims(per_channel, axes)

    if case.trains:
        keep = kept(case, mask)
        y, used_mean, used_variance = reference.forward(
            seen, gamma, beta, axis=case.axis, mask=keep
        )
        dx, dgamma, dbeta = reference.backward(dy, seen, gamma, axis=case.axis, mask=keep)
        mean = reference.moving_average(mean, used_mean, 0.75)
        variance = reference.moving_average(variance, used_variance, 0.75)
    else:
        used_mean, used_variance = mean, variance
        y = reference.inference(seen, mean, variance, gamma, beta, axis=case.axis)
        x_hat = reference.inference(seen, mean, variance, axis=case.axis)
        dgamma, dbeta = (dy * x_hat).sum(axes), dy.sum(axes)
        dx = dy * spread((1 if gamma is None else gamma) / np.sqrt(variance + 1e-3))
    unit = np.sqrt(used_variance + 1e-3)
    # A mean that is off shifts all values alike; a deviation that is off, each by its distance.
    size = 1 + np.abs(seen - spread(used_mean)) / spread(unit)
    factor = spread(np.abs(gamma) if case.scale else np.ones_like(unit))
    found = {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta,
             "moving_mean": mean, "moving_variance": variance}
    scales = {
        "y": size * factor + spread(np.zeros_like(unit) if beta is None else np.abs(beta)),
        "dx": np.abs(dy).max() * factor / spread(unit) * size,
        "dgamma": (np.abs(dy) * size).sum(axes),
        "dbeta": np.abs(dy).sum(axes),
        "moving_mean": unit,
        "moving_variance": variance + used_variance,
    }
    # A mean far from zero is itself known to a unit in the last place only. In training that
    # shows nowhere but in the statistic; in inference the outputs inherit it.
    scales["far"] = np.abs(used_mean) + np.abs(mean)
    scales["far in units"] = np.abs(used_mean) / unit
    return found, scales


def rounding(case, name, value, scales):
    """How far a value may be off without being wrong.

    Sums of n numbers in a row are off by some sqrt(n) units in the last place of the dtype they are
    computed in, never below float32, at the worst of many channels twice that; 16 more for the
    dozen operations around them. What is handed
    out in another dtype is rounded to that once: outputs to the compute dtype, a gradient to the
    dtype of its weight or input.
    """
    n = np.prod(case.shape) / case.shape[case.axis]
    unit = UNITS[case.wide_dtype]
    allowed = (16 + 2 * np.sqrt(n)) * unit * scales[name]
    statistic = name.startswith("moving")
    if statistic:
        unit = UNITS["float64" if case.policy == "float64" else "float32"]
    if case.wide_dtype == "float64":  # the judge computes no wider, and it rounds, too
        far = scales["far in units"] if statistic or name.startswith("dg") else (
            np.expand_dims(scales["far in units"], others(case)))
        allowed = allowed * (1 + far)
    if name == "moving_mean":
        allowed = allowed + 2 * unit * scales["far"]
    if name == "moving_variance":
        allowed = allowed + 2 * unit * np.abs(value)
    if not case.trains and name == "y":
        allowed = allowed + unit * np.expand_dims(scales["far in units"], others(case)) * 2
    if not case.trains and name == "dgamma":
        allowed = allowed + unit * scales["far in units"] * scales["dbeta"]
    if not statistic:
        variable = "float16" if case.policy == "float16" else case.compute_dtype
        variable = "float32" if case.policy.startswith("mixed") else variable
        handed = {"y": case.compute_dtype, "dx": case.seen_dtype}.get(name, variable)
        unit = max(UNITS[handed], UNITS[case.dtype] if name == "dx" else 0)
        allowed = allowed + unit * np.abs(value)
        if handed == "float16":  # half of the distance between its smallest numbers
            allowed = allowed + 2.0**-25
    return allowed


def run(kind, case, mode, x, mask, weights, dy):
    """The same as `expected`, of a layer."""
    layer = kind(axis=case.axis, momentum=0.75, center=case.center, scale=case.scale,
                 dtype=case.policy, autocast=case.autocast)
    layer.build(case.shape)
    for name, value in weights.items():
        if value is not None:
            getattr(layer, name).assign(value)
    # Keras's layer takes none; XLA cannot compile the choice of a graph traced without it.
    as_tensor = isinstance(case.training, str) and kind is BatchNorm and mode != LATER
    training = tf.constant(case.trains) if as_tensor else case.trains
    affine = {name: getattr(layer, name).value for name in ("gamma", "beta")
              if weights[name] is not None}

    def step(x, dy, mask=None, training=training):
        with tf.GradientTape() as tape:
            watched = {**affine, **({"x": x} if x.dtype.is_floating else {})}
            tape.watch(list(watched.values()))
            y = layer(x, training=training, mask=mask)
        found = tape.gradient(y, list(watched.values()), tf.cast(dy, y.dtype))
        return y, {f"d{name}": gradient for name, gradient in zip(watched, found)}

    tensors = [x, tf.constant(dy)]
    tensors += [] if mask is None else [tf.constant(mask)]
    keywords = {"training": training} if as_tensor else {}
    y, gradients = in_mode(mode, step, case, tensors, keywords)
    assert y.dtype.name == case.compute_dtype and y.shape == case.shape
    found = {"y": y, **gradients, "moving_mean": layer.moving_mean.value,
             "moving_variance": layer.moving_variance.value}
    return {name: np.asarray(tf.cast(value, tf.float64)) for name, value in found.items()}


def in_mode(mode, step, case, tensors, keywords):
    if mode == "eager":
        return step(*tensors, **keywords)
    if mode in ("graph", "xla"):
        return tf.function(step, jit_compile=mode == "xla")(*tensors, **keywords)
    if mode == "open sizes":
        signature = [open_size(case, tensor) for tensor in [*tensors, *keywords.values()]]

        @tf.function(input_signature=signature)
        def traced(*tensors):
            count = len(tensors) - len(keywords)
            return step(*tensors[:count], **dict(zip(keywords, tensors[count:])))

        return traced(*tensors, *keywords.values())
    traced = tf.function(step)
    traced.get_concrete_function(*tensors, **keywords)
    return tf.function(traced, jit_compile=True)(*tensors, **keywords)


def open_size(case, tensor):
    shape = [None] * tensor.shape.rank
    if tensor.shape.rank == len(case.shape):
        shape[case.axis] = case.shape[case.axis]
    elif tensor.shape.rank and case.axis != len(case.shape) - 1:
        shape = tensor.shape  # of two meanings; a test of its own has it open
    return tf.TensorSpec(shape, tensor.dtype)


def keras_can(case):
    """Keras's layer takes masks without the last axis only, and squeezes single channels away."""
    if case.mask == "without the channels" and case.axis != len(case.shape) - 1:
        return False
    return case.mask is None or case.shape[case.axis] > 1


def check(case, mode):
    """Our layer is as exact as the module's head says."""
    x, seen, mask = values(case)
    weights = start(case, seen)
    # Quarters up to 2, which every dtype has.
    dy = np.random.default_rng(case.seed + 2).integers(-8, 9, case.shape) / 4
    right, scales = expected(case, seen, mask, weights, dy)
    ours = run(BatchNorm, case, mode, x, mask, weights, dy)
    assert set(ours) >= {"y", "moving_mean", "moving_variance"}
    theirs = None
    for name, found in ours.items():
        error = np.abs(found - right[name])
        allowed = rounding(case, name, right[name], scales)
        if not (error <= allowed).all() and keras_can(case):
            if theirs is None:  # most cases are within rounding, and need no second layer
                theirs = run(keras.layers.BatchNormalization, case, mode, x, mask, weights, dy)
            # The largest of all, since that of a single value is luck.
            allowed = allowed + 2 * np.nanmax(np.abs(theirs[name] - right[name]))
        worst = np.nanmax(error / allowed)
        assert np.isfinite(found).all() and worst <= 1, f"{name}: {worst:.3g} times what is allowed"
    # XLA makes two passes, which far from zero are as exact as Keras's layer and no more.
    exact = mode not in ("xla", LATER)
    if exact and case.trains and case.seen_dtype == case.compute_dtype == "float32":
        size = 1 + np.abs(right["y"]).max()
        assert np.abs(ours["y"] - right["y"]).max() < 1e-4 * size


def sweep(mode, examples):
    """Draws and checks cases; returns them."""
    drawn = []

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    @given(cases())
    def every(case):
        # Where sizes are open, such a mask is taken as one without the last axis.
        open_mask = mode == "open sizes" and case.mask == "without the channels"
        assume(not open_mask or case.axis % len(case.shape) == len(case.shape) - 1)
        drawn.append(case)
        check(case, mode)

    every()
    return drawn


def covered(drawn, name):
    return {getattr(case, name) for case in drawn}


@pytest.mark.parametrize("mode, examples", [
    *FAST.items(),
    *(pytest.param(mode, count, marks=pytest.mark.slow) for mode, count in SLOW.items()),
])
def test_every_drawn_case_is_exact(mode, examples):
    drawn = sweep(mode, examples)
    assert len(drawn) >= examples
    assert len({len(case.shape) for case in drawn}) >= len(RANKS) - 1  # few draws may miss one
    assert {np.prod(case.shape) >= LARGE for case in drawn} == {False, True}
    assert covered(drawn, "trains") == {False, True}


@pytest.mark.slow
def test_the_strategy_draws_everything_that_it_names():
    drawn = []

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(cases())
    def draw(case):
        drawn.append(case)

    draw()
    assert {(len(case.shape), case.axis) for case in drawn} == {
        (rank, axis) for rank in RANKS for axis in range(1, rank)
    }
    for name, wanted in (("policy", POLICIES), ("mask", MASKS), ("training", TRAINING),
                         ("content", CONTENTS), ("inputs", INPUTS), ("place", PLACES),
                         ("center", (False, True)), ("scale", (False, True))):
        assert covered(drawn, name) == set(wanted), f"{name} is not covered"
    large = [case for case in drawn if np.prod(case.shape) >= LARGE]
    assert {len(case.shape) for case in large} == set(RANKS)
    assert covered(large, "policy") == set(POLICIES) and covered(large, "mask") == set(MASKS)


PLAIN = Case(
    shape=(6, 3), axis=1, policy="float32", inputs="floating", place=(0, 1), content="alike",
    mask=None, center=False, scale=False, training=True, seed=0,
)
# Drawn by longer sweeps only: cases that a small change can spoil.
FOUND = {
    "a mask that fits with and without the channels": {
        "shape": (3, 4, 4, 4), "axis": 2, "mask": "without the channels",
    },
    "the row in the middle is far from all others": {
        "shape": (33335, 3), "place": (30, 0.1), "content": "one row far",
    },
    "an odd number of rows of whole numbers": {
        "shape": (17, 17, 17, 3, 17), "axis": 3, "inputs": "int32", "place": (3, 0.1), "seed": 3,
    },
    "one far channel, in bfloat16": {
        "shape": (98, 11, 98), "policy": "mixed_bfloat16", "place": (1e6, 1),
        "content": "one channel far", "center": True, "scale": True, "seed": 2,
    },
}


@pytest.mark.parametrize("changed", FOUND.values(), ids=FOUND)
def test_a_case_of_a_longer_sweep_is_exact(changed):
    check(dataclasses.replace(PLAIN, **changed), "eager")


def test_where_sizes_are_open_a_mask_is_taken_as_keras_takes_it():
    """Nothing tells while the graph is traced which axes its sizes are of."""
    x = np.random.default_rng(0).normal(size=(4, 3, 6)).astype("float32")
    mask = np.random.default_rng(1).random((4, 3)) < 0.6
    found = []
    for kind in (BatchNorm, keras.layers.BatchNormalization):
        layer = kind(axis=1, momentum=0.0)
        layer.build(x.shape)
        signature = [tf.TensorSpec([None, 3, None]), tf.TensorSpec([None, None], tf.bool)]
        tf.function(
            lambda x, mask, layer=layer: layer(x, training=True, mask=mask),
            input_signature=signature,
        )(tf.constant(x), tf.constant(mask))
        found.append(layer.moving_mean.numpy())
    np.testing.assert_allclose(*found, atol=1e-5)


def test_no_mode_shrank_to_nothing():
    assert FAST.keys() < SLOW.keys() and len(SLOW) == 5 and min(SLOW.values()) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize("axis", [1, -1])
def test_shapes_are_known_while_a_graph_with_open_sizes_is_traced(axis, renorm):
    layer = BatchNorm(axis=axis, renorm=renorm)
    shape = [None, 8, None, 8]
    layer.build(shape)
    seen = []

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        gradients = tape.gradient(y, [x, layer.gamma.value, layer.beta.value])
        seen.append([y.shape.as_list(), *(gradient.shape.as_list() for gradient in gradients)])

    step.get_concrete_function()
    assert seen == [[shape, shape, [8], [8]]]


@product_of(
    fast=1, place=PLACES, mode=list(SLOW),
    like=[((300, 9), 1), ((48, 31, 70), 2), ((12, 5, 7, 8), 1)]
)
def test_every_place_is_exact_in_every_mode(place, mode, like):
    shape, axis = like
    check(dataclasses.replace(PLAIN, shape=shape, axis=axis, place=place), mode)
