"""Probes: the quantities that runs measure, one a file, asked for by `RunConfig.measure`.

A probe is registered under the name of its file, with what it gives, so that tables and `--help`
know of it before TensorFlow is loaded:

    @PROBES.register("penalty", metrics={"penalty": ("penalty in the loss", "", "high")})
    class Penalty(Probe): ...

(title, unit, worse end: "high", "low" or None). `always=True` marks what every run measures.
`arguments=("", "correct", …)` has all that may stand behind the colon of `NAME:ARGUMENT`, "" where
it may be left out; without it nothing may.
"""

from typing import Any, Dict, List, Mapping, Optional, Tuple

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras import on_disk
from bn_keras.loop import Evaluator, Forward, Steps, Task, as_labels, as_stack
from bn_keras.registry import PROBES

BATCH = 200
Values = Mapping[str, NDArray[Any]]  # by curve, metric or tag: (runs, ...)


class Nets:
    """The nets of some runs side by side, as probes see them; a net alone is a stack of one.

    Attributes:
        net: the keras.Model: of one run on (batch, ...), or of all on (batch, runs, ...).
        runs: how many runs stand in it.
        splits: Splits, the data.
        task: the Task of the nets: their loss, and what counts as right.
        configs: RunConfigs of the runs in training.
        batches: int array (steps, batch, runs), the examples of each of their steps.

    Args:
        net, splits, task: as above.
        stacked: how many runs stand in the net; None for one that cannot stand beside others.
    """

    def __init__(self, net: Any, splits: Any, task: Task, stacked: Optional[int]):
        self.net, self.splits, self.task = net, splits, task
        self.runs = stacked or 1
        self.regression: bool = splits.regression
        self.configs: List[Any] = []
        self.batches = np.zeros((0, 0, self.runs), np.int32)
        self._stacked = stacked
        self.forward = self.as_stack(lambda inputs: net(inputs, training=False))
        self._evaluators: Dict[Forward, Evaluator] = {}

    @property
    def curve_set(self) -> Any:
        """Split of the first validation examples, those behind the points of a curve."""
        return self.splits.validation.first(self.configs[0].curve_size)

    def as_stack(self, net: Forward) -> Forward:
        """A forward pass like the net's as one over (batch, runs, ...)."""
        return as_stack(net, self._stacked)

    def inputs(self, images: Any) -> Any:
        """The same examples for every run, in the shape that the net takes."""
        return images if self._stacked is None else self._repeated(images)

    def _repeated(self, images: Any) -> Any:
        """Examples (n, ...), an array or a nest of arrays, as (n, runs, ...)."""
        def repeated(part: NDArray[Any]) -> NDArray[Any]:
            shape = (len(part), self.runs, *part.shape[1:])
            return np.broadcast_to(part[:, None], shape, subok=True)  # a view, also of a file

        return keras.tree.map_structure(repeated, images)

    def by_run(self, values: Any) -> NDArray[Any]:
        """An activation or a weight of the net as an array (runs, ...).

        Args:
            values: with the channels or units of all runs one behind the other in the last axis.
        """
        values = np.asarray(values)
        if self._stacked is None:
            return values[None]
        return np.moveaxis(values.reshape(*values.shape[:-1], self.runs, -1), -2, 0)

    def activations(self, places: Any, images: NDArray[Any]) -> List[NDArray[Any]]:
        """Values inside the net in inference mode, float32 arrays (runs, n, values).

        Args:
            places: `inputs -> tensors inside the net`, such as an `inside.Inside`.
            images: the examples, (n, ...), an array or a nest of arrays.
        """
        count, parts = len(keras.tree.flatten(images)[0]), []
        for rows in np.array_split(np.arange(count), -(-count // 500)):
            part = keras.tree.map_structure(lambda of: of[rows[0]:rows[-1] + 1], images)
            parts.append([
                self.by_run(end).reshape(self.runs, len(rows), -1).astype(np.float32)
                for end in keras.tree.flatten(places(self.inputs(part)))
            ])
        return [np.concatenate(ends, axis=1) for ends in zip(*parts)]

    def evaluate(
        self, split: Any, forward: Optional[Forward] = None, batch_size: int = BATCH
    ) -> Tuple[NDArray[Any], NDArray[Any]]:
        """(losses, accuracies) of a split, arrays (runs,), in inference mode.

        Args:
            split: Split.
            forward: of a copy of the nets, over (batch, runs, ...); None for the nets themselves.
            batch_size: examples at a time.
        """
        forward = forward or self.forward
        if forward not in self._evaluators:
            train = self.splits.train
            self._evaluators[forward] = Evaluator(
                forward, self.task, train.images, train.labels, self.runs
            )
        return self._evaluators[forward](split.images, split.labels, batch_size)

    def predict(
        self, images: Any, forward: Optional[Forward] = None, batch_size: int = BATCH
    ) -> NDArray[Any]:
        """Outputs for images, an array (n, runs, outputs); arguments as for `evaluate`."""
        forward = forward or self.forward
        starts = range(0, len(keras.tree.flatten(images)[0]), batch_size)
        parts = (
            keras.tree.map_structure(lambda of: on_disk.rows(of, at, at + batch_size), images)
            for at in starts
        )
        return np.concatenate([np.asarray(forward(self._repeated(part))) for part in parts])

    def judge(
        self, labels: NDArray[Any], outputs: NDArray[Any]
    ) -> Tuple[NDArray[Any], NDArray[Any]]:
        """(losses, accuracies) of outputs (n, runs, outputs) for labels (n,), arrays (runs,)."""
        of_runs = as_labels(self._repeated(labels))
        losses = np.asarray(self.task.losses(of_runs, outputs))
        return losses.mean(0), np.asarray(self.task.accuracy(of_runs, outputs))


class Probe:
    """One measured quantity; a probe overrides the methods that have values for it.

    A probe is made once for a graph, and started anew for all runs that are trained in it.

    Args:
        nets: Nets, only read.
        argument: what stands behind the colon of `NAME:ARGUMENT`, or None. A probe that takes one
            does not pass it on.

    Raises:
        ValueError: the probe takes no argument, or knows none of that name.
    """

    every = "evaluation"  # or "log": after how many steps `during` and `histograms` are asked

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        if argument is not None:
            raise ValueError(
                f"{type(self).__name__} takes no argument; received {argument!r} behind the colon"
            )
        self.nets = nets

    def start(self) -> Values:
        """Called before the first step; returns curves' values at step 0, as `during`."""
        return {}

    def at_start(self) -> Values:
        """Metric to values (runs,) before the first step; those of diverged runs are kept."""
        return {}

    def during(self, step: int, steps: Steps) -> Values:
        """Curve to values (runs,) after `step` steps, of which `steps` are the last ones."""
        return {}

    def histograms(self, step: int) -> Values:
        """Tag to array (runs, ...), whose values a histogram shows."""
        return {}

    def at_end(self) -> Values:
        """Metric to values (runs,) of the trained nets; those of diverged runs are dropped."""
        return {}

    def frames(self, run: int) -> Optional[Values]:
        """Arrays of one run for pictures, by name, stored beside its result; None for nothing."""
        return None


def make_probe(name: str, nets: Nets) -> Probe:
    """The probe `NAME` or `NAME:ARGUMENT`.

    Raises:
        UnknownName, ValueError: there is no such probe, or it knows no such argument.
    """
    kind, _, argument = name.partition(":")
    found: Probe = PROBES.get(kind)(nets, argument or None)
    return found


def measured_always() -> List[str]:
    """Names of the probes that every run has."""
    return [name for name in PROBES.names() if PROBES.properties(name).get("always")]
