"""Plans: studies as runs, their groups and stacks, their folders, their text."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys

import pytest

from bn_keras import plan as plans
from bn_keras.config import ConfigError, RunConfig
from bn_keras.plan import MOST_RUNS, Plan, groups, make_plan
from bn_keras.registry import MODELS, NORMALIZERS, STUDIES, UnknownName
from bn_keras.study import Study


def comparison(*normalizers, seeds=2, **overrides):
    return make_plan("comparison", overrides, seeds=seeds, normalizers=normalizers or None)


def test_the_plain_comparison_is_every_normalizer_with_every_seed():
    plan = make_plan("comparison", {"steps": 7}, first_seed=5)
    assert [(run.arm, run.normalizer, run.seed) for run in plan.runs] == [
        (name, name, seed) for name in ("none", "batch") for seed in range(5, 11)
    ]
    assert {run.steps for run in plan.runs} == {7}
    assert plan.study.baseline == "none" and list(plan.study.arms) == ["none", "batch"]
    assert dataclasses.replace(plan.runs[0], arm=None, seed=0, steps=RunConfig().steps) \
        == RunConfig(normalizer="none"), "the comparison has defaults of its own"


@pytest.mark.parametrize("normalizers, seeds", [
    (("batch",), 6), (("none", "batch"), 6), (("none", "batch", "layer"), 7),
    (("none", "batch", "layer", "group"), 7), (("none", "batch", "layer", "group", "ghost"), 8),
])
def test_a_comparison_has_the_fewest_seeds_that_can_decide_for_its_arms(normalizers, seeds):
    plan = make_plan("comparison", {}, normalizers=normalizers)
    assert len({run.seed for run in plan.runs}) == plan.study.seeds == seeds
    assert len(make_plan("comparison", {}, normalizers=normalizers, seeds=3).runs) == 3 * len(
        normalizers
    )


def test_none_comes_first_and_each_normalizer_once():
    plan = comparison("layer", "none", "layer", "batch")
    assert list(plan.study.arms) == ["none", "layer", "batch"]
    assert comparison("batch").study.baseline == "batch"


def test_flags_take_the_place_of_a_studys_own_settings():
    plan = make_plan("ioffe_mnist", {"steps": 700}, seeds=2, first_seed=5)
    assert {run.steps for run in plan.runs} == {700} and {run.seed for run in plan.runs} == {5, 6}
    assert {run.batch_size for run in plan.runs} == {60}, "a setting that was not given changed"


def test_some_arms_alone_can_be_planned():
    plan = make_plan("ioffe_mnist", {"momentum": 0.5}, seeds=1, arms=["batch", "none"])
    assert [(run.arm, run.momentum) for run in plan.runs] == [("none", 0.5), ("batch", 0.5)]
    assert list(plan.study.arms) == ["none", "batch"]


def test_the_short_version_has_its_own_arms_seeds_and_settings():
    plan = make_plan("bad_init_regression", {}, quick=True)
    assert [run.arm for run in plan.runs] == ["tanh none", "relu none", "relu batch"]
    assert {(run.steps, run.seed) for run in plan.runs} == {(62, 0)}
    one = make_plan("bad_init_regression", {"steps": 3}, quick=True, arms=["relu none, He"])
    assert [(run.arm, run.steps) for run in one.runs] == [("relu none, He", 3)]


def test_a_ladder_of_rates_is_climbed_by_any_net(tmp_path):
    study = STUDIES.get("learning_rates")()
    file = tmp_path / "my_net.py"
    file.write_text("def build(normalizer): ...")
    plan = make_plan("learning_rates", {"model": f"{file}:build"}, seeds=2)
    assert plan.name == "comparison" and plan.study.axes == {"learning_rate": study.ladder.rates}
    assert {(run.normalizer, run.learning_rate, run.seed) for run in plan.runs} == {
        (normalizer, rate, seed) for normalizer in ("none", "batch")
        for rate in study.ladder.rates for seed in (0, 1)
    }
    assert {(run.steps, run.optimizer, run.momentum) for run in plan.runs} == {(400, "sgd", 0.9)}
    assert Plan.from_json(plan.to_json()) == plan
    short = make_plan(
        "learning_rates", {"model": "deep_mlp", "steps": 7}, quick=True,
        axes={"learning_rate": [0.1, 1.0]},
    )
    assert {(run.steps, run.learning_rate, run.log_interval) for run in short.runs} == {
        (7, 0.1, 50), (7, 1.0, 50)
    }
    with pytest.raises(ConfigError, match="the arms of 'learning_rates' are nets of its own"):
        make_plan("learning_rates", {"model": "deep_mlp"}, arms=["none at 0.05"])


@pytest.mark.parametrize(
    "name, overrides, more, error, message",
    [
        ("ioffe", {}, {}, UnknownName, "unknown study 'ioffe'; known: "),
        ("ioffe_mnist", {}, {"arms": ["none", "bacth"]}, ConfigError,
         "received the arm 'bacth'; expected some of: none; batch; "),
        ("ioffe_mnist", {"learning_rate": 0.1}, {}, ConfigError,
         "learning_rate: the arms of this study differ in it"),
        ("ioffe_mnist", {}, {"normalizers": ["layer"]}, ConfigError,
         "normalizers=layer with the study 'ioffe_mnist', which has arms of its own"),
        ("ioffe_mnist", {"optimizer": "adma"}, {}, UnknownName, "unknown optimizer 'adma'"),
        ("ioffe_mnist", {"measure": ("unit",)}, {}, UnknownName,
         "unknown probe 'unit'; .*did you mean 'units'"),
        ("ioffe_mnist", {"batch_size": 0}, {}, ConfigError, "batch_size=0: expected a whole"),
        ("ioffe_mnist", {"step": 3}, {}, ConfigError,
         "unknown setting 'step' .did you mean 'steps'"),
        ("ioffe_mnist", {}, {"seeds": 0}, ConfigError, "seeds=0: expected a whole number from 1"),
        ("ioffe_mnist", {}, {"seeds": True}, ConfigError, "seeds=True: expected"),
        ("ioffe_mnist", {}, {"first_seed": -1}, ConfigError, "seed=-1: expected a whole"),
        ("ioffe_mnist", {"seed": 3}, {}, ConfigError, "seed=3: expected seeds and first_seed"),
        ("ioffe_mnist", {"arm": "x"}, {}, ConfigError, "arm='x': expected arms in its place"),
        ("ioffe_mnist", {}, {"arms": "none"}, ConfigError,
         r"arms='none': expected a sequence of names, \['none'\] for one"),
        ("comparison", {}, {"normalizers": "layer"}, ConfigError,
         "normalizers='layer': expected a sequence"),
        ("comparison", {"normalizer": "layer"}, {}, ConfigError,
         "normalizer='layer': expected normalizers in its place"),
        ("comparison", {}, {"normalizers": []}, ConfigError, "expected at least one name"),
        ("comparison", {}, {"normalizers": ["bacth"]}, UnknownName, "unknown normalizer 'bacth'"),
        ("comparison", {"model": "mnist"}, {}, UnknownName, "unknown model 'mnist'"),
        ("comparison", {"loss": "sigmid"}, {}, UnknownName, "unknown loss 'sigmid'"),
        ("comparison", {"dataset": "cvs:x.csv"}, {}, UnknownName, "unknown dataset 'cvs'"),
    ],
)
def test_what_cannot_be_planned_is_refused(name, overrides, more, error, message):
    with pytest.raises(error, match=message):
        make_plan(name, overrides, **more)


def test_a_model_in_a_file_of_another_kind_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.h5").touch()
    with pytest.raises(ConfigError, match="model='old.h5': .*expected a .keras file"):
        make_plan("comparison", {"model": "old.h5"})


def test_an_arm_that_is_named_twice_is_trained_once():
    once = make_plan("ioffe_mnist", {}, arms=["batch"])
    twice = make_plan("ioffe_mnist", {}, arms=["batch", "batch"])
    assert twice == once == Plan.from_json(twice.to_json())


@pytest.mark.parametrize("parts, error, message", [
    ({"arms": {}}, ConfigError, "the study 'own' has no arms; expected at least one"),
    ({"figures": ("nofig",)}, UnknownName, "unknown figure 'nofig'"),
    ({"tables": {"notable": None}}, UnknownName, "unknown table 'notable'"),
    ({"files": ("nofile",)}, UnknownName, "unknown file 'nofile'"),
])
def test_a_study_with_parts_that_do_not_exist_is_refused_before_it_is_trained(
    parts, error, message, monkeypatch
):
    study = dataclasses.replace(STUDIES.get("comparison")(), **parts)
    monkeypatch.setitem(STUDIES._registered, "own", (lambda: study, {}))
    with pytest.raises(error, match=message):
        make_plan("own", {})


def test_arguments_of_datasets_and_probes_are_no_part_of_their_names():
    plan = comparison(dataset="csv:a:b.csv", measure=("pitfalls:correct",), seeds=1)
    assert plan.runs[0].dataset == "csv:a:b.csv" and plan.runs[0].measure == ("pitfalls:correct",)


@pytest.mark.parametrize("name", STUDIES.names())
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_a_plan_is_the_same_each_time_also_read_back_from_its_text(name, quick):
    plan = make_plan(name, {}, seeds=2, quick=quick)
    assert plan == make_plan(name, {}, seeds=2, quick=quick) == Plan.from_json(plan.to_json())
    assert len(set(run.fingerprint() for run in plan.runs)) == len(plan.runs)


def test_only_settings_that_the_arms_share_name_the_folder():
    folder = make_plan("ioffe_mnist", {}).folder_name()
    assert re.fullmatch(r"ioffe_mnist-[0-9a-f]{6}", folder)
    for same in (
        make_plan("ioffe_mnist", {}, seeds=7, first_seed=3),
        make_plan("ioffe_mnist", {}, arms=["batch at 1"]),
        make_plan("ioffe_mnist", {"steps": 15_000}),
    ):
        assert same.folder_name() == folder
    others = {
        make_plan("ioffe_mnist", {"steps": 100}).folder_name(),
        make_plan("ioffe_mnist", {}, quick=True).folder_name(),
        make_plan("ioffe_mnist", {"measure": ()}).folder_name(),
        folder,
    }
    assert len(others) == 4 and any("ioffe_mnist-quick-" in name for name in others)


def test_either_arm_alone_goes_into_the_folder_of_both():
    assert len({
        comparison(*names, learning_rate=0.5).folder_name()
        for names in (["none"], ["batch"], ["none", "batch"], ["layer", "group"])
    }) == 1
    assert comparison(learning_rate=0.25).folder_name() != comparison(seeds=1).folder_name()
    name = comparison(dataset="csv:/some where/ä.csv", optimizer="sgd", learning_rate=0.5)
    assert re.fullmatch(
        r"mnist_cnn-csv_some_where_.csv-sgd-0.5-[0-9a-f]{6}", name.folder_name()
    )


def test_two_plans_of_one_folder_become_the_plan_of_all_their_runs():
    both = comparison("none", "batch")
    assert comparison("batch").merged(comparison("none")) == both
    assert both.merged(comparison("batch", seeds=1)) == both
    assert comparison("none", "layer").merged(both) == comparison("none", "layer", "batch")
    apart = make_plan("ioffe_mnist", {}, seeds=1, arms=["batch"]).merged(
        make_plan("ioffe_mnist", {}, seeds=1, first_seed=4, arms=["none at 1", "batch"])
    )
    assert [(run.arm, run.seed) for run in apart.runs] == [
        ("batch", 0), ("batch", 4), ("none at 1", 4)
    ]
    assert list(apart.study.arms) == ["batch", "none at 1"]


def test_plans_of_two_folders_are_not_merged():
    with pytest.raises(ValueError, match="expected two for the same folder"):
        comparison(steps=1).merged(comparison(steps=2))


def damaged(**changes):
    content = json.loads(comparison(seeds=1).to_json())
    content.update(changes)
    return content


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the plan is no JSON text"),
        ("[" * 100_000, "the plan is no JSON text"),
        ("[]", "other parts than study, quick, numbers, axes, runs"),
        (json.dumps({"study": "comparison", "runs": []}), "other parts than"),
        (json.dumps(damaged(more=1)), "other parts than"),
        (json.dumps(damaged(quick=0)), "quick is of type int; expected bool"),
        (json.dumps(damaged(study=None)), "study is of type NoneType; expected str"),
        (json.dumps(damaged(study="comparsion")), "unknown study 'comparsion'"),
        (json.dumps(damaged(study="ioffe_mnist")), "no arm 'none' with these settings"),
        (json.dumps(damaged(runs={})), "runs is of type dict; expected list"),
        (json.dumps(damaged(runs=[])), "0 runs, some of them twice or none at all"),
        (json.dumps(damaged(runs=damaged()["runs"] * 2)), "4 runs, some of them twice"),
        (json.dumps(damaged(runs=[3])), "other settings than this version's"),
        (json.dumps(damaged(runs=[{"seed": 3}])), "other settings than this version's"),
        (json.dumps(damaged(runs=[{**damaged()["runs"][0], "steps": "7"}])), "steps='7': expected"),
        (json.dumps(damaged(runs=[{**damaged()["runs"][0], "momentum": float("nan")}])),
         "momentum=nan: expected"),
        (json.dumps(damaged(runs=[{**damaged()["runs"][0], "arm": "layer"}])),
         "no arm 'layer' with these settings"),
    ],
    ids=itertools.count(),
)
def test_a_damaged_plan_is_refused_with_a_message(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def run(arm="a", **settings):
    return RunConfig(arm=arm, **{
        "model": "deep_mlp", "normalizer": "batch", "optimizer": "sgd", "measure": (), **settings
    })


def shape(runs):
    return [[len(stack) for stack in group] for group in groups(runs)]


def test_seeds_rates_and_initial_weights_stand_in_one_stack():
    assert shape([
        run(seed=0), run(seed=1), run(learning_rate=0.1), run(initializer="he"), run(bias=0.5),
        run("b", batch_order="fixed"),
    ]) == [[6]]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3}, {"epochs": 0.5}, {"log_interval": 3}, {"eval_interval": 3}, {"curve_size": 3},
        {"last_batch": "keep"}, {"measure": ("units",)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_runs_of_other_lengths_or_measures_share_the_graph_and_not_the_stack(settings):
    assert shape([run(), run(seed=1, **settings), run(seed=2)]) == [[2, 1]]


@pytest.mark.parametrize(
    "settings",
    [
        {"normalizer": "none"}, {"model": "ioffe_mlp"}, {"activation": "tanh"}, {"dropout": 0.1},
        {"l2": 0.1}, {"momentum": 0.5}, {"train_size": 100}, {"batch_size": 7}, {"pixels": "raw"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_models_and_data_need_another_graph(settings):
    assert shape([run(), run(seed=1, **settings)]) == [[1], [1]]


def test_only_plain_sgd_takes_several_rates_in_one_stack():
    for optimizer, expected in (("sgd", [[2]]), ("adam", [[1, 1]]), ("momentum", [[1, 1]])):
        assert shape([run(optimizer=optimizer, learning_rate=rate) for rate in (0.1, 0.2)]) \
            == expected


@pytest.mark.parametrize(
    "settings",
    [{"model": "mnist_cnn"}, {"normalizer": "group"}, {"dtype_policy": "mixed_float16"}],
    ids=["convolution", "normalizer over channels", "one loss scale"],
)
def test_runs_that_would_be_mixed_up_stand_alone(settings):
    assert shape([run(seed=seed, **settings) for seed in range(3)]) == [[1, 1, 1]]


def test_a_stack_has_no_more_runs_than_fit_in_memory():
    runs = [run(seed=seed) for seed in range(2 * MOST_RUNS + 1)]
    assert shape(runs) == [[MOST_RUNS, MOST_RUNS, 1]]
    assert [one for stack in groups(runs)[0] for one in stack] == runs


@pytest.mark.parametrize("name", STUDIES.names())
def test_every_run_of_a_study_is_in_one_group_once(name):
    plan = make_plan(name, {}, seeds=2)
    found = [one for group in groups(plan.runs) for stack in group for one in stack]
    assert sorted(found, key=repr) == sorted(plan.runs, key=repr)


@pytest.fixture
def outside():
    """A model, a normalizer and a study from outside the package, unregistered again afterwards."""

    @MODELS.register("one_weight", loss="softmax", stacks=True)
    def one_weight(spec):
        """Never built."""

    @NORMALIZERS.register("halve", channelwise=True)
    def halve(name, **settings):
        """Never built."""

    @STUDIES.register("halving", metrics={"doubled": ("twice the test accuracy", "", "low")})
    def halving():
        return Study(
            question="Does it help to halve?", source="a test", duration="1 s", expected="no",
            base={"model": "one_weight", "optimizer": "sgd", "steps": 3},
            arms={"none": {"normalizer": "none"}, "half": {"normalizer": "halve"}},
            columns=("doubled",), derived={"doubled": "2 * test_accuracy"},
        )

    yield
    for registry, name in ((MODELS, "one_weight"), (NORMALIZERS, "halve"), (STUDIES, "halving")):
        del registry._registered[name]


def test_a_study_from_outside_the_package_is_planned_like_ours(outside):
    plan = make_plan("halving", {"steps": 5}, seeds=3)
    assert [(one.arm, one.seed, one.steps) for one in plan.runs] == [
        (arm, seed, 5) for arm in ("none", "half") for seed in range(3)
    ]
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.folder_name().startswith("halving-")
    assert shape(plan.runs) == [[3], [3]]


@pytest.mark.slow
def test_planning_loads_no_tensorflow_and_no_scipy():
    told = "import sys; from bn_keras.plan import make_plan, groups; " \
        "groups(make_plan('ioffe_mnist', {}).runs); " \
        "print({'tensorflow', 'keras', 'scipy', 'matplotlib'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    assert set(plans.REGISTRIES) <= {field.name for field in dataclasses.fields(RunConfig)}
