"""The doctor: every kind of model and data, what it does not look at, shows and mends."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

import bn_keras
from bn_keras import BatchNorm, FrozenBatchNorm
from bn_keras.diagnosis import doctor
from bn_keras.diagnostics.examination import Examination
from bn_keras.diagnostics.finding import SEVERITIES, CannotLook, Finding, NotLooked
from bn_keras.registry import FINDINGS, UnknownName
from bn_keras.surgery.recalibrate import recalibrated

KERAS = layers.BatchNormalization
WITHOUT_LABELS = {"train_inference_gap"}


@pytest.fixture(autouse=True)
def always_the_same_weights():
    keras.utils.set_random_seed(0)


def points(examples=192, mean=10.0, seed=0):
    """Three overlapping classes, far from mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, examples)
    centers = 2 * np.random.default_rng(9).normal(size=(3, 4))
    return (mean + 3 * (centers[y] + rng.normal(size=(examples, 4)))).astype("float32"), y


@pytest.fixture(scope="module")
def sick():
    """A good classifier, 5 steps of momentum .99 behind its initial statistics."""
    x, y = points(512)
    init = keras.initializers.LecunNormal(seed=0)
    model = keras.Sequential([
        keras.Input((4,)), layers.Dense(8, use_bias=False, kernel_initializer=init),
        KERAS(name="norm"), layers.ReLU(), layers.Dense(3),
    ])
    features = keras.Sequential(model.layers[:-1])
    norm, head = model.layers[1], model.layers[-1]
    inputs = np.array(model.layers[0](x))
    mean, variance = inputs.mean(0), inputs.var(0)
    norm.moving_mean.assign(mean), norm.moving_variance.assign(variance)
    seen = np.c_[np.array(features(x)), np.ones(len(x))]
    weights = np.linalg.lstsq(seen, 4 * np.eye(3)[y], rcond=None)[0]
    head.kernel.assign(weights[:-1]), head.bias.assign(weights[-1])
    left = 0.99**5
    norm.moving_mean.assign((1 - left) * mean)
    norm.moving_variance.assign((1 - left) * variance + left)
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def names(diagnosis):
    return {one.name for one in diagnosis.findings}


# ---------------------------------------------------------------- every kind of model and data


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_kind_of_model_is_looked_into_and_left_as_it_is(name):
    model = zoo.ZOO[zoo.NAMES.index(name)]()
    x = zoo.inputs_of(name)
    told, weights = zoo.told(model), [np.array(zoo.as_array(v)) for v in model.variables]
    attributes = {layer.name: set(vars(layer)) for layer in model._flatten_layers()}
    found = doctor(model, x)
    assert len(found.table) == len(Examination(model).normalizers) > 0
    whole = {one.name for one in found.not_looked if one.layer is None}
    assert whole <= WITHOUT_LABELS, found.not_looked
    assert all(row.mode in ("batch", "averages") for row in found.table)
    assert all(row.values and row.values > 1 for row in found.table)
    json.loads(found.to_json())
    assert told == zoo.told(model)
    for old, variable in zip(weights, model.variables, strict=True):
        np.testing.assert_array_equal(old, zoo.as_array(variable))
    assert attributes == {layer.name: set(vars(layer)) for layer in model._flatten_layers()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrays", "dataset", "PyDataset", "batches", "generator"])
def test_every_form_of_data_gives_the_same_findings(sick, form):
    x, y = points()
    batches = [(x[start:start + 32], y[start:start + 32]) for start in range(0, 192, 32)]

    class Indexed(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, number):
            return batches[number]

    data = {
        "arrays": (x, y), "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(32),
        "PyDataset": Indexed(), "batches": batches, "generator": iter(batches),
    }[form]
    found = doctor(sick, data)
    assert names(found) == {"averages_lag", "train_inference_gap"}
    assert found.gap.terms["lag"].value > 0.1 and "192 examples in 6 batches" in found.examples


@pytest.mark.slow
def test_several_inputs_and_outputs_are_looked_at_with_the_compiled_losses():
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other")
    x = layers.Concatenate()([KERAS(name="a")(one), BatchNorm(name="b")(other)])
    model = keras.Model([one, other], {"y": layers.Dense(3, name="y")(x),
                                       "z": layers.Dense(1, name="z")(x)})
    model.compile("sgd", {"y": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                          "z": "mse"}, loss_weights={"y": 1.0, "z": 0.5})
    x, y = points()
    data = [x, -x], {"y": y, "z": x[:, :1]}
    found = doctor(model, data)
    assert "statistics_initial" in names(found)
    expected = model.evaluate(*data, verbose=0)[0]
    assert found.gap.inference == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- what it did not look at


def test_without_data_or_labels_it_says_what_it_did_not_look_for(sick):
    nothing, unlabelled = doctor(sick), doctor(sick, points()[0])
    needs = {name: set(FINDINGS.properties(name)["needs"]) for name in FINDINGS.names()}
    for found, missing in ((nothing, {"data"}), (unlabelled, {"labels"})):
        expected = {name for name, need in needs.items() if need & missing}
        assert {one.name for one in found.not_looked} >= expected > set()
        assert set(found.looked) | {one.name for one in found.not_looked} == set(FINDINGS.names())
        assert f"not looked: {sorted(expected)[0]}" in str(found)
    assert "no data" in str(nothing) and "no labels" in str(unlabelled)


@pytest.mark.slow
def test_a_layer_in_a_graph_of_the_models_own_is_refused_by_name():
    class Graph(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = KERAS(name="hidden")
            self.forward = tf.function(lambda x: self.norm(x))

        def call(self, x, training=None):
            return self.forward(x)

    model = Graph()
    model(np.ones((2, 4), "float32"))
    found = doctor(model, points()[0])
    assert [row.mode for row in found.table] == ["unknown"]
    reasons = {one.reason for one in found.not_looked if one.name == "averages_lag"}
    assert "tf.function" in reasons.pop() and found.exit_status == 2 and not found.ok
    assert "statistics_initial" in names(found)  # what needs no forward pass is found all the same


FORWARD = {}


@tf.function
def global_graph(x):
    return FORWARD["norm"](x)


def test_a_layer_in_a_global_graph_is_refused_by_name():
    class Graph(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = KERAS(name="hidden")

        def call(self, x, training=None):
            FORWARD["norm"] = self.norm
            return global_graph(x)

    model = Graph()
    model(np.ones((2, 4), "float32"))
    found = doctor(model, points(8)[0])
    told = [one for one in found.not_looked if "tf.function" in one.reason]
    assert any("'hidden'" in one.reason or one.layer == "hidden" for one in told), found


def test_a_layer_that_the_model_never_calls_is_named():
    class Unused(Deaf):
        def call(self, x):
            return self.head(x)

    model = Unused()
    model.norm.build((None, 4))
    found = doctor(built(model), points())
    assert [row.mode for row in found.table] == ["not called"] and not found.findings
    assert ("norm", "") in {(one.layer, one.name) for one in found.not_looked}


def test_a_layer_that_may_hide_one_is_named():
    class Lazy(layers.Layer):
        def call(self, x):
            return x

    class Later(Deaf):
        def __init__(self):
            super().__init__()
            self.later = Lazy(name="later")

        def build(self, shape):
            self.norm.build(shape), self.head.build(shape)

    model = built(Later())
    (one,) = [one for one in doctor(model).not_looked if one.layer]
    assert (one.layer, one.name) == ("later", "") and "never called" in one.reason


def test_a_finding_that_fails_or_cannot_look_costs_no_other(sick, monkeypatch):
    def broken(examined):
        yield Finding("seen before the failure", "pass")
        raise ZeroDivisionError("of its own")

    def partly(examined):
        yield NotLooked("", "too dark", "norm")

    def blind(examined):
        raise CannotLook("no light")

    monkeypatch.setattr(FINDINGS, "_registered", dict(FINDINGS._registered))
    for part in (broken, partly, blind):
        FINDINGS.register(part.__name__, title="", severity="note", needs=())(part)
    found = doctor(sick, points(), only=["broken", "partly", "blind", "averages_lag"])
    assert [one.name for one in found.findings] == ["averages_lag", "broken"]
    assert found.looked == ("averages_lag",)  # "norm" is the only layer
    reasons = {one.name: (one.layer, one.reason) for one in found.not_looked}
    assert reasons["partly"] == ("norm", "too dark") and reasons["blind"] == (None, "no light")
    assert reasons["broken"][1].startswith("it failed: ZeroDivisionError: of its own (broken, line")


class Around(keras.Model):
    """Nobody knows what it takes: it has no graph of layers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, x, training=None):
        return self.net(x, training=training)


@pytest.mark.parametrize("look", [doctor, bn_keras.gap], ids=["doctor", "gap"])
def test_what_a_model_cannot_be_run_on_or_judged_by_is_one_message(sick, look):
    model, (x, y) = Around(sick), points()
    model(x[:2])
    late = np.where(np.arange(len(y)) == 150, 7, y)  # not in the first batch
    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", own)
    name = look.__name__
    for given, settings, words in (
        ((x[:, :3], y), {}, r"shape \(32, 3\), on which '.*' cannot be run: ValueError: Input 0"),
        ((x, late), {}, "as the model is compiled.* of labels of type int.*: Inv.* without labels"),
        ((x, np.array(list("abc"))[y]), {}, r"of labels of type <U1 and shape \(32,\) and outputs"),
        ((x, y), {"loss": "foo"}, "loss='foo'; expected a loss as model.compile takes it"),
        ((x, y), {"loss": "mse"}, "mse, as given.* cannot be computed of labels of type int"),
        (tf.data.Dataset.from_tensor_slices((x, y)), {}, "of single examples, .*batch.32"),
        ((x, y), {"train": (x[:, :3], y)}, r"shape \(32, 3\), on which '.*' cannot be run"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*{words}") as found:
            look(model, given, **settings)
        assert not re.search("x1b|\x1b|Arguments|\n|\\.\\.$", str(found.value))


def test_a_step_of_the_models_own_may_take_labels_of_any_kind(sick):
    class Stepping(Around):
        def train_step(self, data):
            return {}

    model, (x, y) = Stepping(sick), points()
    model(x[:2])
    model.compile("sgd", "sparse_categorical_crossentropy")
    found = doctor(model, (x, np.stack([y, y, y, y], 1)))
    reason = {one.name: one.reason for one in found.not_looked}["train_inference_gap"]
    assert "cannot be computed of labels" in reason and found.looked


@pytest.mark.slow
def test_examples_without_a_finite_loss_have_no_gap_to_be_told(sick):
    x, y = points()
    found = doctor(sick, (x * np.nan, y))
    assert not found.ok and "not_finite" in names(found)
    assert "nan (not every output is finite)" in str(found) and "one batch" not in str(found)
    assert not {"averages_lag", "dead_channels", "far_from_zero"} & set(found.looked)
    x[3] = np.nan
    with pytest.raises(ValueError, match="gap: 1 of 192 examples hold NaN or inf, and"):
        bn_keras.gap(sick, (x, y))


def test_what_no_finding_needs_is_not_measured(sick):
    found = doctor(sick, points(), only="statistics_initial")
    assert found.gap is None and found.table[0].statistics == "not compared" and found.ok


def test_a_finding_that_looked_at_no_layer_did_not_look():
    model = chain(KERAS(name="norm"), layers.ReLU())
    found = doctor(model, points(10), only="dead_channels")
    assert found.looked == () and found.exit_status == 2
    assert "looked, and nothing found" not in str(found)


@pytest.mark.slow
def test_a_layer_that_no_example_reaches_in_inference_is_not_called_exact():
    class Auxiliary(Deaf):
        def __init__(self):
            super().__init__()
            self.aux = BatchNorm(name="aux")

        def call(self, x, training=None):
            if training:
                self.aux(x, training=True)
            return self.head(self.norm(x, training=training))

    model, x = Auxiliary(), points()[0]
    model(x, training=True)
    found = doctor(model, (x, np.zeros((len(x), 3))), layers=2, loss="mse")
    assert [one.path for one in found.gap.layers] == ["norm"]
    assert {row.path: (row.statistics, row.shift) for row in found.table}["aux"] == (
        "not compared", None)
    aux, = [layer for layer in bn_keras.statistics.batch_normalizers(model) if layer.name == "aux"]
    aux.moving_mean.assign(np.zeros(4)), aux.moving_variance.assign(np.ones(4))
    (initial,) = doctor(model, x).named("statistics_initial")
    assert initial.layers == ("aux",)


def test_a_model_without_batch_normalization_is_not_called_healthy():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    found = doctor(model, points())
    assert not found.ok and found.exit_status == 2 and not found.findings
    assert "nothing was looked at" in str(found)
    with pytest.raises(ValueError, match="nothing was measured"):
        found.figure()


@pytest.mark.parametrize("arguments, error, message", [
    ({"model": "net"}, TypeError, "received a str"),
    ({"data": 3}, TypeError, "doctor: received a int"),
    ({"data": np.ones((8, 5), "float32")}, ValueError,
     r"doctor: received inputs of shape \(8, 5\); the model takes \(None, 4\)"),
    ({"data": tuple(part.tolist() for part in points())}, TypeError,
     "doctor: received a batch that is a list of 192; expected an array,.* np.asarray makes"),
    ({"data": [[1.0, 2.0], [3.0, 4.0]]}, TypeError, "received inputs that hold a float"),
    ({"train": points()}, ValueError, "received train without data"),
    ({"data": points(), "examples": 0}, ValueError, "examples=0; expected a number"),
    ({"data": points(), "batch_size": 0}, ValueError, "batch_size=0; expected"),
    ({"only": ["averages_leg"]}, UnknownName, "did you mean 'averages_lag'"),
], ids=lambda value: "" if not isinstance(value, dict) else "-".join(value))
def test_bad_input_is_refused_with_what_was_received(sick, arguments, error, message):
    with pytest.raises(error, match=message):
        doctor(**{"model": sick, **arguments})


# ---------------------------------------------------------------- modes


class Deaf(keras.Model):
    """Its call has no argument `training`."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = KERAS(name="norm"), layers.Dense(3)

    def call(self, x):
        return self.head(self.norm(x))


def mode_in_fit(model, x):
    """Whether `fit` moves the statistics of the first normalizer: the oracle of `mode`."""
    model.compile(keras.optimizers.SGD(0.0), "mse")
    layer = bn_keras.statistics.batch_normalizers(model)[0]
    before = np.array(layer.moving_mean)
    model.fit(x, np.zeros((len(x), 3)), verbose=0)
    return "averages" if np.array_equal(before, np.array(layer.moving_mean)) else "batch"


def chain(*parts):
    return keras.Sequential([keras.Input((4,)), *parts, layers.Dense(3)])


def frozen_block():
    block = keras.Sequential([keras.Input((4,)), KERAS()])
    block.trainable = False
    return block


def with_flag(training):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3)(KERAS()(inputs, training=training)))


def built(model):
    model(np.ones((2, 4), "float32"))
    return model


@pytest.mark.parametrize("make, expected", {
    "plain": (lambda: chain(KERAS()), "batch"),
    "frozen": (lambda: chain(KERAS(trainable=False)), "averages"),
    "frozen statistics": (lambda: chain(FrozenBatchNorm(freeze="statistics")), "averages"),
    "frozen affine": (lambda: chain(FrozenBatchNorm(freeze="affine")), "batch"),
    "no argument": (lambda: built(Deaf()), "averages"),
    "training=False in the graph": (lambda: with_flag(False), "batch"),  # Keras overrides it
    "in a frozen model": (lambda: chain(frozen_block()), "averages"),
}.values(), ids=["plain", "frozen", "statistics", "affine", "deaf", "flag", "nested"])
@pytest.mark.slow
def test_the_mode_is_that_of_fit(make, expected):
    model, x = make(), points()[0]
    assert Examination(model, x).mode(0) == expected
    assert Examination(model).mode(0) == expected  # on random values
    assert mode_in_fit(model, x) == expected


@pytest.mark.slow
def test_a_model_whose_call_takes_no_mode_is_told_that_fit_never_updates_it():
    (found,) = doctor(built(Deaf()), points()).named("never_updated")
    assert found.layer == "norm" and "Deaf.call has no argument `training`" in found.symptom


@pytest.mark.slow
def test_training_true_in_a_graph_counts_in_a_plain_call_and_not_in_predict():
    x, _ = points()
    model = recalibrated(with_flag(True), x)
    alone, together = model(x[:2]), model(x)[:2]
    assert np.abs(alone - together).max() > 0.1  # Keras: the flag of the graph counts
    np.testing.assert_allclose(model.predict(x[:2], verbose=0), model.predict(x, verbose=0)[:2],
                               atol=1e-5)
    (found,) = doctor(model, x).named("batch_dependent")
    assert found.severity == "risk" and "`predict` and `evaluate` override it" in found.symptom


@pytest.mark.slow
def test_training_true_in_code_makes_inference_depend_on_the_batch_until_it_is_mended():
    class Baked(Deaf):
        def call(self, x, training=None):
            return self.head(self.norm(x, training=True))

    model, data = built(Baked()), points()
    (found,) = doctor(model, data).named("batch_dependent")
    assert (found.layer, found.severity) == ("norm", "wrong results")
    scope = {"model": model, "data": data}
    exec(found.remedy, scope)
    mended = scope["model"]
    assert not doctor(mended, data).named("batch_dependent")
    assert not mended.norm.trainable and mended.head.trainable_weights  # nothing else is frozen


@pytest.mark.slow
def test_a_layer_that_mixes_examples_is_no_fault_of_batch_normalization():
    model = chain(KERAS(), layers.Lambda(lambda x: x - keras.ops.mean(x, 0)))
    (found,) = doctor(recalibrated(model, points()[0]), points()).named("batch_dependent")
    assert found.layers == () and "another layer mixes" in found.symptom
    assert found.remedy.startswith("# in the layer that mixes examples")


# ---------------------------------------------------------------- what it shows


@pytest.mark.slow
def test_the_report_names_cause_cost_and_remedy_and_the_remedy_works(sick):
    data = points()
    found = doctor(sick, data, train=data)
    (lag,) = found.named("averages_lag")
    shift, factor = found.table[0].shift, found.table[0].factor
    assert shift > 0.3 and factor > 1.3 and found.table[0].statistics == "lagging"
    assert lag.layer == "norm" and lag.evidence["shift"] == {"norm": shift}
    assert lag.cost.quantity == "accuracy"
    assert lag.cost.present == pytest.approx(sick.evaluate(*data, verbose=0)[1], abs=1e-6)
    assert lag.page == "docs/findings/averages_lag.md"
    scope = {"model": sick, "data": data, "train": data}
    exec(lag.remedy, scope)
    mended = scope["model"]
    mended.compile(loss=sick.loss, metrics=["accuracy"])
    assert mended.evaluate(*data, verbose=0)[1] == pytest.approx(lag.cost.mended, abs=1e-6)
    healthy = doctor(mended, data, train=data)
    assert not healthy.findings and healthy.ok and healthy.exit_status == 0
    assert healthy.table[0].statistics == "exact" and not found.ok and found.exit_status == 1


@pytest.mark.slow
def test_the_exact_statistics_are_those_of_recalibrate():
    x, _ = points()
    model = chain(KERAS(), layers.Dense(5, "relu"), BatchNorm(), layers.Dense(4), KERAS(axis=1))
    exact = Examination(model, x).exact
    for values, layer in zip(exact, bn_keras.statistics.batch_normalizers(recalibrated(model, x))):
        for name, value in values.items():
            np.testing.assert_allclose(value, getattr(layer, name), rtol=1e-4, atol=1e-5)


def test_what_was_observed_is_what_numpy_sees():
    x, _ = points(96)
    model = recalibrated(keras.Sequential([keras.Input((4,)), KERAS(name="norm")]), x)
    model.layers[0].gamma.assign([1.0, 2.0, -1.0, 0.5])
    (seen,) = Examination(model, x, batch_size=40).observed
    y = np.array(model(x))
    np.testing.assert_allclose(seen.inputs.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen.inputs.variance, x.var(0), rtol=1e-4)
    np.testing.assert_allclose(seen.outputs.variance, y.var(0), rtol=1e-4)
    np.testing.assert_allclose(seen.lowest, y.min(0), rtol=1e-4)
    np.testing.assert_allclose(seen.highest, y.max(0), rtol=1e-4)
    np.testing.assert_allclose(seen.positive, (y > 0).mean(0), atol=1e-6)
    assert [part.values[0] for part in seen.per_batch[0]] == [40, 40, 16]


@pytest.mark.slow
def test_findings_come_worst_first_and_every_severity_is_known(sick):
    assert len(FINDINGS.names()) >= 9
    for name in FINDINGS.names():
        properties = FINDINGS.properties(name)
        assert set(properties) == {"title", "severity", "needs"} and properties["title"], name
        assert properties["severity"] in SEVERITIES and FINDINGS.get(name).__doc__, name
    found = doctor(sick, points(91), batch_size=15)
    order = [SEVERITIES.index(one.severity) for one in found.findings]
    assert order == sorted(order) and len(set(order)) > 1


def test_what_users_write_is_escaped_and_what_is_not_finite_is_text():
    model = keras.Sequential([keras.Input((4,)), KERAS(name="<b>&$x^")], name="<i>$")
    model.layers[0].moving_variance.assign([np.nan, np.inf, 1, 1])
    found = doctor(model, points()[0])
    page = found._repr_html_()
    assert "&lt;b&gt;&amp;$x^" in page and "<b>" not in page and "<i>" not in page
    assert "not_finite" in names(found)
    parsed = json.loads(found.to_json())
    assert parsed["table"][0]["statistics"] == "not finite" and parsed["exit_status"] == 1
    figure = found.figure()
    figure.canvas.draw()
    assert {text.get_text().strip() for ax in figure.axes for text in ax.texts} == {"not finite"}
    later = layers.Dense(1)
    later.build((None, 4))
    assert later.kernel.path == f"{later.name}/kernel"  # the odd name is in no later one


@pytest.mark.slow
def test_the_picture_has_a_bar_for_every_layer_and_the_terms_of_the_gap(sick):
    figure = doctor(sick, points()).figure()
    figure.canvas.draw()
    shift, factor, terms = figure.axes
    assert len(shift.patches) == len(factor.patches) == 1 and len(terms.patches) == 3
    assert shift.patches[0].get_width() > 0.3
    assert "inference mode" in terms.get_title()


def test_arrays_are_drawn_from_and_what_was_left_out_is_said(sick):
    x, y = points(300)
    order = np.argsort(y, kind="stable")
    found = doctor(sick, (x[order], y[order]), examples=64)
    assert "64 examples in 2 batches, drawn from 300" in found.examples
    batches = Examination(sick, (x[order], y[order]), examples=64).batches.batches
    assert all(len(set(np.asarray(batch.y))) == 3 for batch in batches)
    again = Examination(sick, (x[order], y[order]), examples=64).batches.batches
    np.testing.assert_array_equal(batches[0].x, again[0].x)


def test_without_data_modes_and_wrappers_are_seen_on_random_values():
    model = keras.Sequential([keras.Input((3, 4)), layers.TimeDistributed(KERAS(name="norm"))])
    (found,) = doctor(model).named("inside_wrapper")
    assert found.evidence["giver"] == "a TimeDistributed wrapper" and found.evidence["calls"] == 3
