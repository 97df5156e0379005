"""A user's own nets and losses: what is built, what is trained, and what is refused."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import normal

from bn_keras import BatchNorm, api, nets, own
from bn_keras.config import ConfigError, RunConfig
from bn_keras.data import from_python
from bn_keras.data.splits import make_splits
from bn_keras.diagnostics.keras_metric import KerasMetric
from bn_keras.diagnostics.probe import Nets, make_probe
from bn_keras.loop import Steps, batch_indices
from bn_keras.models.blocks import normalizers
from bn_keras.plan import full_name
from bn_keras.registry import PROBES
from bn_keras.results import Store
from bn_keras.runner import Runner

X = normal((120, 5))
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
STEPS, BATCH, RATE = 4, 16, 0.1


def splits(labels=LABELS, inputs=X):
    return make_splits(from_python((inputs, labels)))


def functional(normalizer):
    inputs = keras.Input((5,))
    x = keras.layers.ReLU()(normalizer()(keras.layers.Dense(6)(inputs)))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def sequential(normalizer):
    return keras.Sequential([
        keras.Input((5,)), keras.layers.Dense(6), normalizer(name="inside"), keras.layers.ReLU(),
        keras.layers.Dropout(0.5), keras.layers.Dense(3),
    ])


def nested(normalizer):
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Dense(3)(sequential(normalizer)(inputs)))


class Subclassed(keras.Model):
    def __init__(self, normalizer):
        super().__init__()
        self.first, self.last = keras.layers.Dense(6), keras.layers.Dense(3)
        self.normalizer = normalizer()

    def call(self, inputs, training=None):
        return self.last(keras.ops.relu(self.normalizer(self.first(inputs), training=training)))


def subclassed(normalizer):
    return Subclassed(normalizer)


KINDS = [functional, sequential, nested, subclassed]


def config(model, **settings):
    if not isinstance(model, str):
        model = own.give(getattr(model, "__name__", "net"), model, repr(model))
    return RunConfig(**{
        "model": model, "optimizer": "sgd", "learning_rate": RATE, "batch_size": BATCH,
        "steps": STEPS, "measure": (), "eval_interval": 2, "log_interval": 2, **settings,
    })


def run(settings, data, tmp_path):
    result, = Runner(lambda config: data, Store(tmp_path))([settings])
    return result


def kernels(model):
    return [w.numpy() for w in model.trainable_weights if w.name == "kernel"]


def fitted(settings, data, loss):
    """The same run by Keras's own train_on_batch."""
    model = nets.build(settings, data)
    model.compile(keras.optimizers.SGD(RATE), loss)
    rng = np.random.default_rng(settings.seed)
    for batch in batch_indices(len(data.train), BATCH, STEPS, rng):
        model.train_on_batch(data.train.images[batch], data.train.labels[batch])
    return model.evaluate(data.validation.images, data.validation.labels, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", ["keras_batch", "layer", "none"])
@pytest.mark.parametrize("build", [functional, subclassed])
def test_a_net_of_ones_own_learns_what_keras_teaches_it(build, normalizer, tmp_path):
    data, settings = splits(), config(build, normalizer=normalizer, seed=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = run(settings, data, tmp_path)
    assert found.metrics["validation_loss"] == pytest.approx(fitted(settings, data, loss), 1e-4)
    assert any(note.startswith("loss: SparseCategoricalCrossentropy of lo") for note in found.notes)


@pytest.mark.parametrize("build", KINDS)
def test_arms_of_a_seed_start_from_equal_kernels_and_seeds_from_others(build):
    data = splits()
    none, batch, other = (
        kernels(nets.build(config(build, normalizer=name, seed=seed), data))
        for name, seed in (("none", 1), ("batch", 1), ("batch", 2))
    )
    for one, two, three in zip(none, batch, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(two, three)


def test_building_leaves_the_random_state_of_the_process():
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    nets.build(config(functional), splits())
    assert np.random.random() == expected


@pytest.mark.parametrize("build", KINDS)
def test_a_finished_net_keeps_its_weights_but_for_the_normalizer(build):
    data = splits()
    model = build(lambda name=None: keras.layers.BatchNormalization(momentum=0.7, name=name))
    model(data.train.images[:2])
    before = [w.numpy() for w in model.weights]
    found = nets.build(config(model, normalizer="batch"), data)
    ours, = [layer for layer in found._flatten_layers() if isinstance(layer, BatchNorm)]
    assert ours.momentum == pytest.approx(0.7)
    np.testing.assert_allclose(
        found(data.test.images, training=False), model(data.test.images, training=False),
        atol=1e-5,
    )
    asked = nets.build(config(model, normalizer="batch", momentum=0.5), data)
    ours, = [layer for layer in asked._flatten_layers() if isinstance(layer, BatchNorm)]
    assert ours.momentum == 0.5
    for one, two in zip(kernels(nets.build(config(model, normalizer="none"), data)),
                        kernels(model), strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(before, model.weights):
        np.testing.assert_array_equal(one, two.numpy())


def test_an_arm_that_lost_the_offsets_of_a_finished_net_says_so():
    dense = [keras.layers.Dense(4, use_bias=bias) for bias in (False, True)]
    model = keras.Sequential([keras.Input((5,)), dense[0], keras.layers.BatchNormalization(),
                              dense[1]])
    data = splits()
    notes = {
        name: nets.task(settings, nets.build(settings, data), data).notes
        for name in ("none", "batch") for settings in [config(model, normalizer=name)]
    }
    assert "none: 1 layers of this net have no bias" in " ".join(notes["none"])
    assert "bias" not in " ".join(notes["batch"])


def test_new_weights_of_a_finished_net_follow_from_the_seed_and_not_from_the_arm():
    data, model = splits(), functional(keras.layers.BatchNormalization)
    none, batch, other = (
        kernels(nets.build(config(model, normalizer=name, seed=seed, weights="new"), data))
        for name, seed in (("none", 1), ("batch", 1), ("batch", 2))
    )
    for one, two, three, given in zip(none, batch, other, kernels(model), strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(two, three) and not np.array_equal(two, given)


def test_a_file_of_a_net_is_loaded(tmp_path):
    model = functional(keras.layers.BatchNormalization)
    model.save(tmp_path / "net.keras")
    name = full_name(str(tmp_path / "net.keras"))
    found = nets.build(config(name, normalizer="none"), splits())
    for one, two in zip(kernels(found), kernels(model), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_a_net_of_keras_applications_is_made_for_the_data():
    data = splits(LABELS, normal((120, 32, 32, 3)))
    found = nets.build(config("applications:MobileNetV2", normalizer="none"), data)
    assert found.output_shape == (None, 3)
    assert not [layer for layer in found._flatten_layers()
                if isinstance(layer, keras.layers.BatchNormalization)]


LOSSES = {
    "ints, logits": (LABELS, 3, None, "sparse_logits"),
    "two classes, one sigmoid": (LABELS > 0, 1, "sigmoid", keras.losses.BinaryCrossentropy()),
    "two classes, one logit":
        (LABELS > 0, 1, None, keras.losses.BinaryCrossentropy(from_logits=True)),
    "softmax": (LABELS, 3, "softmax", keras.losses.SparseCategoricalCrossentropy()),
    "numbers": (X[:, 2], 1, None, keras.losses.MeanSquaredError()),
    "several numbers": (X[:, 2:4], 2, None, keras.losses.MeanSquaredError()),
    "several labels":
        (np.stack([LABELS > 0, LABELS > 1, X[:, 2] > 0], 1).astype(int), 3, "sigmoid",
         keras.losses.BinaryCrossentropy()),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_is_the_usual_one_for_labels_and_last_layer(case, tmp_path):
    labels, units, activation, loss = LOSSES[case]
    if loss == "sparse_logits":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def build(normalizer):
        return keras.Sequential([
            keras.Input((5,)), normalizer(), keras.layers.Dense(units, activation=activation),
        ])

    data = splits(labels)
    settings = config(build, normalizer="keras_batch")
    found = run(settings, data, tmp_path)
    expected = fitted(settings, data, loss)
    assert found.metrics["validation_loss"] == pytest.approx(expected, rel=1e-4)
    if not data.regression:
        model = nets.build(dataclasses.replace(settings, normalizer="none"), data)
        outputs = model.predict(data.test.images, verbose=0)
        threshold = 0.5 if activation == "sigmoid" else 0
        guesses = outputs.argmax(1) if units > 1 else outputs[:, 0] > threshold
        task = nets.task(settings, model, data).task
        ours = task.accuracy(
            keras.ops.convert_to_tensor(data.test.labels[:, None]), outputs[:, None]
        )
        assert float(ours[0]) == pytest.approx(np.mean(guesses == data.test.labels))


def sparse(labels, outputs):
    return keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [
    keras.losses.CategoricalCrossentropy(from_logits=True),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True), sparse,
])
def test_a_loss_of_ones_own_gets_the_labels_that_it_wants(loss, tmp_path):
    data, settings = splits(), config(functional, loss=own.give("mine", loss, "mine"))
    found = run(settings, data, tmp_path)
    oracle = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert found.metrics["validation_loss"] == pytest.approx(fitted(settings, data, oracle), 1e-4)


def of_any_form(labels, outputs):
    """A loss that takes labels of every form, and gives other values for each."""
    rows = keras.ops.cast(keras.ops.reshape(labels, (keras.ops.shape(outputs)[0], -1)), "float32")
    return len(labels.shape) * keras.ops.square(rows[:, :1] - outputs)


class OfAnyForm(keras.losses.Loss):
    def call(self, labels, outputs):
        return of_any_form(labels, outputs)


FORMS = {"numbers": LABELS, "column": LABELS[:, None], "one-hot": np.eye(3, dtype="f")[LABELS]}


@pytest.mark.parametrize("loss", [of_any_form, OfAnyForm(), functools.partial(of_any_form)])
@pytest.mark.parametrize("y", FORMS)
def test_a_loss_and_a_metric_of_ones_own_get_the_labels_that_fit_gives_them(y, loss):
    labels = FORMS[y]
    data = splits(labels)
    net = functional(keras.layers.BatchNormalization)
    settings = config(functional, loss=own.give("mine", loss, [y, repr(loss)]))
    told = nets.task(settings, net, data)
    metric = own.give("metric", of_any_form, "metric")
    found = KerasMetric(Nets(net, data, told.task, None), metric).at_end()
    rows = data.labels_as_given().test
    places = [np.argwhere((X.astype("float32") == row).all(1))[0, 0] for row in rows.images]
    np.testing.assert_array_equal(rows.labels, labels[places])
    net.compile(loss=loss, metrics=[of_any_form])
    expected = net.evaluate(rows.images, rows.labels, verbose=0)
    outputs = net.predict(rows.images, verbose=0)
    losses = told.task.losses(data.test.labels[:, None], outputs[:, None])
    assert float(np.mean(losses)) == pytest.approx(expected[0], rel=1e-5)
    assert found["test_metric_metric"][0] == pytest.approx(expected[1], rel=1e-5)
    kind = "one-hot rows" if y == "one-hot" else "class numbers"
    assert any(f"mine gets the labels as in fit: {kind}" in note for note in told.notes)


@pytest.mark.parametrize("loss, y, note", [
    ("categorical_crossentropy", "numbers", "gets the classes as one-hot rows; fit needs"),
    (keras.losses.CategoricalCrossentropy(), "one-hot", None),
    (keras.losses.SparseCategoricalCrossentropy(reduction="sum"), "column", "reduction='sum'"),
    ("sparse_categorical_crossentropy", "one-hot", "as class numbers; fit needs them so in y"),
])
def test_what_a_keras_loss_gets_in_place_of_the_labels_is_told(loss, y, note):
    name = own.give("keras", loss, [repr(loss), y])
    net = functional(keras.layers.Identity)
    told = nets.task(config(functional, loss=name), net, splits(FORMS[y]))
    assert [note in told for told in told.notes] == ([True] if note else [])


@pytest.mark.slow
def test_several_inputs_are_trained_as_keras_trains_them(tmp_path):
    data = splits(inputs={"left": X, "right": X[:, :2]})
    settings = config(several_inputs, normalizer="keras_batch", measure=("one_at_a_time",))
    found = run(settings, data, tmp_path)
    model = nets.build(settings, data)
    model.compile(
        keras.optimizers.SGD(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    for batch in batch_indices(len(data.train), BATCH, STEPS, np.random.default_rng(0)):
        taken = data.train.take(batch)
        model.train_on_batch(taken.images, taken.labels)
    expected = model.evaluate(data.validation.images, data.validation.labels, verbose=0)
    assert found.metrics["validation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_images_out_are_trained_on_images(tmp_path):
    images = normal((40, 6, 6, 1))
    data = splits(0.5 * images, images)

    def build(normalizer):
        return keras.Sequential([
            keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 3, padding="same"), normalizer(),
            keras.layers.Conv2D(1, 3, padding="same"),
        ])

    settings = config(build, normalizer="keras_batch")
    found = run(settings, data, tmp_path)
    expected = fitted(settings, data, keras.losses.MeanSquaredError())
    assert found.metrics["validation_loss"] == pytest.approx(expected, rel=1e-4)


def several_inputs(normalizer):
    left, right = keras.Input((5,), name="left"), keras.Input((2,), name="right")
    x = keras.layers.Concatenate()([keras.layers.Dense(4)(left), right])
    return keras.Model({"left": left, "right": right}, keras.layers.Dense(3)(normalizer()(x)))


class Traced(Subclassed):
    @tf.function
    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


# The place of the normalizer in the tags of its histograms; None: what does not look is refused.
PLACES = {functional: "normalizer_1", sequential: "inside", nested: "inside",
          subclassed: "normalizer_1", several_inputs: "normalizer_1", Traced: None}
METRIC = own.give("error", keras.metrics.MeanAbsoluteError(), "error")
# Those that every run has are always made.
ASKED = [
    {"keras_metric": f"keras_metric:{METRIC}", "pitfall_curve": "pitfall_curve:correct"}.get(
        name, name
    ) for name in PROBES.names()
]
LOOK_INSIDE = ("histograms", "layers", "units", "population_loss")
OTHERS = [name for name in ASKED if name not in LOOK_INSIDE]


@pytest.mark.slow
@pytest.mark.parametrize("finished, asked, arms", [
    pytest.param(False, LOOK_INSIDE, ("none", "batch", "group"), id="inside a built one"),
    pytest.param(True, LOOK_INSIDE, ("none", "batch", "group"), id="inside a finished one"),
    # These run the net as it stands, whatever its normalizer: `batch` has most for them to do.
    pytest.param(False, OTHERS, ("batch",), id="others of a built one"),
    pytest.param(True, OTHERS, ("batch",), id="others of a finished one"),
])
@pytest.mark.parametrize("build", PLACES)
def test_every_probe_looks_into_a_net_of_ones_own_or_is_refused_before_training(
    build, finished, asked, arms
):
    data = splits(inputs={"left": X, "right": X[:, :2]} if build is several_inputs else X)
    model = functools.partial(build)
    model.__name__ = "mine"
    if finished:
        model = build(lambda name="normalizer_1": BatchNorm(name=name))
        model(data.train.first(2).images)
    for normalizer in arms:
        settings = config(model, normalizer=normalizer)
        net = nets.build(settings, data)
        made = Nets(net, data, nets.task(settings, net, data).task, None)
        made.configs, made.batches = [settings], np.arange(12)[None, :, None]
        steps = Steps(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1))
        for name in asked:
            if PLACES[build] is None and name in LOOK_INSIDE:
                if name != "population_loss" or normalizer == "batch":
                    with pytest.raises(ValueError, match="inside a tf.function.*(leave|expected)"):
                        make_probe(name, made)
                continue
            found = make_probe(name, made)
            values = {**found.start(), **found.at_start(), **found.during(1, steps),
                      **found.at_end()}
            for metric, value in values.items():
                assert np.shape(value) == (1,), (name, metric)
            if name == "histograms":
                tags = found.histograms(1)
                place = PLACES[build]
                assert {f"{place}/input", f"{place}/output"} <= set(tags)
                assert (f"{place}/moving_mean" in tags) == (normalizer == "batch")
                layer, = normalizers(net)
                ours = tags[f"{place}/output"][0]
                close = layer(tags[f"{place}/input"][0], training=False)
                np.testing.assert_allclose(ours, close, atol=1e-5)
            if name == "layers":
                behind = [key for key in values if key.startswith("end_std")]
                assert behind == ["end_std_layer_1", "end_std_layer_2"][:1 + (build is nested)]


def test_guesses_of_one_output_and_penalties_of_whole_kernels_are_measured():
    regularizer = keras.regularizers.OrthogonalRegularizer(0.1)  # takes a matrix, and no row of one

    def build(normalizer):
        return keras.Sequential([
            keras.Input((5,)), keras.layers.Dense(4, kernel_regularizer=regularizer), normalizer(),
            keras.layers.Dense(1),
        ])

    data, settings = splits(LABELS > 0), config(build)
    net = nets.build(settings, data)
    made = Nets(net, data, nets.task(settings, net, data).task, None)
    made.configs = [settings]
    penalty = float(regularizer(net.layers[0].kernel))
    assert make_probe("penalty", made).at_end()["penalty"] == pytest.approx([penalty])
    for bias, classes in ((0.0, 2), (-100.0, 1)):  # logits of both signs, and negative ones
        net.layers[-1].bias.assign([bias])
        guesses = net.predict(made.curve_set.images, verbose=0) > 0
        assert len(np.unique(guesses)) == classes
        found = make_probe("predicted_classes", made).at_end()["predicted_classes"]
        assert found.tolist() == [classes]


def test_one_probe_may_be_named_by_a_text():
    assert api.split({"measure": "layers"})[0] == {"measure": ("layers",)}
    assert api.split({"measure": "layers, units"})[0] == {"measure": ("layers", "units")}
    with pytest.raises(ConfigError, match="measure=3: expected names"):
        api.split({"measure": 3})


def raises(normalizer):
    normalizer()
    raise KeyError("nothing here")


def two_outputs(normalizer):
    inputs = keras.Input((5,))
    return keras.Model(inputs, [keras.layers.Dense(3)(normalizer()(inputs)), inputs])


REFUSED = {
    "raises": (raises, {}, "building it raised KeyError: 'nothing here' .*test_own_nets.py, line"),
    "nothing": (lambda normalizer: normalizer() and None, {}, "gave nothing; expected a keras.Mo"),
    "a layer": (lambda normalizer: normalizer(), {}, "gave a bn_keras.*; expected a keras.Model"),
    "ignores it": (lambda normalizer: functional(keras.layers.BatchNormalization), {},
                   "never called the normalizer that it was given"),
    "elsewhere": (lambda normalizer: normalizer() and functional(keras.layers.BatchNormalization),
                  {}, "does not use a layer of the normalizer"),
    "no argument": (lambda: functional(keras.layers.BatchNormalization), {}, "takes no argument"),
    "two outputs": (two_outputs, {}, "it has 2 outputs; expected one tensor"),
    "few outputs": (lambda normalizer: keras.Sequential([
        keras.Input((5,)), normalizer(), keras.layers.Dense(2)]), {},
        r"outputs of shape \(2,\) for 3 classes; expected \(3,\)"),
    "other inputs": (lambda normalizer: keras.Sequential([
        keras.Input((7,)), normalizer(), keras.layers.Dense(3)]), {},
        r"does not take the examples, of shape \(5,\)"),
    "a class": (Subclassed, {}, "is Subclassed; expected a function"),
    "no normalizer": (keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]), {},
                      "no .*normaliz"),
    "dropout": (functional, {"dropout": 0.5}, "dropout=0.5 with model='functional': only the"),
    "policy": (functional(keras.layers.BatchNormalization), {"dtype_policy": "mixed_float16"},
               "a finished net has policies of its own"),
    "kernels": (functional, {"normalizer": "weight_standardized_group"},
                "changes more than its own place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_net_that_cannot_be_compared_is_refused_in_a_sentence(case):
    model, settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        nets.build(config(model, **settings), splits())


WIDTHS = iter(range(4, 100))


@pytest.mark.slow
def test_a_function_that_gives_other_nets_is_refused(tmp_path):
    def build(normalizer):
        return keras.Sequential([
            keras.Input((5,)), keras.layers.Dense(next(WIDTHS)), normalizer(),
            keras.layers.Dense(3),
        ])

    first, second = (config(build, seed=seed) for seed in range(2))
    runner = Runner(lambda config: splits(), Store(tmp_path))
    runner([first])
    with pytest.raises(ConfigError, match="it gave a net with weights of other shapes"):
        runner([second])


def test_a_net_without_trainable_weights_is_refused(tmp_path):
    model = functional(keras.layers.BatchNormalization)
    model.trainable = False
    with pytest.raises(ConfigError, match="none of its weights is trainable"):
        run(config(model), splits(), tmp_path)


@pytest.mark.parametrize("loss, message", [
    (lambda labels, outputs: "x", "raised ValueError"),
    (lambda labels, outputs: 1 / 0, r"raised .* it got labels as in fit, of shape \(7,\),"),
    (lambda labels, outputs: outputs.numpy(), "raised inside a graph "),
    (lambda labels, outputs: keras.ops.mean(outputs), r"gave values of shape \(\) for labels"),
])
def test_a_loss_that_gives_no_numbers_is_refused(loss, message, tmp_path):
    given = own.give("mine", loss, message)
    with pytest.raises(ConfigError, match=f"loss='mine': {message}"):
        run(config(functional, loss=given), splits(), tmp_path)
    compiled = functional(keras.layers.BatchNormalization)
    compiled.compile(loss=loss)
    with pytest.raises(ConfigError, match=f"loss='<lambda>': {message}"):
        run(config(compiled), splits(), tmp_path)


def test_a_loss_that_compares_each_label_with_all_outputs_is_refused():
    class Squared(keras.losses.Loss):
        def call(self, labels, outputs):
            return keras.ops.square(labels - outputs)

    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    settings = config(functional, loss=own.give("mine", Squared(), "squared"))
    with pytest.raises(ConfigError, match="compares each label with all outputs, in fit as well"):
        nets.task(settings, net, splits(X[:, 0]))
    nets.task(settings, net, splits(X[:, :1]))


@pytest.mark.slow
def test_a_finished_net_may_have_outputs_that_its_examples_lack(tmp_path):
    """Labels 1 and 2 of a net of three classes: the second and third outputs are theirs."""
    # momentum 1 and the rate keep the net as it is given, so that it can be asked after the run
    model = functional(functools.partial(keras.layers.BatchNormalization, momentum=1.0))
    kept = LABELS > 0
    data = splits(LABELS[kept], X[kept])
    found = run(config(model, normalizer="keras_batch", learning_rate=1e-9), data, tmp_path)
    guesses = model.predict(data.test.images, verbose=0).argmax(1)
    assert found.metrics["test_accuracy"] == pytest.approx(np.mean(guesses == data.test.labels))
    assert "its labels are 1 to 2, 2 of the classes 0 to 2" in found.notes[0]
    assert any(note.startswith("weights: every seed starts") for note in found.notes)
