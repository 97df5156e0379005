"""`check`: is a batch normalization that someone wrote right, and if not, why not?

    import bn_keras

    def batch_norm(x, gamma, beta, moving_mean, moving_variance, training, momentum=0.9, eps=1e-5):
        ...

    bn_keras.check(batch_norm)

It takes a Keras layer, a plain class, a function of NumPy, TensorFlow, PyTorch or JAX, or a module
of PyTorch or Flax linen; `bn-keras conformance my_file.py:batch_norm` is the same from the command
line.
"""

import collections
import dataclasses
import html
from typing import Any, Dict, List, Sequence, Tuple

from bn_keras.diagnostics.judging import About, Judgement
from bn_keras.diagnostics.severity import SEVERITIES, WRONG_NUMBERS

MOST_IN_WORDS = 3  # of the causes
# Asked by `check`; the others need a process that starts with two devices, or minutes.
KINDS = ("arithmetic", "statistics", "arguments", "guards")


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check` found; printed or shown in a notebook, it says so in words and as a table.

    Attributes:
        thing: the name of what was checked.
        about: what it is, conventions of its own, and the causes of wrong numbers.
        rows: a Judgement for each probe, skipped ones included.
    """

    thing: str
    about: About
    rows: Tuple[Judgement, ...]

    @property
    def ok(self) -> bool:
        """Whether its numbers are right: something was asked of them, and nothing was wrong."""
        return not self.failed(WRONG_NUMBERS) and any(one.verdict == "pass" for one in self.rows)

    @property
    def hints(self) -> Tuple[Tuple[str, str, str], ...]:
        """The causes of wrong numbers, the most important first: name, text and remedy."""
        return self.about.hints

    def failed(self, *severities: str) -> List[Judgement]:
        """The rows that failed, the worst first; of these severities, or of any."""
        wanted = severities or SEVERITIES
        return [one for severity in SEVERITIES if severity in wanted for one in self.rows
                if one.severity == severity and one.verdict == "fail"]

    def counts(self) -> Dict[str, Any]:
        """How many rows passed, failed and were skipped, and how many failed by severity."""
        verdicts = collections.Counter(one.verdict for one in self.rows)
        return {
            "passed": verdicts["pass"],
            "failed": verdicts["fail"],
            "skipped": verdicts["skip"],
            "failed_by_severity": {one: len(self.failed(one)) for one in SEVERITIES},
        }

    def words(self) -> List[str]:
        """Lines on what is wrong, the most important first and three at most; then conventions."""
        told = [self._verdict()]
        for number, (_, text, remedy) in enumerate(self.hints[:MOST_IN_WORDS], 1):
            told += [f"{number}. {text}", f"   Write: {remedy}"]
        if len(self.hints) > MOST_IN_WORDS:
            told.append(f"Then: {', '.join(cause for cause, *_ in self.hints[MOST_IN_WORDS:])}.")
        if not self.hints and not self.ok:
            for one in self.failed(WRONG_NUMBERS)[:MOST_IN_WORDS]:
                told += [f"- {one.probe}: {one.evidence}", f"  {one.why}"]
        told += [f"Note: {one}" for one in self.about.conventions]
        return told

    def _verdict(self) -> str:
        wrong = len(self.failed(WRONG_NUMBERS))
        asked = sum(one.verdict != "skip" for one in self.rows if one.severity == WRONG_NUMBERS)
        what = f"{self.thing} ({self.about.kind})"
        if self.ok:
            others = [f"{len(self.failed(one))} of {one}" for one in SEVERITIES[1:]
                      if self.failed(one)]
            rest = f" Beyond its numbers: {', '.join(others)}." if others else ""
            return f"{what}: its numbers are right, in all {asked} questions.{rest}"
        if not wrong:
            return f"{what}: no question could be asked."
        because = " Here is why:" if self.hints else (
            " None of the mistakes that are known here explains it:")
        return f"{what}: wrong numbers in {wrong} of {asked} questions.{because}"

    def __str__(self) -> str:
        """Words and table as text."""
        rows = self._shown()
        width = max([len(one.probe) for one in rows], default=0)
        lines = [*self.words(), ""]
        for severity in SEVERITIES:
            of_it = [one for one in rows if one.severity == severity]
            lines += [severity] if of_it else []
            lines += [f"  {one.verdict}  {one.probe:{width}}  {one.evidence}" for one in of_it]
        skipped = self.counts()["skipped"]
        return "\n".join([*lines, f"{skipped} more do not apply to {self.about.kind}."])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Words and table as a notebook shows them."""
        words = "<br>".join(html.escape(one) for one in self.words())
        cells = "".join(
            f"<tr><td>{html.escape(one.severity)}</td><td><b>{one.verdict}</b></td>"
            f"<td style='text-align:left'>{html.escape(one.probe)}</td>"
            f"<td style='text-align:left'>{html.escape(one.evidence)}</td></tr>"
            for one in self._shown()
        )
        head = "<tr><th>severity</th><th></th><th>question</th><th>evidence</th></tr>"
        return (f"<p style='white-space:pre-wrap'>{words}</p><table>{head}{cells}</table>"
                f"<p>{self.counts()['skipped']} more do not apply.</p>")

    def _shown(self) -> List[Judgement]:
        """The rows without the skipped ones, by severity, failures first."""
        return [one for severity in SEVERITIES for verdict in ("fail", "pass") for one in self.rows
                if one.severity == severity and one.verdict == verdict]


def check(thing: Any, *, only: Sequence[str] = (), **arguments: Any) -> Checked:
    """Asks a batch normalization whether its numbers are right, and says why not.

    Args:
        thing: a keras.layers.Layer class, an instance of one or a function that makes one; a plain
            class or instance that is called with arrays of shape (batch, channels); a function such
            as `batch_norm(x, gamma, beta, moving_mean, moving_variance, training)` that returns the
            outputs, or these and the new statistics; a module of PyTorch or Flax linen, or its
            class.
        only: which probes: parts of their names, kinds or severities; none means all but those
            under tf.distribute, which the command asks.
        **arguments: more arguments for the thing, by its own names.

    Returns:
        A Checked; print it, or leave it in a notebook's last line.

    Raises:
        ValueError: the thing is not recognized, or `only` selects nothing.
    """
    from bn_keras.diagnostics import conformance
    from bn_keras.diagnostics.conformance import causes

    make = conformance.suite.Maker(thing, **arguments)
    names = conformance.suite.select(only or KINDS)
    rows = tuple(
        Judgement(one.probe.name, one.probe.kind, one.probe.severity, one.probe.why, one.verdict,
                  one.evidence)
        for one in conformance.run(make, names)
    )
    wrong = any(one.verdict == "fail" and one.severity == WRONG_NUMBERS for one in rows)
    hints = tuple((one.cause, one.text, one.remedy) for one in causes.find(make)) if wrong else ()
    return Checked(make.name, About(make.kind, tuple(make.conventions), hints), rows)
