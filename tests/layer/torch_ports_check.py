"""Nets that were written twice, in PyTorch and in Keras: ports give equal outputs, both ways.

Run by `test_ports.py` in a process of its own, which has both; prints how many checks it made.
"""

import warnings

import keras
import numpy as np
import torch
from keras import layers
from torch import nn

from bn_keras import BatchNorm
from bn_keras.surgery.certificate import OutputsDiffer
from bn_keras.surgery.ports import from_torch, to_torch

torch.manual_seed(0)
torch.set_num_threads(1)
BN = layers.BatchNormalization
CLOSE = 1e-5  # of the largest output


class Residual(nn.Module):
    """The basic block of He et al. (2016), with its names as everybody has them."""

    def __init__(self, channels, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample = None
        if stride != 1 or channels != filters:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Flattened(nn.Module):
    def forward(self, x):
        return torch.flatten(x, 1)


class View(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.view(-1, *self.shape)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def resnet18():
    stages, channels = [], 64
    for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [Residual(channels, filters, stride), Residual(filters, filters, 1)]
        channels = filters
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), *stages, Mean(), nn.Linear(512, 10),
    )


def keras_resnet18():
    """Its shortcuts come first, as in keras.applications; PyTorch's come last."""

    def conv(x, filters, size, stride, pad):
        x = layers.ZeroPadding2D(pad)(x) if pad else x
        return BN()(layers.Conv2D(filters, size, stride, use_bias=False)(x))

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv(inputs, 64, 7, 2, 3))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for step in (stride, 1):
            new = step != 1 or x.shape[-1] != filters
            shortcut = conv(x, filters, 1, step, 0) if new else x
            y = layers.ReLU()(conv(x, filters, 3, step, 1))
            x = layers.ReLU()(layers.Add()([conv(y, filters, 3, 1, 1), shortcut]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobilenet():
    """Inverted residuals without a residual: expand, depthwise, project; epsilon 1e-3 there."""

    def norm(channels):
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    parts = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm(8), nn.ReLU6()]
    for channels, filters, stride in ((8, 12, 1), (12, 16, 2)):
        wide = 4 * channels
        parts += [
            nn.Conv2d(channels, wide, 1, bias=False), norm(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), norm(wide), nn.ReLU6(),
            nn.Conv2d(wide, filters, 1, bias=False), norm(filters),
        ]
    return nn.Sequential(*parts, Mean(), nn.Linear(16, 5))


def keras_mobilenet():
    parts = [layers.ZeroPadding2D(1), layers.Conv2D(8, 3, 2, use_bias=False), BN(),
             layers.ReLU(6.0)]
    for channels, filters, stride in ((8, 12, 1), (12, 16, 2)):
        parts += [
            layers.Conv2D(4 * channels, 1, use_bias=False), BatchNorm(), layers.ReLU(6.0),
            layers.ZeroPadding2D(1), layers.DepthwiseConv2D(3, stride, use_bias=False), BN(),
            layers.ReLU(6.0), layers.Conv2D(filters, 1, use_bias=False), BN(),
        ]
    return keras.Sequential([
        keras.Input((16, 16, 3)), *parts, layers.GlobalAveragePooling2D(), layers.Dense(5)
    ])


class Subclassed(keras.Model):
    """Flattens in code of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(4, 3, padding="same"), BN()
        self.first, self.again, self.last = layers.Dense(6), BN(), layers.Dense(2)

    def call(self, x, training=None):
        x = keras.ops.relu(self.norm(self.conv(x), training=training))
        x = keras.ops.reshape(x, (-1, 5 * 4 * 4))
        return self.last(self.again(self.first(x), training=training))


def called(model, *shape):
    model(np.zeros((1, *shape), "float32"))
    return model


def stack(shape, *parts, dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def two_inputs():
    one, other = keras.Input((4, 4, 3)), keras.Input((5,))
    flat = layers.Flatten()(layers.Conv2D(2, 3)(one))
    joined = layers.Concatenate()([flat, layers.Dense(3)(other)])
    return keras.Model([one, other], layers.Dense(2)(BN()(joined)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 2, 3), nn.Linear(5, 3)
        self.norm, self.last = nn.BatchNorm1d(11), nn.Linear(11, 2)

    def forward(self, one, other):
        flat = torch.flatten(self.conv(one), 1)
        return self.last(self.norm(torch.cat([flat, self.dense(other)], 1)))


def shared():
    inputs, norm = keras.Input((4,)), BN()
    return keras.Model(inputs, norm(layers.Dense(4)(norm(inputs))))


CASES = {
    "resnet18": (resnet18, keras_resnet18),
    "mobilenet": (mobilenet, keras_mobilenet),
    "flatten behind a convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Flattened(), nn.BatchNorm1d(4 * 4 * 2),
            nn.Linear(32, 5), nn.PReLU(5), nn.Linear(5, 2),
        ),
        lambda: stack(
            (6, 4, 3), layers.Conv2D(4, 3), BN(), layers.Flatten(), layers.Dropout(0.5), BN(),
            layers.Dense(5), layers.PReLU(), layers.Dense(2),
        ),
    ),
    "flatten, channels first": (
        lambda: nn.Sequential(nn.MaxPool2d(2), Flattened(), nn.Linear(12, 5)),
        lambda: stack(
            (3, 4, 4), layers.MaxPooling2D(data_format="channels_first"), layers.Flatten(),
            layers.Dense(5),
        ),
    ),
    "an image from a dense layer": (
        lambda: nn.Sequential(
            nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), View(4, 3, 2), nn.BatchNorm2d(4),
            nn.ConvTranspose2d(4, 3, 3, 2),
        ),
        lambda: stack(
            (5,), layers.Dense(24), BN(), layers.ReLU(), layers.Reshape((3, 2, 4)), BN(),
            layers.Conv2DTranspose(3, 3, 2),
        ),
    ),
    "code of its own": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), Flattened(),
            nn.Linear(80, 6), nn.BatchNorm1d(6), nn.Linear(6, 2),
        ),
        lambda: called(Subclassed(), 5, 4, 3),
    ),
    "a model in a model": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Flattened()), nn.Linear(16, 2)
        ),
        lambda: stack(
            (4, 4, 3), stack((4, 4, 3), layers.Conv2D(4, 3), BN(), layers.Flatten()),
            layers.Dense(2),
        ),
    ),
    "two inputs": (TwoInputs, two_inputs),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, dilation=2), nn.BatchNorm1d(4), nn.PReLU(4),
            nn.Conv1d(4, 4, 3, groups=4), nn.ConvTranspose1d(4, 2, 3), Flattened(),
            nn.Linear(20, 2),
        ),
        lambda: stack(
            (14, 3), layers.Conv1D(4, 3, dilation_rate=2), BN(), layers.PReLU(shared_axes=[1]),
            layers.DepthwiseConv1D(3), layers.Conv1DTranspose(2, 3), layers.Flatten(),
            layers.Dense(2),
        ),
    ),
    "three dimensions, groups": (
        lambda: nn.Sequential(
            nn.Conv3d(4, 6, 2, groups=2), nn.GroupNorm(3, 6), nn.PReLU(),
            nn.ConvTranspose3d(6, 2, 2),
        ),
        lambda: stack(
            (3, 4, 3, 4), layers.Conv3D(6, 2, groups=2),
            layers.GroupNormalization(3), layers.PReLU(shared_axes=[1, 2, 3]),
            layers.Conv3DTranspose(2, 2),
        ),
    ),
    "depthwise with a multiplier": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)),
        lambda: stack((5, 6, 3), layers.DepthwiseConv2D(3, depth_multiplier=2), BN()),
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 5),
            nn.LayerNorm(5, elementwise_affine=False), nn.RMSNorm(5), Flattened(),
            nn.Linear(30, 2),
        ),
        lambda: stack(
            (6,), layers.Embedding(7, 4), layers.LayerNormalization(), layers.Dense(5),
            layers.LayerNormalization(center=False, scale=False), layers.RMSNormalization(),
            layers.Flatten(), layers.Dense(2), dtype="int32",
        ),
    ),
    "a shared layer": (
        lambda: (lambda norm: nn.Sequential(norm, nn.Linear(4, 4), norm))(nn.BatchNorm1d(4)),
        shared,
    ),
}


def shaken(module):
    """A module with statistics and weights that do something."""
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.ndim == 1 and name.endswith(("weight", "running_var")):
                value.uniform_(0.5, 2.0)
            elif value.ndim == 1:
                value.normal_(0.0, 0.5)
            elif value.ndim == 0:
                value.fill_(100)
    return module


def shaken_model(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def frozen_values(module):
    return [(name, value.clone()) for name, value in module.state_dict().items()]


def check_outputs():
    for name, (make, make_keras) in CASES.items():
        module, model = shaken(make()), make_keras()
        before, old = frozen_values(module), [w.numpy() for w in model.weights]
        new, certificate = from_torch(model, module)
        assert certificate.relative is not None and certificate.relative < CLOSE, (
            name, str(certificate)
        )
        assert all(np.array_equal(one, w.numpy()) for one, w in zip(old, model.weights))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state, back = to_torch(new, make())
        assert back.relative < CLOSE, (name, str(back))
        for key, value in before:
            if "num_batches" not in key:
                assert torch.equal(state[key], value), (name, key)
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in before)
        assert module.training
    return 2 * len(CASES)


def check_other_weights_reach_pytorch():
    """What was never in PyTorch: Keras's own weights, with Keras's epsilon."""
    for name in ("mobilenet", "flatten behind a convolution", "an image from a dense layer"):
        make, make_keras = CASES[name]
        model, module = shaken_model(make_keras()), make()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            state, certificate = to_torch(model, module)
        assert certificate.relative < CLOSE, str(certificate)
        module.load_state_dict(state)
        for key, settings in certificate.figures.get("to set", {}).items():
            vars(module.get_submodule(key)).update(settings)
        again, checked = from_torch(model, module)
        assert checked.relative < CLOSE and not any("→" in row.note for row in checked.rows)
        assert name == "mobilenet" or any("eps" in str(one.message) for one in said)
    return 3


def check_mistakes_are_found():
    make, make_keras = CASES["mobilenet"]
    module = shaken(make())
    # The settings of the module are those of the new model, and the table says so.
    new, certificate = from_torch(make_keras(), module)
    norms = [layer for layer in new.layers if isinstance(layer, BN)]
    assert {layer.momentum for layer in norms} == {0.99}
    module[1].eps, module[1].momentum = 1e-5, 0.3
    new, certificate = from_torch(make_keras(), module)
    assert (norms := [la for la in new.layers if isinstance(la, BN)])[0].momentum == 0.7
    assert norms[0].epsilon == 1e-5 and norms[1].epsilon == 1e-3
    assert "epsilon 0.001 → 1e-05; momentum 0.99 → 0.7" in str(certificate)
    # Another computation with the same weights: nothing but the outputs shows it.
    model = make_keras()
    activation = stack((16, 16, 3), *[
        layers.ReLU(3.0) if isinstance(layer, layers.ReLU) else layer for layer in model.layers
    ])
    try:
        from_torch(activation, module)
        raise AssertionError("not found")
    except OutputsDiffer as error:
        assert "from_torch" in str(error) and "batch_norm" in str(error)
    # Settings that differ are named with the pair.
    for change, said in [
        (lambda: setattr(module[0], "stride", (1, 1)), "strides (2, 2) in Keras and (1, 1)"),
        (lambda: setattr(module[1], "track_running_stats", False), "strides"),
    ]:
        change()
        try:
            from_torch(make_keras(), module)
            raise AssertionError("not found")
        except ValueError as error:
            assert said in str(error) and "'0' (Conv2d" in str(error), error
    bare = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    try:
        from_torch(stack((3,), layers.Dense(2), BN()), bare)
        raise AssertionError("not found")
    except ValueError as error:
        assert "track_running_stats=False" in str(error)
    return 6


if __name__ == "__main__":
    print(
        keras.backend.backend(),
        check_outputs() + check_other_weights_reach_pytorch() + check_mistakes_are_found(),
    )
