"""`bn_keras.check`: right ones pass without a hint, each mistake of the gallery gets its own."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
from make import ROOT

from bn_keras import check
from bn_keras.diagnostics.conformance import causes

KERAS = re.compile("^import keras", re.MULTILINE)
GALLERY = {path.stem: path for path in sorted((ROOT / "docs/gallery").glob("*.py"))}


def exhibit(name):
    """The function or class of a file in the gallery, and the hint that its docstring promises."""
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hint = re.search(r"^Hint: (.+)$", module.__doc__, re.MULTILINE)[1]
    thing = next(one for one in vars(module).values()
                 if getattr(one, "__module__", "") == module.__name__)
    return thing, hint


def test_the_gallery_has_right_ones_and_many_wrong_ones():
    right = [name for name in GALLERY if name.startswith("right_")]
    assert len(right) >= 3 and len(GALLERY) - len(right) >= 10


def marked(names):
    """The names, those of Keras layers but one marked as slow: each takes seconds."""
    fast = ["right_keras_layer", *(n for n in names if not KERAS.search(GALLERY[n].read_text()))]
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked(GALLERY))
def test_an_exhibit_gets_the_hint_that_it_promises_and_no_other(name):
    thing, hint = exhibit(name)
    checked = check(thing)
    found = [cause for cause, _, _ in checked.hints]
    if name.startswith("right_"):
        assert hint == "none; all of its numbers are right." and checked.ok, str(checked)
        assert not found and not causes.find(causes.Maker(thing))
    else:
        assert not checked.ok and found == [hint], str(checked)
        assert re.search(r"fit within \de-\d+|fit within 0|one |two |its first|a trainable",
                         checked.hints[0][1])


def right(x, gamma, beta, moving_mean, moving_variance, training, momentum=0.99, epsilon=1e-3):
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
        moving_mean *= momentum
        moving_mean += (1 - momentum) * mean
        moving_variance *= momentum
        moving_variance += (1 - momentum) * variance
    else:
        mean, variance = moving_mean, moving_variance
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def cs231n(x, gamma, beta, bn_param):
    mean, var, eps = bn_param["running_mean"], bn_param["running_var"], bn_param.get("eps", 1e-5)
    momentum = bn_param.get("momentum", 0.9)
    if bn_param["mode"] == "train":
        mean, var = x.mean(0), x.var(0)
        for name, now in (("running_mean", mean), ("running_var", var)):
            bn_param[name] = momentum * bn_param[name] + (1 - momentum) * now
    x_hat = (x - mean) / np.sqrt(var + eps)
    return gamma * x_hat + beta, (x, x_hat, var, eps)


def decayed(x, scale, shift, pop_mean, pop_var, is_training, decay=0.999, eps=1e-3):
    y, pop_mean, pop_var = np.array(x), np.array(pop_mean), np.array(pop_var)
    y = right(x, scale, shift, pop_mean, pop_var, is_training, decay, eps)
    return y, pop_mean, pop_var


@pytest.mark.parametrize("thing", [right, cs231n, decayed], ids=lambda one: one.__name__)
def test_a_function_is_understood_in_many_ways(thing):
    checked = check(thing)
    assert checked.ok and not checked.hints
    asked = [one for one in checked.rows if one.verdict == "pass"]
    assert len(asked) >= 8 and checked.about.kind == "a NumPy function"
    assert checked.words()[0].startswith(f"{thing.__name__} (a NumPy function): its numbers are")


def test_usual_names_are_named_as_conventions():
    (note,) = check(decayed).about.conventions
    assert note == (
        "scale is Keras's gamma; shift is Keras's beta; pop_mean is Keras's moving_mean; pop_var "
        "is Keras's moving_variance; is_training is Keras's training; decay is Keras's momentum; "
        "eps is Keras's epsilon."
    )
    thing, _ = exhibit("right_class")
    assert "momentum is the weight of the new batch" in check(thing).about.conventions[1]


def test_the_default_of_momentum_says_which_way_round_it_is_meant():
    thing, _ = exhibit("right_class")

    class Reversed(thing):
        def __init__(self, channels, eps=1e-5, momentum=0.9):
            super().__init__(channels, eps, momentum)

    (cause, text, remedy), = check(Reversed).hints
    assert cause == "momentum the other way round" and remedy.startswith("moving = momentum *")
    assert re.match(r"Your momentum is the other way round: with 1 − m your averages fit within "
                    r"\de-\d+\.$", text)


@pytest.mark.parametrize("make", [
    lambda thing: thing(3), lambda thing: lambda: thing(3), lambda thing: lambda dim: thing(dim),
], ids=["instance", "factory", "factory of a size"])
def test_an_instance_and_a_factory_are_checked_like_the_class(make):
    for name in ("right_class", "averages_move_at_test_time"):
        thing, _ = exhibit(name)
        found, expected = (
            [cause for cause, *_ in check(one).hints] for one in (make(thing), thing))
        assert found == expected


def test_two_mistakes_at_once_are_both_found():
    def wrong(x, gamma, beta, moving_mean, moving_variance, training, momentum=0.9, eps=1e-5):
        y = right(x, gamma, beta, moving_mean, moving_variance, training, 1 - momentum, eps)
        return (y - beta) / gamma

    assert [cause for cause, *_ in check(wrong).hints] == [
        "momentum the other way round", "gamma and beta not applied"]


def test_what_nothing_explains_is_said_so_with_its_evidence():
    def noise(x, training):
        return np.sin(x)

    checked = check(noise)
    assert not checked.ok and not checked.hints
    first, second, *_ = checked.words()
    assert first.endswith("None of the mistakes that are known here explains it:")
    assert second.startswith("- training normalizes with the batch: expected ")


@pytest.mark.parametrize("thing, message", [
    (3, "received 3; expected a subclass of keras.layers.Layer"),
    (lambda: None, "received None; expected a subclass of keras.layers.Layer"),
    (lambda x, wobble, training: x, r"received the arguments wobble, .+looked for gamma: gamma"),
    (lambda x, gamma, beta: x, "no argument switches between training and inference; looked for"),
    (lambda x, training: x.ravel()[:2], r"ended in an output of shape \(2,\)"),
    (lambda x, training: 1 / 0, "ended in ZeroDivisionError"),
])
def test_what_is_not_recognized_is_refused_with_a_form_that_is(thing, message):
    with pytest.raises(ValueError, match=message) as refusal:
        check(thing)
    assert "class Mine:" in str(refusal.value)


def test_an_argument_may_be_given_by_its_own_name():
    def wobbly(x, gamma, beta, moving_mean, moving_variance, training, wobble, momentum=0.99,
               epsilon=1e-3):
        return right(x, gamma, beta, moving_mean, moving_variance, training, momentum, epsilon)

    assert check(wobbly, wobble=2).ok


def test_a_notebook_gets_words_and_table_and_nothing_that_runs():
    def bad(x, gamma, beta, moving_mean, moving_variance, training):
        raise_ = "<script>alert(1)</script>"
        if not training:
            raise ValueError(raise_)
        return x

    page = check(bad)._repr_html_()
    assert "<table>" in page and "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.slow
def test_a_file_of_numpy_is_checked_without_tensorflow():
    code = (
        "import sys, time; start = time.monotonic(); import bn_keras\n"
        f"sys.path.insert(0, {str(ROOT / 'docs/gallery')!r}); import momentum_reversed\n"
        "assert not bn_keras.check(momentum_reversed.batch_norm).ok\n"
        "loaded = {'tensorflow', 'keras', 'torch', 'jax'} & {*sys.modules}\n"
        "assert not loaded, loaded\n"
        "print(time.monotonic() - start)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_command_takes_a_file_and_its_status_is_that_of_the_numbers():
    def command(*arguments):
        result = subprocess.run(
            [sys.executable, "-m", "bn_keras", "conformance", *arguments], cwd=ROOT,
            capture_output=True, text=True,
        )
        return result.returncode, result.stdout, result.stderr

    wrong, good = (f"docs/gallery/{name}.py:batch_norm"
                   for name in ("momentum_reversed", "right_function"))
    status, out, err = command(wrong)
    assert (status, err) == (1, "")
    assert out.splitlines()[1].startswith("1. Your momentum is the other way round: with 1 − m")
    assert command(good)[0] == 0 and command(good, "--fail_on=policy")[0] == 1


TORCH = """
import torch, bn_keras
class Detached(torch.nn.BatchNorm1d):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            mean, var = x.mean(0), x.var(0, unbiased=False)
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
        return self.weight * (x - mean) / torch.sqrt(var + self.eps) + self.bias
class Kept(torch.nn.BatchNorm1d):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        mean, var = x.mean(0), x.var(0, unbiased=False)
        self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
        self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
        return self.weight * (x - mean) / torch.sqrt(var + self.eps) + self.bias
for thing in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm1d(5, momentum=0.3)):
    checked = bn_keras.check(thing)
    assert checked.ok and checked.about.kind == "a PyTorch module", str(checked)
    assert "n − 1" in checked.about.conventions[2]
for thing, cause in ((Detached, "statistics are constants in the gradient"),
                     (Kept, "statistics hang on the graph")):
    assert [one[0] for one in bn_keras.check(thing).hints] == [cause], thing
"""
JAX = """
import jax.numpy as jnp, bn_keras
from jax import lax
def right(x, scale, bias, mean, var, use_running_average, momentum=0.9, eps=1e-5, stop=False):
    if not use_running_average:
        now = lax.stop_gradient(x) if stop else x
        m, v = now.mean(0), now.var(0)
        mean, var = momentum * mean + (1 - momentum) * m, momentum * var + (1 - momentum) * v
    else:
        m, v = mean, var
    return scale * (x - m) / jnp.sqrt(v + eps) + bias, mean, var
checked = bn_keras.check(right)
assert checked.ok and checked.about.kind == "a JAX function", str(checked)
assert any(one.probe.startswith("gradients") and one.verdict == "pass" for one in checked.rows)
(cause, *_), = bn_keras.check(right, stop=True).hints
assert cause == "statistics are constants in the gradient"
"""
FLAX = """
import flax.linen as nn, jax.numpy as jnp, bn_keras
class Wrong(nn.Module):
    momentum: float = 0.9
    epsilon: float = 1e-5
    @nn.compact
    def __call__(self, x, train):
        n = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, n)
        var = self.variable("batch_stats", "var", jnp.ones, n)
        scale = self.param("scale", nn.initializers.ones, (n,))
        bias = self.param("bias", nn.initializers.zeros, (n,))
        m, v = (x.mean(0), x.var(0)) if train else (mean.value, var.value)
        if train:
            mean.value = (1 - self.momentum) * mean.value + self.momentum * m
            var.value = (1 - self.momentum) * var.value + self.momentum * v
        return scale * (x - m) / jnp.sqrt(v + self.epsilon) + bias
for thing in (nn.BatchNorm, nn.BatchNorm(momentum=0.8)):
    checked = bn_keras.check(thing)
    assert checked.ok and checked.about.kind == "a Flax module", str(checked)
(cause, *_), = bn_keras.check(Wrong).hints
assert cause == "momentum the other way round"
"""


@pytest.mark.slow
@pytest.mark.parametrize("library, code", [("torch", TORCH), ("jax", JAX), ("flax", FLAX)])
def test_modules_and_functions_of_other_libraries_get_their_gradients_checked(
    library, code, tmp_path
):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    path = tmp_path / "script.py"  # in a file, since the source is read
    path.write_text(f"{code}\nimport sys\nassert 'tensorflow' not in sys.modules\n")
    result = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
