"""Inputs of the last activation over the steps (Ioffe & Szegedy 2015, fig. 1)."""

from typing import Any, Optional

import numpy as np

from bn_keras.diagnostics.inside import Inside
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.loop import Steps
from bn_keras.models.blocks import normalizers
from bn_keras.registry import PROBES

PERCENTILES = (15, 50, 85)


@PROBES.register("units", metrics={
    "unit/p15": ("15th percentile of one unit's input", "", None),
    "unit/p50": ("median of one unit's input", "", None),
    "unit/p85": ("85th percentile of one unit's input", "", None),
    "units/median_range": ("range of a unit's median over training", "", "high"),
})
class Units(Probe):
    """Percentiles over the images of the validation curve, of the first unit.

    Units are the outputs of the normalizer that is called last.

    `units/median_range` is how far the median has travelled so far, the mean over all units.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets, argument)
        self._inside = Inside(nets, normalizers(nets.net), "normalizer")

    def start(self) -> Values:
        self._low: Any = np.inf
        self._high: Any = -np.inf
        return {}

    def during(self, step: int, steps: Steps) -> Values:
        *_, units = self.nets.activations(self._inside, self.nets.curve_set.images)
        found = np.percentile(units, PERCENTILES, axis=1)  # (percentiles, runs, units)
        median = found[PERCENTILES.index(50)]
        self._low, self._high = np.minimum(self._low, median), np.maximum(self._high, median)
        return {
            **{f"unit/p{p}": values[:, 0] for p, values in zip(PERCENTILES, found)},
            "units/median_range": (self._high - self._low).mean(-1),
        }
