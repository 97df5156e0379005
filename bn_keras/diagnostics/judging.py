"""Runs conformance probes in a child process, which a layer can end but not answer for.

The layer under test is someone's code: it may call `sys.exit`, crash, loop, or print a table that
looks like the suite's. So a child process imports and judges it, and sends one line an outcome
through a pipe of its own; the parent believes lines that carry a random word which it gave to that
child only. A probe that gets no answer has failed, and the next one is asked in another child: all
are forks of a process that has imported TensorFlow and nothing of the layer.

That holds off whatever happens by accident and all that only prints, exits or replaces parts of the
suite. It is no sandbox: code that searches the interpreter's memory for the pipe can still lie.

    for one in judge("my_module:MyBatchNorm"):
        print(one)  # a Judgement for each probe, and About in the end
"""

import builtins
import contextlib
import dataclasses
import inspect
import json
import os
import secrets
import select
import signal
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from bn_keras.diagnostics.severity import WRONG_NUMBERS
from bn_keras.forks import Forks

# Child processes started for one layer; the rest of its probes fail then, without being tried.
MOST_CHILDREN = 4
MOST_BYTES = 1 << 20  # of a line that does not end
KERAS_LAYER = "a Keras layer"  # the kind of things that all probes are for
# Elsewhere than on Linux, some libraries cannot be forked once they are loaded.
FORKABLE = sys.platform == "linux"
START_SECONDS = 300  # for TensorFlow alone; no code of the layer runs in that time


class Refused(Exception):
    """No probe can be run on what was asked for; the message is one for the user."""


class Silence(Exception):
    """The child gives no answer; the message says what it did in place of one."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One probe and what it found, in plain text."""

    probe: str
    kind: str
    severity: str
    why: str
    verdict: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class About:
    """What is told of a thing besides its probes.

    Attributes:
        kind: what it is, such as "a NumPy function".
        conventions: sentences on what differs from Keras and is no mistake.
        hints: the causes of wrong numbers, the most important first: name, text and remedy.
    """

    kind: str
    conventions: Tuple[str, ...] = ()
    hints: Tuple[Tuple[str, str, str], ...] = ()


def judge(
    layer: str, only: Sequence[str] = (), timeout: float = 120.0
) -> Iterator[Union[Judgement, About]]:
    """Yields a Judgement for each probe, in the suite's order, and About if the thing tells it.

    Args:
        layer: `module:Class` or a dotted path.
        only: texts that select probes, as for `suite.select`; none means all.
        timeout: seconds for the import of the layer's module, and for each probe.

    Raises:
        Refused: the layer cannot be imported or is none, or `only` selects nothing.
    """
    with contextlib.closing(Forks()) as forks:
        yield from _judge(forks, layer, only, timeout)


def _judge(
    forks: Forks, layer: str, only: Sequence[str], timeout: float
) -> Iterator[Union[Judgement, About]]:
    plan: List[Any] = []
    done = 0
    for _ in range(MOST_CHILDREN):
        with contextlib.closing(_Child(forks, layer, only, done)) as child:
            plan = child.receive("plan", START_SECONDS)
            try:
                child.receive("ready", timeout)
            except Silence as silence:
                if not done:
                    raise Refused(
                        f"received {layer!r}; importing it ended in no answer: {silence}; expected "
                        "a module that can be imported"
                    ) from None
            alive = True
            while alive and done < len(plan):
                try:
                    found: Any = child.receive(f"outcome {done}", timeout)
                except (Silence, Refused) as silence:
                    alive, found = False, ("fail", f"expected an answer, received none: {silence}")
                yield Judgement(*plan[done], *found)
                done += 1
            if alive:
                with contextlib.suppress(Silence, Refused):
                    kind, conventions, hints = child.receive("about", timeout)
                    yield About(kind, tuple(conventions), tuple(tuple(one) for one in hints))
        if done == len(plan):
            return
    for one in plan[done:]:
        found = "fail", (
            f"expected an answer, received none: not tried, after {MOST_CHILDREN} processes that "
            "the layer ended"
        )
        yield Judgement(*one, *found)


class _Child:
    """The process that imports and judges the layer, seen from the parent."""

    def __init__(self, forks: Forks, layer: str, only: Sequence[str], first: int) -> None:
        self._word = secrets.token_hex()
        self._pipe, theirs = os.pipe()
        lifeline, self._life = os.pipe()  # its end tells the child that we are gone
        self._unread = b""
        self._said: Dict[str, Any] = {}
        self._fork = forks.start(
            f"{__name__}:prepare", f"{__name__}:answer",
            {"word": self._word, "layer": layer, "only": list(only), "first": first},
            [theirs, lifeline],
        )
        for file in (theirs, lifeline):
            os.close(file)

    def receive(self, key: str, seconds: float) -> Any:
        """The child's message under a key.

        Raises:
            Silence: it ended, or said nothing in that time.
            Refused: it says that it cannot go on.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:  # several at once where the child is fast
                self._said.update(self._understood(line))
            if "refused" in self._said:
                raise Refused(self._said["refused"])
            if key in self._said:
                return self._said[key]
            gone = self._fork.wait(0)  # asked before the last words are read
            readable = select.select([self._pipe], [], [], 0 if gone else 0.2)[0]
            read = os.read(self._pipe, 1 << 16) if readable else b""
            self._unread = (self._unread + read)[-MOST_BYTES:]
            if not read and (gone or readable):
                raise Silence(self._end())
        raise Silence(f"the layer was not done after {seconds:g} s")

    def _understood(self, line: bytes) -> Dict[str, Any]:
        """A line as a dict; an empty one if somebody else wrote it."""
        try:
            said = json.loads(line)
            return said if said.pop("word") == self._word else {}
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            return {}

    def _end(self) -> str:
        if not self._fork.wait(5):
            return "the layer closed the pipe"
        status = self._fork.returncode
        if status is None:
            return "the processes that judge it have ended"
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        return f"the layer ended the process ({how})"

    def close(self) -> None:
        """Ends the child and the processes that it started."""
        self._fork.close()
        for file in (self._life, self._pipe):
            os.close(file)


# ---------------------------------------------------------------- in the child


def prepare(layer: str, **_: Any) -> None:
    """Imports what a judge of the layer needs, before anything of the layer is imported."""
    from bn_keras.diagnostics.conformance import causes, replicas, suite  # noqa: F401
    from bn_keras.native_log import quiet_native_log

    sys.path.insert(0, os.getcwd())
    if FORKABLE and suite.may_need_keras(layer):
        with quiet_native_log():
            suite.keras_layer()


def answer(
    word: str, layer: str, only: Sequence[str], first: int, files: Sequence[int]
) -> None:
    """The child's part: sends the plan, then the outcome of each probe from the first one on."""
    pipe, lifeline = files
    _end_with_the_parent(lifeline)
    write, dumps = os.write, json.dumps  # as they are now, before the layer's module is here

    def send(key: str, told: Any = True) -> None:
        write(pipe, f"\n{dumps({'word': word, key: told})}\n".encode())

    from bn_keras.diagnostics import conformance
    from bn_keras.diagnostics.conformance import causes, replicas
    from bn_keras.native_log import quiet_native_log

    suite = conformance.suite
    if suite.may_need_keras(layer):
        with quiet_native_log():
            replicas.make_logical_devices()
            suite.keras_layer()
    probes, run, describe, parts = dict(suite.PROBES), suite.run, suite.describe, _parts
    find_causes = causes.find
    try:
        names = suite.select(only)
    except ValueError as error:
        return send("refused", str(error))
    send("plan", [
        (one.name, one.kind, one.severity, one.why) for one in (probes[name] for name in names)
    ])
    before = parts(conformance)

    def changed() -> Optional[str]:
        now = parts(conformance)
        return next((name for name in before if now.get(name) is not before[name]), None)

    try:
        make = suite.Maker(suite.find_layer(layer))
    except ValueError as error:
        return send("refused", str(error))
    except KeyboardInterrupt:
        return send(
            "refused", f"received {layer!r}, which raised KeyboardInterrupt; expected a layer"
        )
    send("ready")
    wrong = False
    for number, name in list(enumerate(names))[first:]:
        try:
            found = [(one.verdict, one.evidence) for one in run(make, [name])][0]
        except BaseException as error:  # nobody is at this process's keyboard
            found = "fail", f"expected no error, received {describe(error)}"
        if changed():
            found = "fail", f"expected the suite as it was, received another {changed()}"
        wrong = wrong or (found[0] == "fail" and probes[name].severity == WRONG_NUMBERS)
        send(f"outcome {number}", found)
    hints = [dataclasses.astuple(one) for one in find_causes(make)] if wrong else []
    send("about", (make.kind, make.conventions, hints))
    return None


def _end_with_the_parent(lifeline: int) -> None:
    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _parts(conformance: Any) -> Dict[str, Any]:
    """All that verdicts depend on, by name, to see whether the layer has replaced any of it."""
    import numpy

    from bn_keras.batch_norm import reference

    modules = [conformance.suite, *(getattr(conformance, kind) for kind in conformance.KINDS)]
    found = {}
    for module in [*modules, reference, numpy, builtins]:
        for name, part in vars(module).items():
            name = f"{module.__name__}.{name}"
            found[name], found[f"{name} code"] = part, getattr(part, "__code__", None)
            if module in modules and inspect.isclass(part):
                found.update({f"{name}.{own}": value for own, value in vars(part).items()})
    for name, one in conformance.suite.PROBES.items():
        found[f"probe {name}"], found[f"check of {name}"] = one, one.check
    return found
