"""The probes for batch normalization layers: each catches its planted fault, and only that."""

import subprocess
import sys

import keras
import pytest
from planted_faults import PLANTED

from bn_keras import BatchNorm
from bn_keras.diagnostics.conformance import FAIL, KINDS, PASS, PROBES, SKIP, find_layer, run

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


def failures(layer_class, names=None):
    return {
        outcome.probe.name: outcome.evidence
        for outcome in run(layer_class, names) if outcome.verdict != PASS
    }


def command(*arguments, cwd=None):
    result = subprocess.run(
        [sys.executable, "-m", "bn_keras", "conformance", *arguments], cwd=cwd,
        capture_output=True, text=True,
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("name", PROBES)
def test_batch_norm_passes_and_keras_fails_where_its_faults_are(name):
    assert not failures(BatchNorm, [name])
    keras_fails = bool(failures(keras.layers.BatchNormalization, [name]))
    assert keras_fails == (name in KERAS_FAILS), "Keras changed: the docs' table, too"


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_catches_its_planted_fault(name):
    assert list(failures(PLANTED[name], [name])) == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_no_other_probe_catches_the_planted_fault(name):
    assert list(failures(PLANTED[name])) == [name]


def test_every_probe_has_its_fault_and_every_known_failure_is_a_probe():
    assert set(PLANTED) == set(PROBES) and len(PROBES) >= 30
    assert KERAS_FAILS < set(PROBES)
    assert all(probe.why for probe in PROBES.values())


def test_what_a_layer_does_not_take_is_skipped_and_not_failed():
    class Plain(keras.layers.Layer):
        """Knows no renorm and no synchronized."""

        def __init__(self, momentum=0.99, epsilon=1e-3):
            super().__init__()

    found = {outcome.probe.name: outcome for outcome in run(Plain)}
    outcome = found["synchronized replicas are one big batch"]
    assert (outcome.verdict, outcome.evidence) == (SKIP, "takes no argument synchronized")
    assert found["moving mean is an exponential average"].verdict == FAIL


@pytest.mark.parametrize(
    "path, message",
    [
        ("nope", "'nope'"),
        ("keras.layers.Nope", "no attribute 'Nope'"),
        ("no_module:Layer", "No module named 'no_module'"),
        ("math:pi", "expected a subclass of keras.layers.Layer"),
    ],
)
def test_a_path_that_leads_to_no_layer_is_named(path, message):
    with pytest.raises(ValueError, match=message):
        find_layer(path)


def test_the_command_prints_the_table_and_tells_by_its_status(tmp_path):
    status, out, err = command("bn_keras.BatchNorm")
    assert (status, err) == (0, "") and "40 passed, 0 failed, 0 skipped" in out
    assert all(kind in out for kind in KINDS)
    (tmp_path / "mine.py").write_text(
        "import bn_keras\n"
        "class Mine(bn_keras.BatchNorm):\n"
        "    def __init__(self, **settings):\n"
        "        super().__init__(**{**settings, 'one_value': 'ignore'})\n"
    )
    status, out, err = command("mine:Mine", cwd=tmp_path)
    assert (status, err) == (1, "") and "39 passed, 1 failed, 0 skipped" in out
    assert "silence" in out


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["nope"]])
def test_the_command_refuses_what_it_does_not_know(arguments):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "") and "bn-keras conformance: " in err
