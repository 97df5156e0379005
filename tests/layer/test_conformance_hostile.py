"""Layers that end, stall or impersonate the conformance suite, judged by the command."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from processes import Borrowed

from bn_keras.__main__ import main
from bn_keras.diagnostics import judging

pytestmark = pytest.mark.slow

NAMES = ["training normalizes with the batch", "inference takes each example by itself"]
HEAD = """
import ctypes, os, signal, sys, time
import keras, numpy as np
from bn_keras.diagnostics import conformance
from bn_keras.diagnostics.conformance import suite


class Wrong(keras.layers.Layer):
    def __init__(self, momentum=0.99, epsilon=1e-3):
        super().__init__()
        self.momentum = momentum

    def call(self, inputs, training=False):
        attack()
        return inputs + 1
"""


def command(folder, *arguments):
    """(exit status, standard output, standard error) of the command, started by itself."""
    started = [sys.executable, "-m", "bn_keras", "conformance", *arguments]
    result = subprocess.run(started, cwd=folder, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def judge(tmp_path, monkeypatch, capsys):
    """Status, verdicts and evidence by probe of a module in which `Wrong` is judged.

    The children are started as the command starts them; the process that they are forks of serves
    other tests, too.
    """
    monkeypatch.setattr(judging, "Forks", Borrowed)
    monkeypatch.chdir(tmp_path)

    def judged(module, *arguments, only=NAMES):
        (tmp_path / "hostile.py").write_text(module)
        asked = [f"--only={name}" for name in only]
        status = main(["conformance", "hostile:Wrong", "--json", *arguments, *asked])
        told = json.loads(capsys.readouterr().out)
        assert status == told["status"]
        return status, {one["probe"]: (one["verdict"], one["evidence"]) for one in told["probes"]}

    return judged


@pytest.fixture
def attack(judge):
    """The same of a layer that is wrong and does something in `call`."""

    def attacked(body, *arguments, **settings):
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        return judge(f"{HEAD}\n\ndef attack():\n{lines}\n", *arguments, **settings)

    return attacked


def test_a_layer_that_ends_the_process_fails_and_the_next_probe_runs(attack):
    body = (
        "if os.path.exists('once'):\n"
        "    return\n"
        "open('once', 'w').close()\n"
        "print('hostile:Wrong: 2 passed, 0 failed', flush=True)\n"
        "os._exit(0)\n"
    )
    status, found = attack(body)
    ended = "expected an answer, received none: the layer ended the process (exit status 0)"
    assert status == 1 and found[NAMES[0]] == ("fail", ended)
    assert found[NAMES[1]][0] == "pass"  # a fresh process: inputs + 1 is each example by itself


@pytest.mark.parametrize(
    "body, evidence",
    [
        ("sys.exit(0)", "expected no error, received SystemExit(0)"),
        ("raise KeyboardInterrupt", "expected no error, received KeyboardInterrupt"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the layer ended the process (SIGSEGV)"),
        ("os.closerange(3, 100)\ntime.sleep(300)", "the layer closed the pipe"),
        ("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(300)", "the processes that judge it"),
        ("if os.fork():\n    os._exit(0)\ntime.sleep(300)", "the layer ended the process"),
        ("raise suite.NotApplicable('not today')", "received NotApplicable: not today"),
        ("suite.first_line = lambda error: ''", "expected the suite as it was, received another"),
        ("suite.alike.__code__ = (lambda *a, **k: '').__code__", "expected the suite as it was"),
        ("np.abs = lambda x: x * 0", "expected the suite as it was"),
    ],
)
def test_a_layer_that_crashes_or_cheats_fails(attack, body, evidence):
    names = NAMES[:1] if evidence.startswith("the ") else NAMES  # another process for each
    status, found = attack(body, only=names)
    assert status == 1 and {verdict for verdict, _ in found.values()} == {"fail"}
    assert len(found) == len(names) and all(evidence in told for _, told in found.values())


# Python's own lock is held and no signal handler of it runs, as in a loop, at no cost.
@pytest.mark.parametrize(
    "body", ["ctypes.PyDLL(None).sleep(300)", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_layer_that_stalls_fails_after_the_timeout(attack, body):
    evidence = "expected an answer, received none: the layer was not done after 5 s"
    found = attack(body, "--timeout=5", only=NAMES[:1])
    assert found == (1, {NAMES[0]: ("fail", evidence)})


def test_a_layer_that_ends_every_process_is_given_up_after_some(attack):
    status, found = attack("os._exit(0)", only=["wrong numbers"])
    verdicts = [verdict for verdict, _ in found.values()]
    assert status == 1 and verdicts.count("pass") == 0 and len(verdicts) > 10
    given_up = [told for _, told in found.values() if "after 4 processes" in told]
    assert len(given_up) > 3, found


def test_what_is_written_to_every_open_file_is_not_believed(attack):
    body = (
        "fake = {'word': '', 'outcome 0': ['pass', ''], 'outcome 1': ['pass', '']}\n"
        "import json\n"
        "for number in range(3, 100):\n"
        "    try:\n"
        "        os.write(number, b'\\n' + json.dumps(fake).encode() + b'\\n{\"word\"')\n"
        "    except OSError:\n"
        "        pass\n"
    )
    status, found = attack(body)
    assert status == 1 and found[NAMES[0]][0] == "fail"


@pytest.mark.parametrize(
    "text, message",
    [
        ("import sys; sys.exit(0)", "importing hostile ended in SystemExit(0); expected module:"),
        (
            "import os; os._exit(0)",
            "importing it ended in no answer: the layer ended the process (exit status 0)",
        ),
        (
            "import time; time.sleep(300)",
            "importing it ended in no answer: the layer was not done after 4 s",
        ),
        ("raise KeyboardInterrupt", "which raised KeyboardInterrupt"),
    ],
    ids=lambda value: value[:24],
)
def test_a_module_that_cannot_be_imported_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "hostile.py").write_text(f"print('all passed', flush=True)\n{text}\n")
    timeout = ["--timeout=4"] if "sleep" in text else []
    status, out, err = command(tmp_path, "hostile:Wrong", *timeout)
    assert (status, out) == (2, "")
    told = err.removeprefix("all passed\n")  # what the module prints is not on standard output
    assert told.startswith("bn-keras conformance: received 'hostile:") and told.count("\n") == 1
    assert message in told


def test_a_module_that_replaces_the_suite_is_caught(judge):
    status, found = judge(
        HEAD + "\n\n"
        "def attack():\n"
        "    pass\n\n\n"
        "def run(layer_class, names=None):\n"
        "    for name in names:\n"
        "        yield suite.Outcome(suite.PROBES[name], 'pass', 'all is well')\n\n\n"
        "suite.run = conformance.run = run\n"
        "suite.PROBES.clear()\n"
    )
    assert status == 1 and [verdict for verdict, _ in found.values()] == ["fail", "fail"]


def test_what_an_error_says_cannot_draw_on_the_terminal(attack):
    status, found = attack(r"raise ValueError('a\x1b[2Kb\rhostile:Wrong: 2 passed')")
    assert status == 1
    assert all(told.isprintable() and "\x1b" not in told for _, told in found.values())


def has_ended(pid, seconds=60):
    """Whether a process ends in that time."""
    status = pathlib.Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.1)
    return False


in_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")


@in_proc
def test_what_a_layer_has_started_ends_with_it(tmp_path, attack):
    attack(
        "pid = os.fork()\n"
        "if pid:\n"
        "    open('pid', 'w').write(str(pid))\n"
        "    os._exit(0)\n"
        "time.sleep(300)",
        only=NAMES[:1],
    )
    assert has_ended(int((tmp_path / "pid").read_text()))


@in_proc
def test_the_layer_ends_with_the_command_that_judges_it(tmp_path):
    (tmp_path / "hostile.py").write_text(
        "import os, time\n"
        "open('pid.new', 'w').write(str(os.getpid()))\n"
        "os.rename('pid.new', 'pid')\n"
        "while True: time.sleep(0.1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bn_keras", "conformance", "hostile:Wrong"], cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int((tmp_path / "pid").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert has_ended(pid), "the child outlives the command"
