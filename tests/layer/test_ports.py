"""Nets from PyTorch and Flax, and to PyTorch.

The oracle is PyTorch's arithmetic in NumPy, channels first. Where PyTorch is installed,
`torch_ports_check.py` compares with itself.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from make import ROOT, normal
from numpy.lib.stride_tricks import sliding_window_view
from zoo import NAMES, ZOO, inputs_of, predictions, told

from bn_keras import BatchNorm
from bn_keras.surgery.port_order import places_of
from bn_keras.surgery.ports import from_flax, from_torch, to_torch

CHECKS = 35
HERE = pathlib.Path(__file__).parent
BN = layers.BatchNormalization
EPS = 1e-2  # far from all defaults


# ---------------------------------------------------------------- PyTorch's layers, in NumPy


def linear(x, weight, bias=0.0):
    return x @ weight.T + bias


def conv(x, weight, bias, stride=1, groups=1):
    axes = tuple(range(2, x.ndim))
    found = []
    for part, kernel in zip(np.split(x, groups, 1), np.split(weight, groups)):
        windows = sliding_window_view(part, weight.shape[2:], axes)
        windows = windows[(slice(None), slice(None), *(slice(None, None, stride) for _ in axes))]
        over = [1, *range(x.ndim, windows.ndim)]
        y = np.tensordot(windows, kernel, (over, range(1, weight.ndim)))
        found.append(np.moveaxis(y, -1, 1))
    return along(bias, np.concatenate(found, 1)) + np.concatenate(found, 1)


def conv_transpose(x, weight, bias, stride=1):
    sizes = [(n - 1) * stride + k for n, k in zip(x.shape[2:], weight.shape[2:])]
    y = np.zeros((len(x), weight.shape[1], *sizes))
    for place in np.ndindex(*weight.shape[2:]):
        part = tuple(slice(p, p + n * stride, stride) for p, n in zip(place, x.shape[2:]))
        y[(slice(None), slice(None), *part)] += np.moveaxis(
            np.tensordot(x, weight[(slice(None), slice(None), *place)], (1, 0)), -1, 1
        )
    return y + along(bias, y)


def along(values, x):
    return np.reshape(values, (-1, *[1] * (x.ndim - 2)))


def batch_norm(x, weight, bias, mean, variance):
    scale = weight / np.sqrt(variance + EPS)
    return (x - along(mean, x)) * along(scale, x) + along(bias, x)


def normed(x, axes, centered=True):
    mean = x.mean(axes, keepdims=True) if centered else 0.0
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + EPS)


def group_norm(x, weight, bias):
    y = normed(x.reshape(len(x), 2, -1), 2).reshape(x.shape)
    return y * along(weight, x) + along(bias, x)


def prelu(x, weight):
    return np.where(x > 0, x, along(weight, x) * x)


def stack(shape, *parts, dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def first(x):
    return np.moveaxis(x, -1, 1)


def last(x):
    return np.moveaxis(x, 1, -1)


def norm_shapes(n):
    return {"weight": (n,), "bias": (n,), "running_mean": (n,), "running_var": (n,)}


def affine(*weight, bias=0):
    return {"weight": weight, "bias": (bias or weight[0],)}


def prelu_net():
    return stack((4, 2, 3), layers.PReLU(shared_axes=[1, 2]), layers.PReLU(shared_axes=[1, 2]))


# Name: the Keras net, shapes in PyTorch for each layer, and what PyTorch computes of Keras's inputs
# with these layers.
NETS = {
    "dense": (
        lambda: stack((3,), layers.Dense(4), layers.Dense(2, use_bias=False)),
        [affine(4, 3), {"weight": (2, 4)}],
        lambda x, a, b: linear(linear(x, **a), **b),
    ),
    "convolutions": (
        lambda: stack((9, 8, 4), layers.Conv2D(6, (3, 2), 2, groups=2), layers.Conv2D(3, 2)),
        [affine(6, 2, 3, 2), affine(3, 6, 2, 2)],
        lambda x, a, b: last(conv(conv(first(x), **a, stride=2, groups=2), **b)),
    ),
    "one and three dimensions": (
        lambda: stack(
            (7, 5, 4, 2), layers.Conv3D(3, (2, 3, 1)), layers.Reshape((6 * 3 * 4, 3)),
            layers.Conv1D(2, 3),
        ),
        [affine(3, 2, 2, 3, 1), affine(2, 3, 3)],
        lambda x, a, b: last(conv(conv(first(x), **a).reshape(len(x), 3, -1), **b)),
    ),
    "depthwise": (
        lambda: stack(
            (6, 5, 3), layers.DepthwiseConv2D(3, depth_multiplier=2), layers.DepthwiseConv2D(2)
        ),
        [affine(6, 1, 3, 3), affine(6, 1, 2, 2)],
        lambda x, a, b: last(conv(conv(first(x), **a, groups=3), **b, groups=6)),
    ),
    "transposed": (
        lambda: stack((3, 4, 3), layers.Conv2DTranspose(2, (3, 2), 2)),
        [affine(3, 2, 3, 2, bias=2)],
        lambda x, a: last(conv_transpose(first(x), **a, stride=2)),
    ),
    "batch norm": (
        lambda: stack((4, 3, 2), BN(), BatchNorm(), BN(center=False, scale=False)),
        [norm_shapes(2), norm_shapes(2), {"running_mean": (2,), "running_var": (2,)}],
        lambda x, a, b, c: last(batch_norm(batch_norm(
            batch_norm(first(x), *a.values()), *b.values()
        ), 1.0, 0.0, *c.values())),
    ),
    "other norms": (
        lambda: stack(
            (5, 4), layers.LayerNormalization(), layers.GroupNormalization(2),
            layers.RMSNormalization(),
        ),
        [affine(4), affine(4), {"weight": (4,)}],
        lambda x, a, b, c: normed(last(group_norm(
            first(normed(x, 2) * a["weight"] + a["bias"]), **b
        )), 2, False) * c["weight"],
    ),
    "prelu": (
        prelu_net, [{"weight": (3,)}, {"weight": (1,)}],
        lambda x, a, b: last(prelu(prelu(first(x), **a), **b)),
    ),
    "embedding": (
        lambda: stack(
            (5,), layers.Embedding(6, 3), layers.Flatten(), layers.Dense(2), dtype="int32"
        ),
        [{"weight": (6, 3)}, affine(2, 15)],
        lambda x, a, b: linear(a["weight"][x].reshape(len(x), -1), **b),
    ),
    "flattened image": (
        lambda: stack(
            (4, 3, 2), layers.Conv2D(4, 2), layers.Flatten(), layers.Dropout(0.5), BN(),
            layers.PReLU(), layers.Dense(3), layers.Dense(2),
        ),
        [affine(4, 2, 2, 2), norm_shapes(24), {"weight": (24,)}, affine(3, 24), affine(2, 3)],
        lambda x, a, b, c, d, e: linear(linear(prelu(batch_norm(
            conv(first(x), **a).reshape(len(x), -1), *b.values()
        ), **c), **d), **e),
    ),
    "unfolded image": (
        lambda: stack(
            (3,), layers.Dense(24), BN(), layers.Reshape((3, 2, 4)), layers.Conv2D(2, 2)
        ),
        [affine(24, 3), norm_shapes(24), affine(2, 4, 2, 2)],
        lambda x, a, b, c: last(conv(
            batch_norm(linear(x, **a), *b.values()).reshape(len(x), 4, 3, 2), **c
        )),
    ),
}


def drawn(shapes, seed=0):
    """Weights and statistics that do something, by layer."""
    rng = np.random.default_rng(seed)
    return [
        {
            field: rng.uniform(0.3, 2, shape) if field == "running_var" or len(shape) == 1
            else rng.normal(0, 0.5, shape)
            for field, shape in layer.items()
        }
        for layer in shapes
    ]


def state_of(weights):
    return {
        f"part.{n}.{field}": value for n, layer in enumerate(weights)
        for field, value in layer.items()
    }


@pytest.mark.parametrize("name", NETS)
def test_a_net_from_pytorch_gives_its_outputs_and_goes_back(name):
    make, shapes, reference = NETS[name]
    keras.config.set_dtype_policy("float64")
    try:
        model = make()
    finally:
        keras.config.set_dtype_policy("float32")
    weights, before = drawn(shapes), [w.numpy() for w in model.weights]
    state = state_of(weights)
    new, certificate = from_torch(model, state, eps=EPS, momentum=0.03)
    shape = (3, *model.input_shape[1:])
    x = normal(shape, seed=1) if name != "embedding" else (
        np.arange(15).reshape(3, 5) % 6
    )
    np.testing.assert_allclose(new(x, training=False), reference(x, *weights), 1e-6, 1e-6)
    assert certificate.count("ported") == len(shapes) and certificate.relative is None
    for layer in new.layers:
        assert getattr(layer, "epsilon", EPS) == EPS
        assert not isinstance(layer, BN) or layer.momentum == 0.97
    back, table = to_torch(new, {key: np.zeros_like(value) for key, value in state.items()})
    assert list(back) == list(state) and table.count("ported") == len(shapes)
    for key, value in state.items():
        np.testing.assert_allclose(back[key], value, 1e-7, err_msg=key)
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def template(model):
    """A state_dict of the net that a model of the zoo would be in PyTorch."""
    state = {}
    for number, place in enumerate(places_of(model).places):
        arrays = {weight.name: weight.numpy() for weight in place.layer.weights}
        if "kernel" in arrays:
            state[f"{number}.weight"] = arrays["kernel"].T
            state[f"{number}.bias"] = arrays["bias"]
        else:
            n = len(arrays["moving_mean"])
            state |= {f"{number}.{field}": np.zeros(n) for field in norm_shapes(1)}
            state[f"{number}.num_batches_tracked"] = np.array(7)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_models_of_every_kind_go_to_pytorch_and_back(name):
    make = dict(zip(NAMES, ZOO))[name]
    model, rng = make(), np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    before, settings = told(model), {"eps": 1e-3, "momentum": 0.01}
    if name == "wrapped":  # two directions with the same layers: only their names say which
        with pytest.raises(ValueError, match="parallel branches.*'0' to .*names="):
            to_torch(model, template(model))
        names = {place.path: str(n) for n, place in enumerate(places_of(model).places)}
    elif name == "in_a_lambda":
        with pytest.raises(ValueError, match="BatchNormalization with gamma.*in a lambda"):
            to_torch(model, {"0.weight": np.ones(3)})
        return
    else:
        names = {}
    state, _ = to_torch(model, template(model), names=names)
    fresh = make()
    if names:
        names = {place.path: str(n) for n, place in enumerate(places_of(fresh).places)}
    new, certificate = from_torch(fresh, state, names=names, **settings)
    assert type(new) is type(model) and told(model) == before
    for one, other in zip(new.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    for one, other in zip(predictions(new, inputs_of(name)), predictions(model, inputs_of(name))):
        np.testing.assert_allclose(one, other, 1e-5)
    assert certificate.count("ported") == len(certificate.rows) > 0


def branches(*names):
    """Two convolutions side by side, alike but for what is in them, with another one behind."""
    inputs = keras.Input((3,))
    one, other = (layers.Dense(3, name=name) for name in names)
    return keras.Model(inputs, layers.Dense(2)(one(inputs) - 2 * other(inputs)))


def test_branches_that_look_alike_are_told_apart_by_names_or_not_at_all():
    values = drawn([affine(3, 3), affine(3, 3), affine(2, 3)])
    state = {f"{prefix}.{field}": value for prefix, layer in zip(("a.q", "a.k", "out"), values)
             for field, value in layer.items()}
    x = np.ones((1, 3), "float32")
    a, b, c = values
    expected = linear(linear(x, **a) - 2 * linear(x, **b), **c)
    for model, names in [
        (branches("a_q", "a_k"), {}),
        (branches("one", "other"), {"one": "a.q", "other": "a.k"}),
    ]:
        new, _ = from_torch(model, state, names=names)
        np.testing.assert_allclose(new(x), expected, 1e-5)
    with pytest.raises(ValueError, match="'a.q' to .*, where 'a.q' to .* is as possible"):
        from_torch(branches("one", "other"), state)


def test_the_variance_is_corrected_where_the_number_of_values_is_known():
    rng = np.random.default_rng(0)
    batch = rng.normal(3, 2, (8, 5))
    state = {"weight": np.ones(5), "bias": np.zeros(5), "running_mean": batch.mean(0),
             "running_var": batch.var(0, ddof=1), "num_batches_tracked": np.array(4)}

    def ported(layer, **settings):
        return from_torch(stack((5,), layer), state, eps=1e-3, momentum=0.1, **settings)[0]

    def variance(model):
        return model.layers[0].moving_variance.numpy()

    np.testing.assert_allclose(variance(ported(BN())), batch.var(0, ddof=1), 1e-6)
    model = ported(BN(name="n"), values_per_channel={"n": 8})
    np.testing.assert_allclose(variance(model), batch.var(0), 1e-6)
    # A layer that keeps PyTorch's variance wants no correction, and one that counts has the count.
    model = ported(BatchNorm(unbiased_variance=True, debias=True), values_per_channel=8)
    np.testing.assert_allclose(variance(model), batch.var(0, ddof=1), 1e-6)
    assert int(model.layers[0].updates.numpy()) == 4
    back, table = to_torch(ported(BN(), values_per_channel=8), state, values_per_channel=8)
    np.testing.assert_allclose(back["running_var"], state["running_var"], 1e-6)
    assert back["num_batches_tracked"] == 4
    assert table.figures["to set"] == {"": {"eps": 1e-3, "momentum": 0.1}}


class Hidden(layers.Layer):
    """Has a normalizer that its config does not know."""

    def build(self, shape):
        self.norm = BN()
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


def test_what_was_assumed_or_looks_wrong_is_said():
    state = state_of(drawn([norm_shapes(3)]))
    with pytest.warns(UserWarning, match=r"assumed.*epsilon 1e-05.*changed 1 layers: bn\. Give"):
        new, certificate = from_torch(stack((3,), BN(name="bn")), state)
    assert certificate.rows[0].note == (
        "from part.0; epsilon 0.001 → 1e-05 (assumed); momentum 0.99 → 0.9 (assumed)"
    )
    assert "not measured (a state_dict has no outputs" in str(certificate)
    state["part.0.running_var"][1] = np.nan
    state["part.0.num_batches_tracked"] = np.array(0)
    _, certificate = from_torch(stack((3,), Hidden()), state, eps=1e-5, momentum=0.1)
    assert "1 of 3 channels have no finite mean" in certificate.rows[0].note
    assert "num_batches_tracked is 0" in certificate.rows[0].note
    assert "not in the model's config" in certificate.rows[0].note
    # Nothing to say where nothing changes; no affine weights are ones and zeros.
    state = {"running_mean": np.ones(3), "running_var": np.ones(3)}
    new, certificate = from_torch(stack((3,), BN(epsilon=1e-5, momentum=0.9)), state)
    assert [row.note for row in certificate.rows] == ["from "]
    assert new.layers[0].gamma.numpy().tolist() == [1.0] * 3


def test_only_the_batch_norms_of_nets_that_do_not_match():
    model = stack((4, 3), BN(name="one"), layers.LSTM(2), BN(name="two"))
    state = {"rnn.weight_ih_l0": np.ones((8, 3)), **{
        f"{name}.{field}": value
        for name, values in zip("ab", drawn([norm_shapes(3), norm_shapes(2)]))
        for field, value in values.items()
    }}
    new, certificate = from_torch(model, state, only_batch_norm=True, eps=1e-5, momentum=0.1)
    assert [row.path for row in certificate.rows] == ["one", "two"]
    for name, layer in zip("ab", (new.get_layer("one"), new.get_layer("two"))):
        np.testing.assert_allclose(layer.moving_mean, state[f"{name}.running_mean"], 1e-6)
    with pytest.raises(ValueError, match="no counterpart is known of 'lstm.*' .LSTMCell with ker"):
        from_torch(model, state)


def of_unknown_order():
    inputs = keras.Input((4, 4, 2))
    x = layers.Lambda(lambda x: keras.ops.reshape(x, (-1, 32)), name="flat")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


DENSE = {"0.weight": np.ones((2, 3)), "0.bias": np.ones(2)}
REFUSED = {
    "a wrong shape": (lambda: stack((4,), layers.Dense(2, name="d")), DENSE, {}, (
        r"'0' \(weight \(2, 3\), bias \(2,\)\) does not fit 'd' \(Dense, kernel \(4, 2\).*"
        r"makes kernel \(3, 2\); expected \(4, 2\)"
    )),
    "a layer too many": (lambda: stack((3,), layers.Dense(2), layers.Dense(2, name="e")), DENSE,
                         {}, "1 of the 2 layers of the model are left over, first 'e' .Dense."),
    "a layer too few": (lambda: stack((3,), layers.ReLU()), DENSE, {}, "no layer left for '0'"),
    "a bias that is lost": (lambda: stack((3,), layers.Dense(2, use_bias=False)), DENSE, {},
                            "bias there is not 0.0 everywhere, and the layer in Keras has no bias"),
    "no statistics": (lambda: stack((2,), BN()), {"0.weight": np.ones(2), "0.bias": np.ones(2)},
                      {}, "no running_mean there.*track_running_stats=False"),
    "more than is known": (
        lambda: stack((3,), layers.Dense(2)), {"0.weight_g": np.ones(2), "0.weight_v": np.ones(2)},
        {}, "weight_g, weight_v there has no counterpart"
    ),
    "a kind of its own": (
        lambda: stack((3,), layers.Normalization(name="n")), DENSE, {},
        "no counterpart is known of 'n' .Normalization with mean.*names={'n': None}",
    ),
    "an unknown order": (of_unknown_order, {"weight": np.ones((2, 32)), "bias": np.ones(2)}, {},
                         "channels of 'head' .Dense. in PyTorch is not known: 'flat'.*flattened="),
    "a shape of another size": (of_unknown_order, {}, {"flattened": {"head": (4, 4, 3)}},
                                "makes 48 values; expected a shape of 32"),
    "an unknown layer": (of_unknown_order, {}, {"flattened": {"tail": None}},
                         "flattened has the layer 'tail'; known: head"),
    "an unknown name": (of_unknown_order, DENSE, {"names": {"head": "1"}}, "'1'; known: 0"),
    "one value": (lambda: stack((2,), BN()), state_of(drawn([norm_shapes(2)])),
                  {"values_per_channel": 1}, "is 1; expected at least 2"),
    "a checkpoint": (lambda: stack((3,), layers.Dense(2)), {"epoch": 3, "state_dict": DENSE}, {},
                     "'epoch' is a int; expected a state_dict"),
    "no net": (lambda: stack((3,), layers.Dense(2)), 3, {}, "received a int; expected a PyTorch"),
    "no model": (lambda: layers.Dense(2), DENSE, {}, "received a Dense; expected a keras.Model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_ported_is_named(name):
    make, state, settings, said = REFUSED[name]
    with pytest.raises((ValueError, TypeError)) as error:
        from_torch(make(), state, **settings)
    assert re.search(said, str(error.value)), error.value


def test_somebody_can_say_what_was_flattened():
    weight = np.random.default_rng(0).normal(size=(2, 32))
    state = {"weight": weight, "bias": np.ones(2)}
    x = np.random.default_rng(1).normal(size=(3, 4, 4, 2))
    for told_shape, flat in (((4, 4, 2), first(x)), (None, x)):
        new, _ = from_torch(of_unknown_order(), state, flattened={"head": told_shape})
        np.testing.assert_allclose(new(x), linear(flat.reshape(3, -1), weight, 1.0), 1e-4, 1e-5)


def flax_net(parts):
    return stack((3,), *[
        part for number in range(parts)
        for part in (layers.Dense(3), BN(name=f"n{number}"), layers.ReLU())
    ])


@pytest.mark.slow
@pytest.mark.parametrize("is_sorted", [True, False])
def test_a_net_from_flax_is_in_the_order_of_its_numbers(is_sorted):
    """JAX sorts the names of what goes through it: Dense_10 before Dense_2, BatchNorm before."""
    rng, parts = np.random.default_rng(0), 12
    draw = {
        f"Dense_{n}": {"kernel": rng.normal(size=(3, 3)), "bias": rng.normal(size=3)}
        for n in range(parts)
    }
    norms = {f"BatchNorm_{n}": {"scale": rng.uniform(size=3), "bias": rng.normal(size=3)}
             for n in range(parts)}
    stats = {f"BatchNorm_{n}": {"mean": rng.normal(size=3), "var": rng.uniform(0.5, 2, size=3)}
             for n in range(parts)}
    params = {key: value for pair in zip(draw.items(), norms.items()) for key, value in pair}
    params = dict(sorted(params.items())) if is_sorted else params

    def net(x):
        for n in range(parts):
            norm, stat = norms[f"BatchNorm_{n}"], stats[f"BatchNorm_{n}"]
            x = x @ draw[f"Dense_{n}"]["kernel"] + draw[f"Dense_{n}"]["bias"]
            x = batch_norm(x, norm["scale"], norm["bias"], stat["mean"], stat["var"])
            x = np.maximum(x, 0)
        return x

    variables = {"params": params, "batch_stats": stats}
    new, certificate = from_flax(
        flax_net(parts), variables, epsilon=EPS, momentum=0.8, call=net, tolerance=1e-4
    )
    assert certificate.relative < 1e-4 and "random inputs" in certificate.measured
    assert {new.get_layer(f"n{n}").momentum for n in range(parts)} == {0.8}
    # A wrong epsilon is found by the outputs.
    with pytest.warns(UserWarning, match="assumed"), pytest.raises(ValueError, match="differ by"):
        from_flax(flax_net(parts), variables, call=net)
    # An nnx.State has all of a layer in one place, and the states of generators.
    pure = {f"dense{n}": draw[f"Dense_{n}"] for n in range(parts)} | {
        f"norm{n}": norms[f"BatchNorm_{n}"] | stats[f"BatchNorm_{n}"] for n in range(parts)
    } | {"drop": {"rngs": {"count": np.array(1)}}}
    from_flax(
        flax_net(parts), dict(sorted(pure.items())), epsilon=EPS, momentum=0.8, call=net,
        tolerance=1e-4,
    )


def test_flax_kernels_have_keras_axes_but_for_transposed_and_depthwise_ones():
    # Published by flax 0.12.8: ConvTranspose(1, (3,), padding="VALID") of [1, 2, 0, -1].
    kernel = np.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    new, _ = from_flax(
        stack((4, 1), layers.Conv1DTranspose(1, 3)),
        {"params": {"ConvTranspose_0": {"kernel": kernel, "bias": np.zeros(1)}}},
    )
    outputs = new(np.array([1.0, 2.0, 0.0, -1.0]).reshape(1, 4, 1)).numpy().ravel()
    assert outputs.tolist() == [100.0, 210.0, 21.0, -98.0, -10.0, -1.0]
    kernel = np.random.default_rng(0).normal(size=(2, 2, 1, 6))
    x = np.random.default_rng(1).normal(size=(2, 4, 5, 3))
    new, _ = from_flax(
        stack((4, 5, 3), layers.DepthwiseConv2D(2, depth_multiplier=2)),
        {"params": {"Conv_0": {"kernel": kernel, "bias": np.zeros(6)}}},
    )
    expected = last(conv(first(x), np.transpose(kernel, (3, 2, 0, 1)), np.zeros(6), groups=3))
    np.testing.assert_allclose(new(x), expected, 1e-4, 1e-5)


@pytest.mark.slow
def test_nets_of_pytorch_itself_give_equal_outputs_both_ways():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed; the test extra does not bring it")
    result = subprocess.run(
        [sys.executable, str(HERE / "torch_ports_check.py")], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["tensorflow", str(CHECKS)]
