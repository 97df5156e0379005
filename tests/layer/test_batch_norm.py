"""BatchNorm against the NumPy reference and against Keras's layer."""

import functools
import gc
import itertools
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import MODES, covering, normal

from bn_keras import BatchNorm
from bn_keras.batch_norm import functional, reference

SHAPES = {2: (6, 3), 3: (4, 5, 3), 4: (3, 4, 5, 3), 5: (2, 3, 2, 4, 3)}
data = functools.partial(normal, mean=1.5, deviation=2.0)
LAYERS = {"ours": BatchNorm, "keras": keras.layers.BatchNormalization}


RANKS_AND_AXES = [(rank, axis) for rank in SHAPES for axis in range(1, rank)]


def steps(layer, batches, masks=None, wrap=lambda function: function, training=True):
    """Outputs, gradients and weights of a layer after some calls and one inference."""
    weighting = data(batches[0].shape, seed=99)
    layer.build(batches[0].shape)
    for weight in layer.weights:
        weight.assign(1 + 0.3 * data(weight.shape, seed=7) ** 2)  # a variance is positive
    # A frozen layer's too: the loss may have use for them, though the optimizer has not.
    affine = [weight.value for weight in (layer.gamma, layer.beta) if weight is not None]

    def step(x, mask):
        with tf.GradientTape() as tape:
            tape.watch([x, *affine])
            y = layer(x, training=training, mask=mask)
            # A loss with a different pull on every output, so that no gradient cancels.
            loss = tf.reduce_sum(tf.cast(y, tf.float64) * weighting)
        return y, tape.gradient(loss, [x, *affine])

    step = wrap(step)
    found = []
    for number, x in enumerate(batches):
        mask = None if masks is None else tf.constant(masks[number])
        y, gradients = step(tf.constant(x), mask)
        found += [y, *gradients]
    found += [*layer.non_trainable_variables, layer(batches[0], training=False)]
    return [np.asarray(tf.cast(tf.convert_to_tensor(value), tf.float64)) for value in found]


def assert_alike(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("rank, axis", RANKS_AND_AXES)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_equals_keras_over_ranks_axes_and_dtypes(rank, axis, dtype, tolerance):
    batches = [data(SHAPES[rank], seed=seed, dtype=dtype) for seed in range(3)]
    found = {
        name: steps(layer(axis=axis, momentum=0.9, dtype=dtype), batches)
        for name, layer in LAYERS.items()
    }
    assert_alike(found["ours"], found["keras"], tolerance)


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("center, scale", [*itertools.product([True, False], repeat=2)])
def test_equals_keras_with_and_without_gamma_and_beta(rank, center, scale):
    batches = [data(SHAPES[rank], seed=seed) for seed in range(2)]
    found = {
        name: steps(layer(center=center, scale=scale, momentum=0.9), batches)
        for name, layer in LAYERS.items()
    }
    assert_alike(found["ours"], found["keras"], 1e-5)


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
def test_equals_keras_with_a_mask(rank, renorm):
    shape = SHAPES[rank]
    batches = [data(shape, seed=seed) for seed in range(3)]
    masks = [np.random.default_rng(seed).random(shape[:-1]) < 0.7 for seed in range(3)]
    found = {
        name: steps(layer(momentum=0.9, renorm=renorm), batches, masks)
        for name, layer in LAYERS.items()
    }
    assert_alike(found["ours"], found["keras"], 1e-5)


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize(
    "clipping", [None, {"rmax": 1.5, "rmin": 0.6, "dmax": 0.3}], ids=["free", "clipped"]
)
@pytest.mark.parametrize("center, scale", [(True, True), (False, False)])
def test_renorm_equals_keras(rank, clipping, center, scale):
    batches = [data(SHAPES[rank], seed=seed) for seed in range(4)]
    settings = {
        "momentum": 0.9, "renorm": True, "renorm_clipping": clipping, "renorm_momentum": 0.8,
        "center": center, "scale": scale,
    }
    found = {name: steps(layer(**settings), batches) for name, layer in LAYERS.items()}
    assert_alike(found["ours"], found["keras"], 1e-5)


FACTORS = {
    "place": [(rank, axis) for rank in SHAPES for axis in range(rank)],
    "dtype": ["float32", "float64", "mixed_bfloat16", "mixed_float16"],
    "mode": ["eager", "graph", "xla"],
    "phase": ["training", "inference", "frozen"],
    "mask": [False, True],
    "renorm": [False, True],
    "center": [True, False],
    "scale": [True, False],
}
TOLERANCES = {"float32": 1e-5, "float64": 1e-10, "mixed_bfloat16": 2e-2, "mixed_float16": 4e-3}


def keras_can(case):
    """Keras's layer takes a mask with channels last only."""
    rank, axis = case.get("place", (1, 0))
    return axis == rank - 1 or not case.get("mask")


CASES = covering(FACTORS, keras_can)


@pytest.fixture
def exact_masks():
    """Keras divides masked sums by n + 1e-7, which float64 shows; its fuzz factor is set to 0."""
    before = keras.config.epsilon()
    keras.config.set_epsilon(0.0)
    yield
    keras.config.set_epsilon(before)


@pytest.mark.usefixtures("exact_masks")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_equals_keras_in_every_pair_of_settings(case):
    """Outputs, all gradients and the statistics; Keras's layer runs eagerly, the plainest way."""
    rank, axis = case["place"]
    dtype, shape = case["dtype"].removeprefix("mixed_"), SHAPES[rank]
    batches = [tf.cast(data(shape, seed=seed, dtype="float64"), dtype).numpy() for seed in range(3)]
    masks = None
    if case["mask"]:
        masks = [np.random.default_rng(seed).random(shape[:-1]) < 0.7 for seed in range(3)]
    settings = {
        **{name: case[name] for name in ("center", "scale", "renorm", "dtype")},
        "axis": axis, "momentum": 0.9, "renorm_momentum": 0.8,
        "trainable": case["phase"] != "frozen",
    }
    found = {}
    for name, wrap in (("ours", MODES[case["mode"]]), ("keras", MODES["eager"])):
        layer = LAYERS[name](**settings)
        found[name] = steps(layer, batches, masks, wrap, training=case["phase"] != "inference")
        assert layer.moving_mean.dtype == ("float64" if dtype == "float64" else "float32")
    assert_alike(found["ours"], found["keras"], TOLERANCES[case["dtype"]])


def test_every_pair_of_settings_that_keras_can_has_its_case():
    for (first, ones), (second, others) in itertools.combinations(FACTORS.items(), 2):
        for one, other in itertools.product(ones, others):
            if keras_can({first: one, second: other}):
                assert any(case[first] == one and case[second] == other for case in CASES)
    assert all(keras_can(case) for case in CASES)
    assert len(FACTORS["place"]) * len(FACTORS["dtype"]) <= len(CASES) < 80


@pytest.mark.parametrize("rank, axis", RANKS_AND_AXES)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_batch_norm_function_and_gradients_match_the_reference(rank, axis, masked):
    x = data(SHAPES[rank])
    channels = x.shape[axis]
    gamma, beta, dy = data((channels,), seed=1), data((channels,), seed=2), data(x.shape, seed=3)
    mask = np.random.default_rng(4).random(np.delete(x.shape, axis)) < 0.7 if masked else None
    inputs = [tf.constant(value) for value in (x, gamma, beta)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y, mean, variance = functional.batch_norm(*inputs, axis=axis, mask=mask)
    found = [y, mean, variance, *tape.gradient(y, inputs, output_gradients=tf.constant(dy))]
    expected = [
        *reference.forward(x, gamma, beta, axis=axis, mask=mask),
        *reference.backward(dy, x, gamma, axis=axis, mask=mask),
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("rank", SHAPES)
def test_moving_statistics_and_inference_match_the_reference(rank):
    layer = BatchNorm(momentum=0.7)
    mean, variance = 0.0, 1.0
    for seed in range(3):
        x = data(SHAPES[rank], seed=seed)
        layer(x, training=True)
        _, batch_mean, batch_variance = reference.forward(x)
        mean = reference.moving_average(mean, batch_mean, 0.7)
        variance = reference.moving_average(variance, batch_variance, 0.7)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)
    expected = reference.inference(x, mean, variance)
    np.testing.assert_allclose(layer(x, training=False), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4096, 2), (64, 8, 8, 2), (64, 64, 2)])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_variance_keeps_its_digits_far_from_zero(shape, masked):
    x = (1e4 + np.random.default_rng(0).normal(size=shape)).astype("float32")
    mask = np.ones(shape[:-1], bool) if masked else None
    _, _, variance = functional.batch_norm(tf.constant(x), None, None, mask=mask)
    expected = x.astype("float64").var(axis=tuple(range(len(shape) - 1)))
    np.testing.assert_allclose(variance, expected, rtol=1e-3)


def test_float16_statistics_are_float32_and_do_not_overflow():
    layer = BatchNorm(dtype="float16", momentum=0.0)
    x = np.full((4, 8, 8, 1), 300.0, "float16")
    x[:2] = -300.0
    y = layer(x, training=True)
    assert layer.moving_variance.dtype == "float32" and y.dtype == tf.float16
    np.testing.assert_allclose(layer.moving_variance, [90000.0], rtol=1e-3)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=["dense", "conv"])
def test_training_may_be_a_boolean_tensor(in_graph, renorm, shape):
    def call(layer):
        def run(x, training):
            return layer(x, training=training)

        return tf.function(run) if in_graph else run

    x = data(shape)
    settings = {"momentum": 0.9, "renorm": renorm, "renorm_momentum": 0.5}
    plain, switched = BatchNorm(**settings), BatchNorm(**settings)
    run = call(switched)
    for training in (True, False, True, False):
        expected = plain(x, training=training)
        before = [weight.numpy() for weight in switched.weights]
        np.testing.assert_allclose(run(x, tf.constant(training)), expected, atol=1e-5)
        if not training:
            for weight, value in zip(switched.weights, before, strict=True):
                np.testing.assert_array_equal(weight.numpy(), value)
        for one, other in zip(switched.weights, plain.weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_gradients_flow_through_a_training_tensor():
    x = tf.constant(data(SHAPES[4]))
    gradients = []
    for training in (True, tf.constant(True)):
        layer = BatchNorm()

        @tf.function
        def gradient(x, training):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(layer(x, training=training) ** 3)
            return tape.gradient(y, x)

        gradients.append(gradient(x, training))
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-4)


@pytest.mark.parametrize("training", [True, tf.constant(True)], ids=["bool", "tensor"])
def test_a_frozen_layer_infers_and_keeps_its_statistics(training):
    layer = BatchNorm(trainable=False)
    x = data((5, 3))
    np.testing.assert_allclose(layer(x, training=training), x / np.sqrt(1.001), rtol=1e-5)
    assert layer.moving_mean.numpy().tolist() == [0, 0, 0]


def test_a_propagated_mask_is_used_with_a_training_tensor_too():
    inputs = tf.constant([[[1.0], [3.0], [0.0]]])
    masked = keras.layers.Masking()(inputs)
    for training in (True, tf.constant(True)):
        layer = BatchNorm(momentum=0.0)
        layer(masked, training=training)
        assert layer.moving_mean.numpy().tolist() == [2.0]


def test_a_mask_works_with_channels_first():
    x, mask = data((4, 3, 6)), np.random.default_rng(0).random((4, 6)) < 0.5
    layer = BatchNorm(axis=1, momentum=0.0)
    y = layer(x, training=True, mask=tf.constant(mask))
    expected, mean, _ = reference.forward(x, axis=1, mask=mask)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)


@pytest.mark.parametrize("first, second", [("ours", "keras"), ("keras", "ours")])
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
def test_config_and_weights_pass_between_the_layers(first, second, renorm, tmp_path):
    source = LAYERS[first](
        axis=1, momentum=0.8, epsilon=1e-4, beta_initializer="ones", renorm=renorm,
        gamma_regularizer=keras.regularizers.L2(0.1), beta_constraint=keras.constraints.NonNeg(),
    )
    x = data((4, 3, 5))
    for _ in range(3):
        source(x, training=True)
    config = source.get_config()
    target = LAYERS[second].from_config(config)
    assert set(target.get_config()) >= set(config)
    assert {key: target.get_config()[key] for key in config} == config
    target.build(x.shape)
    assert [w.name for w in target.weights] == [w.name for w in source.weights]
    target.set_weights(source.get_weights())
    np.testing.assert_allclose(target(x), source(x), atol=1e-6)


@pytest.mark.parametrize("first, second", [("ours", "keras"), ("keras", "ours")])
def test_weights_files_pass_between_models_of_either_layer(first, second, tmp_path):
    def model(layer):
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3), layer(name="bn"), keras.layers.Dense(2)]
        )

    source, target = model(LAYERS[first]), model(LAYERS[second])
    x = data((8, 4))
    source(x, training=True)
    path = tmp_path / "model.weights.h5"
    source.save_weights(path)
    target.load_weights(path)
    np.testing.assert_allclose(target(x), source(x), atol=1e-6)


def test_a_saved_model_is_read_back_with_its_statistics(tmp_path):
    model = keras.Sequential([keras.Input((4,)), BatchNorm(momentum=0.5), keras.layers.Dense(2)])
    x = data((8, 4))
    model(x, training=True)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    assert type(again.layers[0]) is BatchNorm
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)


@pytest.mark.slow
def test_a_saved_model_is_read_without_this_package(tmp_path):
    model = keras.Sequential([keras.Input((4,)), BatchNorm(momentum=0.5), keras.layers.Dense(2)])
    x = data((8, 4))
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np\n"
        "layer = keras.layers.BatchNormalization\n"
        "objects = {'bn_keras>BatchNorm': layer}\n"
        "model = keras.models.load_model('model.keras', custom_objects=objects)\n"
        "assert type(model.layers[0]) is layer and 'bn_keras' not in sys.modules\n"
        "np.save('y.npy', model(np.load('x.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x), atol=1e-6)


@pytest.mark.parametrize("first, second", [("ours", "keras"), ("keras", "ours")])
def test_a_clone_with_the_other_layer_takes_the_weights(first, second):
    model = keras.Sequential(
        [keras.Input((4,)), LAYERS[first](momentum=0.5), keras.layers.Dense(2)]
    )
    x = data((8, 4))
    model(x, training=True)

    def swap(layer):
        kind = LAYERS[second] if isinstance(layer, LAYERS[first]) else type(layer)
        return kind.from_config(layer.get_config())

    clone = keras.models.clone_model(model, clone_function=swap)
    clone.set_weights(model.get_weights())
    assert type(clone.layers[0]) is LAYERS[second]
    np.testing.assert_allclose(clone(x), model(x), atol=1e-6)


@pytest.mark.slow
def test_the_automatic_name_is_that_of_keras():
    keras.utils.clear_session()
    assert BatchNorm().name == "batch_normalization"
    keras.utils.clear_session()
    assert LAYERS["keras"]().name == "batch_normalization"


@pytest.mark.slow
def test_fit_learns_like_keras():
    def history(layer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(8), layer(momentum=0.9),
             keras.layers.Activation("relu"), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse")
        x = data((64, 4))
        return model.fit(x, x.sum(1), epochs=3, shuffle=False, verbose=0).history["loss"]

    np.testing.assert_allclose(history(BatchNorm), history(LAYERS["keras"]), rtol=1e-4)


BAD_SETTINGS = [
    ({"momentum": 1.5}, "momentum=1.5"),
    ({"momentum": float("nan")}, "momentum=nan"),
    ({"epsilon": -1}, "epsilon=-1"),
    ({"renorm_momentum": -0.1}, "renorm_momentum=-0.1"),
    ({"axis": (1, 2)}, r"axis=\(1, 2\)"),
    ({"axis": 1.5}, "axis=1.5"),
    (
        {"renorm": True, "renorm_clipping": {"rmax": 0.5, "rmin": 2.0}},
        "Received: rmax=0.5, rmin=2.0",
    ),
    ({"renorm": True, "renorm_clipping": {"dmax": -1.0}}, "dmax=-1.0"),
    ({"renorm": True, "renorm_clipping": {"rmx": 1.0}}, "'rmx'"),
]


@pytest.mark.parametrize("settings, received", BAD_SETTINGS, ids=lambda value: str(value))
def test_a_bad_setting_is_refused_with_the_received_value(settings, received):
    with pytest.raises(ValueError, match=received):
        BatchNorm(**settings)


@pytest.mark.parametrize("axis", [[1], (1,), 1])
def test_axis_may_be_a_list_or_tuple_of_one(axis):
    assert BatchNorm(axis=axis).get_config()["axis"] == 1


def test_an_axis_out_of_range_names_axis_and_shape():
    with pytest.raises(ValueError, match=r"axis=7 .* \(2, 3\); expected -2 <= axis < 2"):
        BatchNorm(axis=7)(data((2, 3)))


def test_an_unfit_mask_names_both_shapes():
    with pytest.raises(ValueError, match=r"mask.shape=\(2, 3\), inputs.shape=\(2, 3\)"):
        BatchNorm()(data((2, 3)), training=True, mask=tf.ones((2, 3), tf.bool))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_graph_that_nobody_needs_leaves_the_memory(kind, training, jit_compile):
    """The second shape is one that the fused kernel takes."""
    layer = LAYERS[kind]()
    layer.build((None, 2, 2, 50))

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=training) ** 2)
        return tape.gradient(loss, x)

    graphs = []
    for shape in [(4, 2, 2, 50), (1000, 2, 2, 50)]:
        assert np.isfinite(step(tf.ones(shape))).all()
        graphs.append(weakref.ref(step.get_concrete_function(tf.TensorSpec(shape)).graph))
    assert all(graph() for graph in graphs)
    del step
    gc.collect()
    assert not any(graph() for graph in graphs)


def test_no_parametrization_shrank_to_nothing():
    assert len(RANKS_AND_AXES) == 1 + 2 + 3 + 4
