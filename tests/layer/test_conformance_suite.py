"""The probes for batch normalization layers: each catches its planted fault, and only that."""

import functools
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from make import ROOT
from planted_faults import PLANTED
from processes import Borrowed

from bn_keras import BatchNorm
from bn_keras.__main__ import main
from bn_keras.diagnostics import judging
from bn_keras.diagnostics.conformance import FAIL, KINDS, PASS, PROBES, SKIP, find_layer, run
from bn_keras.diagnostics.conformance.suite import (
    Failed,
    Maker,
    NotApplicable,
    alike,
    select,
)
from bn_keras.diagnostics.severity import (
    DROP_IN,
    POLICY,
    ROBUSTNESS,
    SEVERITIES,
    WRONG_NUMBERS,
)

# What Keras's layer does not do: the V rows that are real, the docs list them too.
KERAS_FAILS = {
    "training may be a tensor",
    "axis may be a list of one",
    "an axis out of range is named",
    "impossible momentum and epsilon are refused",
    "a clipping error names what it received",
    "a mask goes with channels first",
    "one bad sample does not poison the statistics",
    "an empty batch changes nothing",
    "a fully masked batch changes nothing",
    "one value per channel is told and changes nothing",
    "statistics are float32 in a float16 layer",
    "replicas statistics are averaged",
    "synchronized variance keeps its digits",
    "a mask is synchronized too",
}


@functools.cache
def outcome_of(layer_class, name):
    """What a probe says of a layer; asked once, since several tests want to know."""
    (outcome,) = run(layer_class, [name])
    if outcome.verdict != SKIP:
        assert re.match("(?s)expected .+, received .+", outcome.evidence), outcome
    return outcome


def failures(layer_class, names=PROBES):
    """What did not pass: verdict and evidence by name."""
    outcomes = [outcome_of(layer_class, name) for name in names]
    return {
        outcome.probe.name: (outcome.verdict, outcome.evidence)
        for outcome in outcomes if outcome.verdict != PASS
    }


def failed(layer_class, names=PROBES):
    """Names of the probes that failed, skipped ones left out."""
    return [name for name, (verdict, _) in failures(layer_class, names).items() if verdict == FAIL]


@pytest.fixture
def command(monkeypatch, capsys):
    """The command in this process; the one that its children are forks of serves other tests."""
    monkeypatch.setattr(judging, "Forks", Borrowed)

    def called(*arguments, cwd=None):
        monkeypatch.chdir(cwd or ROOT)
        return (main(["conformance", *arguments]), *capsys.readouterr())

    return called


@pytest.mark.parametrize("name", PROBES)
def test_batch_norm_passes_and_keras_fails_where_its_faults_are(name):
    assert not failures(BatchNorm, [name])
    keras_fails = bool(failures(keras.layers.BatchNormalization, [name]))
    assert keras_fails == (name in KERAS_FAILS), "Keras changed: the docs' table, too"


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_catches_its_planted_fault(name):
    assert failed(PLANTED[name], [name]) == [name]


MASK = "a mask without the last axis means what it means to keras"
AGREES = "inference comes to agree with training"
INTEGERS = "integers are taken as floating numbers"
XLA = "xla keeps the digits of images far from zero"
# Probes that compare whole calls see these faults, too.
ALSO = {
    "inference uses the moving statistics": {MASK},
    "inference takes each example by itself": {INTEGERS, AGREES},
    "every rank normalizes over all positions": {INTEGERS, XLA},
    "xla compiles the training step": {XLA},
    "moving mean is an exponential average": {AGREES, MASK},
    "moving variance averages the biased variance": {AGREES, MASK},
    "inference leaves the statistics alone": {MASK},
    "the statistics are not trained": {"center and scale can be left out"},
}


# They trace or compile a graph, or make replicas: some .2 s each, the others .02 s.
DEAR = {
    "a graph does what eager calls do", "xla compiles the training step", XLA,
    "training may be a tensor", *(name for name, one in PROBES.items() if one.kind == "replicas"),
}


def turns(probe):
    """A planted fault of another probe is shown to this one every so many times."""
    return 10 if probe in DEAR else 4


def asked_about(fault):
    """The probes that a planted fault is shown to: its own, and others in turns."""
    turn = [*PROBES].index(fault)
    return [
        name for place, name in enumerate(PROBES)
        if name in {fault, *ALSO.get(fault, ())}
        or (turn + place) % turns(name) == 0
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_no_unrelated_probe_catches_the_planted_fault(name):
    found = set(failed(PLANTED[name], asked_about(name)))
    assert {name} <= found <= {name} | ALSO.get(name, set())


def test_every_probe_is_asked_about_many_faults_of_others():
    for probe in PROBES:
        others = [fault for fault in PROBES if fault != probe and probe in asked_about(fault)]
        assert len(others) >= len(PROBES) // turns(probe) - 1, probe


def test_every_probe_has_its_fault_and_every_known_failure_is_a_probe():
    assert set(PLANTED) == set(PROBES) and len(PROBES) >= 30
    assert KERAS_FAILS < set(PROBES)
    assert all(probe.why for probe in PROBES.values())


class Textbook(keras.layers.Layer):
    """Right, and no more than a textbook has."""

    def __init__(self, momentum=0.99, epsilon=1e-3):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, input_shape):
        def statistic(name, initializer, trainable):
            return self.add_weight(
                shape=input_shape[-1:], name=name, initializer=initializer, trainable=trainable
            )

        self.gamma, self.beta = statistic("gamma", "ones", True), statistic("beta", "zeros", True)
        self.moving_mean = statistic("moving_mean", "zeros", False)
        self.moving_variance = statistic("moving_variance", "ones", False)

    def call(self, inputs, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = keras.ops.moments(inputs, list(range(len(inputs.shape) - 1)))
            for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * now)
        return self.gamma * (inputs - mean) / keras.ops.sqrt(variance + self.epsilon) + self.beta


class Strict(Textbook):
    def __init__(self, momentum, epsilon):
        super().__init__(momentum, epsilon)


class NoGamma(Textbook):
    def build(self, input_shape):
        super().build(input_shape)
        self.gamma = None

    def call(self, inputs, training=False):
        self.gamma = 1.0
        try:
            return super().call(inputs, training)
        finally:
            self.gamma = None


# What a textbook leaves out; the first two follow from its constructor, which drops name and dtype.
TEXTBOOK_FAILS = {
    "the config builds the same layer": DROP_IN,
    "a saved model keeps its statistics": DROP_IN,
    "integers are taken as floating numbers": DROP_IN,
    "a frozen layer runs in inference mode": DROP_IN,
    "isinstance takes it for the layer of keras": DROP_IN,
    "one bad sample does not poison the statistics": POLICY,
    "an empty batch changes nothing": ROBUSTNESS,
    "one value per channel is told and changes nothing": POLICY,
    "replicas statistics are averaged": ROBUSTNESS,
    "training may be a tensor": POLICY,
    "impossible momentum and epsilon are refused": POLICY,
}


@pytest.mark.slow
def test_a_textbook_layer_computes_right_and_fails_where_it_falls_short():
    found = {name: outcome_of(Textbook, name) for name in PROBES}
    wrong = {n: one.probe.severity for n, one in found.items() if one.verdict == FAIL}
    assert wrong == TEXTBOOK_FAILS
    skipped = {n: one.evidence for n, one in found.items() if one.verdict == SKIP}
    assert set(skipped.values()) == {
        "takes no argument axis",
        "takes no argument center, scale",
        "takes no argument dtype",
        "takes no argument renorm",
        "takes no argument renorm, renorm_momentum",
        "takes no argument synchronized",
        "call takes no argument mask",
    }
    assert skipped["an axis out of range is named"] == "takes no argument axis"
    assert skipped["a clipping error names what it received"] == "takes no argument renorm"


@pytest.mark.slow
@pytest.mark.parametrize("layer_class", [Strict, NoGamma])
def test_a_missing_default_or_weight_makes_nothing_wrong(layer_class):
    names = [one.name for one in PROBES.values() if one.severity == WRONG_NUMBERS]
    found = failures(layer_class, names)
    assert not [name for name, (verdict, _) in found.items() if verdict == FAIL], found
    skip = found.get("gamma and beta get their gradients")
    assert skip == (None if layer_class is Strict else (SKIP, "has no weight gamma"))


def test_a_layer_that_does_nothing_fails_and_does_not_skip_everything():
    class Nothing(keras.layers.Layer):
        def call(self, inputs, training=None):
            return inputs

    assert "another axis is the same as transposed data" not in failed(Nothing)
    assert "every rank normalizes over all positions" not in failed(Nothing)
    assert "isinstance takes it for the layer of keras" in failed(Nothing)


def test_a_layer_cannot_have_its_failures_skipped():
    class Excused(Textbook):
        def call(self, inputs, training=False):
            raise NotApplicable("not today")

    name = "training normalizes with the batch"
    evidence = "expected no error, received NotApplicable: not today"
    assert failures(Excused, [name]) == {name: (FAIL, evidence)}


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), ValueError("no")])
def test_whatever_a_layer_raises_is_a_failure_with_its_name(error):
    class Raises(Textbook):
        def call(self, inputs, training=False):
            raise error

    found = failures(Raises, ["training normalizes with the batch"])
    (verdict, evidence), = found.values()
    assert verdict == FAIL
    assert evidence.startswith(f"expected no error, received {type(error).__name__}")


def test_evidence_says_what_was_expected_and_received():
    """Of every outcome in this file, `outcome_of` asserts that it has this form."""
    with pytest.raises(Failed) as failure:
        alike([0.4, 0.75], [0.4, 0.4])
    assert str(failure.value) == "expected 0.4 ± 1e-04, received 0.75 (largest error 3.5e-01)"
    with pytest.raises(Failed, match=r"expected mean 1 exactly, received nan"):
        alike([float("nan")], [1], 0, of="mean")
    with pytest.raises(Failed, match=r"expected shape \(2,\), received shape \(1,\)"):
        alike([1], [1, 2])


class Homework:
    """Batch normalization in NumPy, with PyTorch's names."""

    def __init__(self, dim, eps=1e-5, momentum=0.1):
        self.eps, self.momentum, self.training = eps, momentum, True
        self.gamma, self.beta = np.ones(dim), np.zeros(dim)
        self.running_mean, self.running_var = np.zeros(dim), np.ones(dim)

    def __call__(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
        return self.gamma * (x - mean) / np.sqrt(var + self.eps) + self.beta


class HomeworkInKerasWay:
    """The same with Keras's names and momentum, and training as an argument."""

    def __init__(self, momentum=0.99, epsilon=1e-3):
        self.momentum, self.epsilon = momentum, epsilon
        self.moving_mean, self.moving_var = np.zeros(3), np.ones(3)

    def __call__(self, x, training):
        mean, var = (x.mean(0), x.var(0)) if training else (self.moving_mean, self.moving_var)
        if training:
            self.moving_mean = self.momentum * self.moving_mean + (1 - self.momentum) * mean
            self.moving_var = self.momentum * self.moving_var + (1 - self.momentum) * var
        return (x - mean) / np.sqrt(var + self.epsilon)


class MomentumTheWrongWayRound(HomeworkInKerasWay):
    def __init__(self, momentum=0.99, epsilon=1e-3):
        super().__init__(1 - momentum, epsilon)


class WeighsTheOld(Homework):
    """PyTorch's names with Keras's momentum, as courses have it."""

    def __init__(self, dim, eps=1e-5, momentum=0.9):
        super().__init__(dim, eps, 1 - momentum)


class RowsOfOne(Homework):
    """Keeps everything with an axis of size 1."""

    def __init__(self, dim, eps=1e-5, momentum=0.1):
        super().__init__(dim, eps, momentum)
        for name in ("gamma", "beta", "running_mean", "running_var"):
            setattr(self, name, getattr(self, name)[None])


class MadeByTheFirstCall(Homework):
    """Knows its number of features once it has seen some."""

    def __init__(self, eps=1e-5, momentum=0.1):
        super().__init__(0, eps, momentum)
        self.gamma = self.beta = self.running_mean = self.running_var = None

    def __call__(self, x):
        if self.gamma is None:
            Homework.__init__(self, x.shape[1], self.eps, self.momentum)
        return super().__call__(x)


class MovesAtTestTime(Homework):
    def __call__(self, x):
        outputs = super().__call__(x)
        self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0)
        return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "plain, wrong",
    [
        (Homework, set()),
        (HomeworkInKerasWay, set()),
        (WeighsTheOld, set()),
        (RowsOfOne, set()),
        (MadeByTheFirstCall, set()),
        (MomentumTheWrongWayRound, {
            "moving mean is an exponential average",
            "moving variance averages the biased variance",
        }),
        (MovesAtTestTime, {
            "inference leaves the statistics alone",
            "inference takes each example by itself",
            "moving mean is an exponential average",
        }),
    ],
)
def test_a_plain_class_is_judged_by_its_numbers(plain, wrong):
    names = [one.name for one in PROBES.values() if one.severity == WRONG_NUMBERS]
    found = failures(plain, names)
    assert {name for name, (verdict, _) in found.items() if verdict == FAIL} == wrong
    assert "training normalizes with the batch" in set(names) - set(found)


class DoesNothing:
    training, running_mean = False, np.zeros(3)

    def __call__(self, x):
        return x


class NoSettings(HomeworkInKerasWay):
    def __init__(self):
        super().__init__()


@pytest.mark.parametrize("plain, found", [(DoesNothing, FAIL), (NoSettings, None)])
def test_a_class_without_settings_is_still_asked_whether_it_normalizes(plain, found):
    name = "training normalizes with the batch"
    verdict, _ = failures(plain, [name]).get(name, (None, ""))
    assert verdict == found


@pytest.mark.slow
def test_a_layer_of_which_nothing_can_be_judged_has_not_passed(tmp_path, command):
    (tmp_path / "mine.py").write_text("class Mine:\n    def __call__(self, x):\n        return x\n")
    status, out, _ = command("mine:Mine", "--only=gradients flow", cwd=tmp_path)
    assert status == 2 and "0 passed, 0 failed" in out
    assert out.splitlines()[-1].startswith("exit status 2: no probe could be judged; expected a")
    status, out, _ = command("mine:Mine", "--only=arithmetic", cwd=tmp_path)
    assert status == 1 and "1 wrong numbers" in out


def test_a_class_that_cannot_be_made_or_called_is_refused():
    class Needs(Textbook):
        def __init__(self, width):
            super().__init__()

    class Text:
        def __call__(self, x):
            return x + "a"

    with pytest.raises(ValueError, match="cannot be made without width; expected"):
        list(run(Needs))
    with pytest.raises(ValueError, match=r"Text on an array of shape \(4, 3\) ended in .+"):
        list(run(Text))


def test_probes_are_selected_by_name_kind_and_severity():
    assert select([]) == list(PROBES)
    assert select(["Moving_Mean is"]) == ["moving mean is an exponential average"]
    assert {PROBES[name].kind for name in select(["guards"])} == {"guards"}
    assert {PROBES[name].severity for name in select(["drop in"])} == {DROP_IN}
    both = select(["guards", "wrong numbers"])
    assert both == [n for n in PROBES if n in {*select(["guards"]), *select(["wrong numbers"])}]
    for nothing in ("btach", "", " "):
        with pytest.raises(ValueError, match="a kind .*guards.*a severity .*robustness") as error:
            select(["guards", nothing])
        assert all(name in str(error.value) for name in PROBES)


@pytest.mark.parametrize(
    "path, message",
    [
        ("nope", "received 'nope'; expected module:Class"),
        ("keras.layers.Nope", "no attribute 'Nope'"),
        ("no_module:Layer", "No module named 'no_module'"),
        ("math:pi", "expected a subclass of keras.layers.Layer"),
        ("fractions:Fraction", "which has none of the methods __call__, forward, call; expected a"),
        ("no_file.py:layer", "importing no_file.py ended in FileNotFoundError: there is no file"),
    ],
)
def test_a_path_that_leads_to_no_layer_is_named(path, message):
    with pytest.raises(ValueError, match=message):
        Maker(find_layer(path))


@pytest.mark.parametrize(
    "text, message",
    [
        ("class Wrong(:", "ended in SyntaxError: invalid syntax (hostile.py, line 1)"),
        ("1 / 0", "ended in ZeroDivisionError: division by zero"),
        ("import nowhere", "ended in ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_module_with_an_error_in_it_is_refused_with_the_error(
    text, message, tmp_path, monkeypatch
):
    (tmp_path / "hostile.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"importing hostile {re.escape(message)}.*; expected"):
        find_layer("hostile:Wrong")


@pytest.mark.slow
def test_the_command_passes_the_layer_and_shows_every_kind_and_severity():
    done = subprocess.run(
        [sys.executable, "-m", "bn_keras", "conformance", "bn_keras.BatchNorm"],
        capture_output=True, text=True,
    )
    out = done.stdout
    assert f"{len(PROBES)} passed, 0 failed (0 wrong numbers, 0 drop-in" in out
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in out for word in (*KINDS, *SEVERITIES))


@pytest.fixture
def mine(tmp_path):
    """A folder whose module `mine` holds a layer with two faults of unequal severity."""
    (tmp_path / "mine.py").write_text(
        "import bn_keras\n"
        "class Mine(bn_keras.BatchNorm):\n"
        "    def __init__(self, **settings):\n"
        "        super().__init__(**{**settings, 'one_value': 'ignore'})\n"
        "    def call(self, inputs, training=None, mask=None):\n"
        "        outputs = super().call(inputs, training=training, mask=mask)\n"
        "        return outputs if training else outputs + 1\n"
    )
    return tmp_path


@pytest.mark.slow
def test_failures_stand_at_the_end_with_what_was_received(mine, command):
    asked = ["--only=guards,inference uses", "--only", "a mask is handed on"]
    status, out, err = command("mine:Mine", *asked, cwd=mine)
    assert (status, err) == (1, "")
    assert "5 passed" not in out  # of six, two fail
    *_, wrong, evidence, why, robust, silence, _, last = out.splitlines()
    assert wrong == "wrong numbers: inference uses the moving statistics"
    assert re.match(r"    expected \S+ ± \S+, received \S+ \(largest error", evidence)
    assert why.strip() == PROBES["inference uses the moving statistics"].why
    assert robust.startswith("policy: one value per channel")
    assert silence.strip() == "expected a warning or a ValueError, received silence"
    assert last == (
        "mine:Mine: 4 passed, 2 failed (1 wrong numbers, 0 drop-in, 0 robustness, 1 policy), "
        "0 skipped"
    )


@pytest.mark.slow
def test_the_status_tells_the_severity_and_json_the_same_as_the_table(mine, command):
    status, out, err = command(
        "mine:Mine", "--only=guards", "--fail_on=wrong_numbers", "--json", cwd=mine
    )
    told = json.loads(out)
    assert (status, err, told["status"]) == (0, "", 0)
    assert (told["passed"], told["failed"], told["skipped"]) == (3, 1, 0)
    assert told["failed_by_severity"]["policy"] == 1
    one = next(one for one in told["probes"] if one["verdict"] == "fail")
    assert one == {
        "probe": "one value per channel is told and changes nothing",
        "kind": "guards",
        "severity": "policy",
        "why": PROBES[one["probe"]].why,
        "verdict": "fail",
        "evidence": "expected a warning or a ValueError, received silence",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "LAYER"),
        (["a", "b"], "unrecognized arguments: b"),
        (["a", "--fail-on=bad"], "received 'bad'; expected one of wrong numbers, drop-in"),
        (["a", "--timeout=0"], "received '0'; expected a number of seconds above 0"),
        (["nope"], "received 'nope'; expected module:Class"),
        pytest.param(
            ["keras.layers.Dense", "--only=btach"], "received --only=btach, which no probe",
            marks=pytest.mark.slow,  # the probes' names are known once TensorFlow is loaded
        ),
    ],
)
def test_the_command_refuses_what_it_does_not_know(arguments, message, command):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "") and "bn-keras conformance: " in err
    assert message in err


def test_help_needs_no_tensorflow():
    code = (
        "import sys; from bn_keras.__main__ import main; status = main(['conformance', '--help']);"
        "sys.exit(status or 'tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and "--fail-on" in result.stdout
