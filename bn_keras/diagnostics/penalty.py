"""The penalty that the regularizers add to the loss."""

import numpy as np

from bn_keras.diagnostics.probe import Probe, Values
from bn_keras.registry import PROBES


@PROBES.register("penalty", metrics={"penalty": ("penalty in the loss", "", "high")})
class Penalty(Probe):
    """The sum of all regularizers, run by run."""

    def at_end(self) -> Values:
        found = np.zeros(self.nets.runs)
        for weight in self.nets.net.trainable_variables:
            if weight.regularizer is not None:
                # One run behind the other; of one run alone, in the shape that a regularizer knows.
                rows = weight.numpy().reshape(self.nets.runs, -1)
                if self.nets.runs == 1:
                    rows = weight.numpy()[None]
                found += [float(weight.regularizer(row)) for row in rows]
        return {"penalty": found}
