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
                rows = weight.numpy().reshape(self.nets.runs, -1)  # one run behind the other
                found += [float(weight.regularizer(row)) for row in rows]
        return {"penalty": found}
