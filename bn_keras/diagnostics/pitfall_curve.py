"""A second validation curve of the same weights, evaluated with a bug."""

from typing import Optional

from bn_keras.diagnostics import pitfalls
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.loop import Steps
from bn_keras.registry import PROBES


@PROBES.register("pitfall_curve", metrics={
    "accuracy/validation_{}": ("validation accuracy, evaluated {}", "", "low"),
}, arguments=(
    "correct", "never_updated", "conv_never_updated", "batch_statistics", "without_bn",
    "dense_batch_statistics", "as_written", "dropout_active",
))
class PitfallCurve(Probe):
    """Accuracy over the images of the validation curve, all in one batch.

    Args:
        nets: Nets.
        argument: name in `pitfalls.EVALUATIONS`.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets)
        self._name = argument
        self._copy = pitfalls.evaluation(str(argument))(nets.net)
        self._forward = nets.as_stack(self._copy)

    def during(self, step: int, steps: Steps) -> Values:
        split = self.nets.curve_set
        self._copy.refresh()
        _, accuracy = self.nets.evaluate(split, self._forward, len(split))
        return {f"accuracy/validation_{self._name}": accuracy}
