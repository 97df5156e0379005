"""Inputs and outputs of every layer with a kernel while nets learn.

Kept as frames for pictures, and measured: does the signal vanish on its way through the net, are
units saturated, are units dead?
"""

from typing import Any, Dict, List, Optional

import numpy as np
from numpy.typing import NDArray

from bn_keras.diagnostics.inside import Inside
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.loop import Steps
from bn_keras.registry import PROBES

SATURATED = 0.95  # tanh's slope is under .1 there
GRID_POINTS = 300
MAX_VALUES = 200_000  # of a layer in a frame, as many whole examples as fit
MEASURED = 2000  # training examples that measures are taken over, fewer of nets with large layers
MAX_MEASURED = 20_000_000  # values of the largest layer


@PROBES.register("layers", metrics={
    "loss/test": ("test loss", "", "high"),
    "start_std_layer_{}": ("deviation behind layer {} at the start", "", "low"),
    "end_std_layer_{}": ("deviation behind layer {} at the end", "", "low"),
    "start_dead_units_layer_{}": ("dead units of layer {} at the start", "", "high"),
    "end_dead_units_layer_{}": ("dead units of layer {} at the end", "", "high"),
    "start_saturated_units_layer_{}": ("saturated units of layer {} at the start", "", "high"),
    "end_saturated_units_layer_{}": ("saturated units of layer {} at the end", "", "high"),
    "start_dead_units": ("dead units at the start", "", "high"),
    "end_dead_units": ("dead units at the end", "", "high"),
    "start_saturated_units": ("saturated units at the start", "", "high"),
    "end_saturated_units": ("saturated units at the end", "", "high"),
})
class Layers(Probe):
    """Looks at the layers with kernels of all nets, in inference mode.

    Frames are taken of the first test examples, as many as the validation curve has, before
    training and at every evaluation. Measures are taken before and after: `start_std_layer_3` is
    the standard deviation over training examples of what layer 3 hands on, behind normalizer and
    activation, the mean over its units. For relu `start_dead_units_layer_3` is the share of units
    that are 0 for every example; for tanh `start_saturated_units_layer_3` the share of units that
    are beyond ±.95 for more than half of the examples; both also over all layers.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets, argument)
        layers = [
            layer for layer in nets.net._flatten_layers()
            if getattr(layer, "kernel", None) is not None
        ]
        self._inside = Inside(nets, layers, "layer with a kernel")
        self._names = self._inside.names
        self._grid: Optional[NDArray[Any]] = None
        inputs = nets.splits.test.images
        # A function of one number can be drawn as a curve.
        if isinstance(inputs, np.ndarray) and inputs.shape[1:] == (1,):
            self._grid = np.linspace(inputs.min(), inputs.max(), GRID_POINTS, dtype=np.float32)

    def start(self) -> Values:
        self._seen = self.nets.splits.test.first(self.nets.configs[0].curve_size)
        self._steps: List[int] = []
        self._frames: List[List[NDArray[Any]]] = []
        self._fitted: List[NDArray[Any]] = []
        return self._look(0)

    def at_start(self) -> Values:
        return self._measure("start")

    def during(self, step: int, steps: Steps) -> Values:
        return self._look(step)

    def _look(self, step: int) -> Values:
        self._steps.append(step)
        self._frames.append([_thinned(values) for values in self._values(self._seen.images)])
        if self._grid is not None:
            self._fitted.append(self._values(self._grid[:, None])[-1])
        return {"loss/test": self.nets.evaluate(self._seen)[0]}

    def histograms(self, step: int) -> Values:
        return {
            f"{name}/{what}": self._frames[-1][2 * number + end]
            for number, name in enumerate(self._names)
            for end, what in enumerate(("layer_input", "pre-activation"))
        }

    def at_end(self) -> Values:
        return self._measure("end")

    def frames(self, run: int) -> Values:
        """The frames of one net, as float32 arrays by name.

        Returns:
            dict: `layers` (names, in order), `steps` and `epochs` of the frames; `x` (n, ...) and
            `y` (n,), the examples; for every layer `NAME/input` (frames, m, features) and
            `NAME/output` (frames, m, units), the layer's own, in front of any normalizer, of as
            many of the examples as are kept; if an example is one number, `grid` (points,) and
            `fitted` (frames, points), the net's outputs there.
        """
        per_epoch = self.nets.configs[run].steps_per_epoch(len(self.nets.splits.train))
        found = {
            "layers": np.array(self._names), "steps": np.array(self._steps),
            "epochs": np.array(self._steps, np.float32) / per_epoch,
            "x": self._seen.images, "y": self._seen.labels,
        }
        for number, name in enumerate(self._names):
            for end, what in enumerate(("input", "output")):
                found[f"{name}/{what}"] = np.stack(
                    [frame[2 * number + end][run] for frame in self._frames]
                )
        if self._grid is not None:
            found["grid"] = self._grid
            found["fitted"] = np.stack([fitted[run, :, 0] for fitted in self._fitted])
        return found

    def _measure(self, when: str) -> Dict[str, NDArray[Any]]:
        activation = self.nets.configs[0].activation
        count = max(1, min(MEASURED, MAX_MEASURED // self._inside.widest))
        metrics: Dict[str, NDArray[Any]] = {}
        values_of_layers = self._values(self.nets.splits.train.first(count).images)[2::2]
        for number, values in enumerate(values_of_layers, start=1):
            metrics[f"{when}_std_layer_{number}"] = values.std(1, dtype=np.float64).mean(-1)
            if activation == "relu":
                metrics[f"{when}_dead_units_layer_{number}"] = (values == 0).all(1).mean(-1)
            if activation == "tanh":
                saturated = (np.abs(values) > SATURATED).mean(1) > 0.5
                metrics[f"{when}_saturated_units_layer_{number}"] = saturated.mean(-1)
        for what in ("dead_units", "saturated_units"):
            layers = [found for name, found in metrics.items() if f"_{what}_" in name]
            if layers:
                metrics[f"{when}_{what}"] = np.mean(layers, 0)
        return metrics

    def _values(self, images: NDArray[Any]) -> List[NDArray[Any]]:
        """Input and output of every layer, in turn, as float32 arrays (runs, n, values)."""
        return self.nets.activations(self._inside, images)


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, :max(1, MAX_VALUES // values.shape[-1])]
