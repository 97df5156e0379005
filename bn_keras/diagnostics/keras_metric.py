"""Metrics of Keras that the user asks for."""

from typing import Any, Optional

import keras
import numpy as np

from bn_keras import own
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.labels import Labels
from bn_keras.registry import PROBES


@PROBES.register("keras_metric", arguments=(), metrics={
    "validation_metric_{}": ("validation {}", "", None),
    "test_metric_{}": ("test {}", "", None),
})
class KerasMetric(Probe):
    """A Keras metric over all validation and test examples, in inference mode.

    Args:
        nets: Nets.
        argument: the name under which `bn_keras.compare` has given the metric: an object or a
            function `(y_true, y_pred) -> values`.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets)
        if argument is None or not own.is_given(argument):
            raise ValueError(
                f"received {argument!r} behind the colon; expected a metric that "
                "bn_keras.compare(metrics=...) was given in this process"
            )
        given: Any = own.get(argument)
        # Arms are trained side by side, and a metric counts.
        is_object = isinstance(given, keras.metrics.Metric)
        try:
            self._metric = type(given).from_config(given.get_config()) if is_object else given
        except TypeError as error:
            raise ValueError(
                f"a copy of the metric cannot be made from its config ({error}); expected an "
                "__init__ that takes name and **kwargs and hands them on"
            ) from error
        self._name = own.place(argument)

    def at_end(self) -> Values:
        splits = self.nets.splits
        return {
            f"{name}_metric_{self._name}": self._values(split)
            for name, split in (("validation", splits.validation), ("test", splits.test))
        }

    def _values(self, split: Any) -> Any:
        outputs = self.nets.predict(split.images)
        form = Labels(self._metric, self.nets.splits.label_shape, self.nets.regression)
        found = []
        for run in range(self.nets.runs):
            labels = form(split.labels, outputs[:, run])
            if isinstance(self._metric, keras.metrics.Metric):
                self._metric.reset_state()
                self._metric.update_state(labels, outputs[:, run])
                found.append(float(self._metric.result()))
            else:
                found.append(float(np.mean(self._metric(labels, outputs[:, run]))))
        return np.array(found)
