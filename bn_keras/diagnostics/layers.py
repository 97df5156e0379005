"""What every dense layer gets and gives while nets learn, and what that says about them.

The recorder keeps frames for pictures, and measures: does the signal vanish on its way through the
net, are units saturated, are units dead?
"""

import keras
import numpy as np

BATCH = 1000
SATURATED = 0.95  # tanh's slope is under .1 there
GRID_POINTS = 300


class LayerRecorder:
    """Looks at the dense layers of a stack of nets, in inference mode.

    Args:
        model: a stacked model from `models.blocks`; it is only read.
        runs: how many nets stand in it.
        inputs, labels: the examples that frames are taken of, arrays (n, ...) and (n,).
        steps_per_epoch: training steps that make an epoch.
    """

    def __init__(self, model, runs, inputs, labels, steps_per_epoch):
        self._runs, self._inputs, self._labels = runs, inputs, labels
        self._steps_per_epoch = steps_per_epoch
        layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
        self._names = [layer.name for layer in layers]
        self._ends = keras.Model(
            model.input, [end for layer in layers for end in (layer.input, layer.output)]
        )
        self._grid = None
        if inputs.shape[1:] == (1,):  # a function of one number can be drawn as a curve
            self._grid = np.linspace(inputs.min(), inputs.max(), GRID_POINTS, dtype=np.float32)
        self._steps, self._frames, self._fitted = [], [], []

    def record(self, step):
        """Takes a frame of all nets, after `step` training steps."""
        self._steps.append(step)
        self._frames.append(self._values(self._inputs))
        if self._grid is not None:
            self._fitted.append(self._values(self._grid[:, None])[-1])

    def frames(self, run):
        """The frames of one net, as float32 arrays by name.

        Returns:
            dict: `layers` (names, in order), `steps` and `epochs` of the frames; `x` (n, ...) and
            `y` (n,), the examples; for every layer `NAME/input` (frames, n, features) and
            `NAME/output` (frames, n, units), the dense layer's own, in front of any normalizer; if
            an example is one number, `grid` (points,) and `fitted` (frames, points), the net's
            outputs there.
        """
        found = {
            "layers": np.array(self._names), "steps": np.array(self._steps),
            "epochs": np.array(self._steps, np.float32) / self._steps_per_epoch,
            "x": self._inputs, "y": self._labels,
        }
        for number, name in enumerate(self._names):
            for end, what in enumerate(("input", "output")):
                found[f"{name}/{what}"] = np.stack(
                    [frame[2 * number + end][:, run] for frame in self._frames]
                )
        if self._grid is not None:
            found["grid"] = self._grid
            found["fitted"] = np.stack([fitted[:, run, 0] for fitted in self._fitted])
        return found

    def measure(self, inputs, activation, when):
        """Measures what every hidden layer hands on, with the present weights.

        Args:
            inputs: the examples to measure over, (n, ...).
            activation: the nets' own, by name.
            when: "start" or "end", the metrics' first word.

        Returns:
            dict of metric to a (runs,) array. `start_std_layer_3`: standard deviation over the
            examples, the mean of layer 3's units. For relu `start_dead_units_layer_3`: the share of
            units that are 0 for every example. For tanh `start_saturated_units_layer_3`: the share
            of units that are beyond ±.95 for more than half of the examples. The last two also
            over all layers, such as `start_dead_units`.
        """
        metrics = {}
        for number, values in enumerate(self._values(inputs)[2::2], start=1):
            metrics[f"{when}_std_layer_{number}"] = values.std(0, dtype=np.float64).mean(-1)
            if activation == "relu":
                metrics[f"{when}_dead_units_layer_{number}"] = (values == 0).all(0).mean(-1)
            if activation == "tanh":
                beyond = np.median(np.abs(values), 0) > SATURATED
                metrics[f"{when}_saturated_units_layer_{number}"] = beyond.mean(-1)
        for what in ("dead_units", "saturated_units"):
            layers = [found for name, found in metrics.items() if f"_{what}_" in name]
            if layers:
                metrics[f"{when}_{what}"] = np.mean(layers, 0)
        return metrics

    def _values(self, inputs):
        """Input and output of every layer, in turn, as float32 arrays (n, runs, units)."""
        parts = []
        for start in range(0, len(inputs), BATCH):
            batch = side_by_side(inputs[start:start + BATCH], self._runs)
            parts.append(self._ends(batch, training=False))
        return [
            np.concatenate([np.asarray(end, np.float32) for end in ends])
            .reshape(len(inputs), self._runs, -1)
            for ends in zip(*parts)
        ]


def side_by_side(inputs, runs):
    """The same examples for every net of a stack: (n, ...) to (n, runs, ...)."""
    return np.repeat(inputs[:, None], runs, axis=1)
