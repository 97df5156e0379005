"""Settings: parts, checks, parsing, fingerprints."""

import dataclasses

import pytest

from bn_keras.config import PARTS, RUN_FIELDS, ConfigError, DataSettings, RunConfig, parse_text

BAD = [
    ("learning_rate", 0.0), ("learning_rate", -1), ("learning_rate", float("nan")),
    ("learning_rate", float("inf")), ("learning_rate", "0.1"), ("learning_rate", True),
    ("batch_size", 0), ("batch_size", 64.0), ("batch_size", True), ("momentum", 1.01),
    ("epsilon", 0.0), ("activation", "rleu"), ("dtype_policy", "float8"), ("seed", -1),
    ("epochs", 0), ("train_size", 0), ("model", None), ("initializer", "heh"), ("bias", "0"),
    ("bias", float("nan")), ("dropout", 1.0), ("dropout", -0.1), ("l2", -1.0), ("measure", "units"),
    ("measure", (1,)), ("measure", None),
]


RULE = {name: field.metadata["rule"] for name, field in RUN_FIELDS.items()}


@pytest.mark.parametrize("name, value", BAD)
def test_a_bad_value_is_refused_with_name_and_value(name, value):
    with pytest.raises(ConfigError) as error:
        RunConfig(**{name: value})
    assert f"{name}={value!r}: expected" in str(error.value)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "abc", "", "1e999"])
def test_a_bad_text_for_the_learning_rate_is_refused_with_the_text(text):
    with pytest.raises(ConfigError, match=f"received '{text}'; expected a number greater than 0"):
        parse_text(RULE["learning_rate"], text)


def test_texts_become_values_of_the_right_type():
    assert parse_text(RULE["learning_rate"], "1e-2") == 0.01
    assert parse_text(RULE["steps"], "30") == 30


def test_every_setting_says_why_and_has_a_valid_default():
    for name, field in RUN_FIELDS.items():
        assert len(field.metadata["why"]) > 10, name
        assert field.default is None or field.metadata["rule"].accepts(field.default), name


def test_a_fingerprint_changes_with_every_setting_and_only_then():
    base = RunConfig()
    assert base.fingerprint() == RunConfig().fingerprint()
    others = {
        "activation": "tanh", "dtype_policy": "float64", "pixels": "raw", "batch_order": "fixed",
        "last_batch": "keep", "weights": "new", "initializer": "he", "measure": ("units",),
    }
    changed = []
    for field in dataclasses.fields(base):
        rule = field.metadata["rule"]
        value = others.get(field.name)
        if value is None:
            value = {str: "x", int: 7, float: 0.5}[rule.parse]
        changed.append(dataclasses.replace(base, **{field.name: value}).fingerprint())
    assert len({base.fingerprint(), *changed}) == len(changed) + 1


def test_runs_that_differ_in_seed_rate_or_length_share_a_graph():
    base = RunConfig()
    same = dataclasses.replace(
        base, seed=5, learning_rate=0.1, steps=3, eval_interval=1, initializer="he", bias=1.0,
        measure=("units",), arm="mine", batch_order="fixed",
    )
    assert same.graph_key() == base.graph_key()


@pytest.mark.parametrize("name, value", [
    ("momentum", 0.5), ("l2", 0.1), ("dropout", 0.0), ("normalizer", "none"), ("train_size", 10),
    ("batch_size", 3), ("optimizer", "adam"),
])
def test_what_changes_the_net_the_data_or_the_update_needs_another_graph(name, value):
    base = RunConfig()
    assert dataclasses.replace(base, **{name: value}).graph_key() != base.graph_key()


def test_every_setting_stands_in_one_part_and_the_run_has_them_all():
    fields = [field.name for kind in PARTS.values() for field in dataclasses.fields(kind)]
    assert len(fields) == len(set(fields)) and {*fields, "arm"} == set(RUN_FIELDS)
    config = RunConfig(train_size=12, validation_size=3)
    part = config.part(DataSettings)
    assert part == DataSettings(train_size=12, validation_size=3)


def test_names_of_probes_are_a_text_with_commas_or_a_tuple():
    assert parse_text(RULE["measure"], "histograms, pitfalls:correct,") == (
        "histograms", "pitfalls:correct"
    )
    assert parse_text(RULE["measure"], "") == ()
    assert RunConfig(measure=["units"]).measure == ("units",)
    assert hash(RunConfig(measure=["units"])) == hash(RunConfig(measure=("units",)))


def test_an_arm_is_named_after_its_normalizer_unless_it_has_a_name():
    assert RunConfig(normalizer="group").arm_name == "group"
    assert RunConfig(normalizer="group", arm="mine").arm_name == "mine"


def test_epochs_replace_steps_and_count_whole_batches():
    assert RunConfig(steps=7).total_steps(1000) == 7
    assert RunConfig(epochs=2, batch_size=300).total_steps(1000) == 6
    assert RunConfig(epochs=0.5, batch_size=100).total_steps(1000) == 5
    assert RunConfig(epochs=2, batch_size=300, last_batch="keep").total_steps(1000) == 8
    assert RunConfig(batch_size=250, last_batch="keep").steps_per_epoch(1000) == 4
