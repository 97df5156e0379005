"""Batch renormalization with schedules for its bounds, as its paper trains with them.

Ioffe (2017), "Batch Renormalization: Towards Reducing Minibatch Dependence", section 3: training
starts as plain batch normalization (r_max 1, d_max 0) and is given its freedom bit by bit.
"""

from typing import Any, Callable, Optional, Union

import keras
from keras import ops

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.registry import NORMALIZERS


@keras.saving.register_keras_serializable(package="bn_keras")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """A straight line between two values, level before and after.

    Args:
        start, stop: the values.
        begin, end: updates at which the line leaves `start` and reaches `stop`.

    Raises:
        ValueError: it ends before it begins.
    """

    def __init__(self, start: float, stop: float, begin: float, end: float) -> None:
        if not 0 <= begin < end:
            raise ValueError(f"Ramp: begin={begin}, end={end}; expected 0 <= begin < end.")
        self._config = {"start": start, "stop": stop, "begin": begin, "end": end}

    def __call__(self, updates: Any) -> Any:
        """The value after that many updates, a scalar tensor."""
        start, stop, begin, end = self._config.values()
        share = (ops.cast(updates, "float32") - begin) / (end - begin)
        return start + (stop - start) * ops.clip(share, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as Keras writes them into files."""
        return dict(self._config)


# A number, a schedule `(updates) -> number`, also as `get_config` writes it, or None for no bound.
Bound = Union[float, Callable[[Any], Any], dict[str, Any], None]


@keras.saving.register_keras_serializable(package="bn_keras")
class BatchRenorm(BatchNorm):
    """BatchNorm with `renorm=True` whose bounds follow the number of updates.

        r = clip(sigma_batch / sigma_moving, 1 / rmax, rmax)
        d = clip((mean_batch - mean_moving) / sigma_moving, -dmax, dmax)
        y = gamma * (x_hat * r + d) + beta

    >>> layer = BatchRenorm(rmax=Ramp(1, 3, begin=100, end=200), dmax=Ramp(0, 5, 100, 150))
    >>> float(layer.rmax(150)), float(layer.dmax(150))
    (2.0, 5.0)

    Args:
        rmax: bound of r: a number of at least 1, a schedule `(updates) -> number` such as `Ramp`,
            or None for no bound. The default is the paper's: 1 for 5,000 updates, then towards 3
            at 40,000.
        dmax: bound of d, at least 0, likewise; the paper's: 0 for 5,000 updates, then towards 5 at
            25,000.
        *args, **kwargs: as for BatchNorm, but for `renorm` and `renorm_clipping`.

    Raises:
        ValueError: a bound out of range.
    """

    def __init__(
        self, *args: Any, rmax: Bound = Ramp(1.0, 3.0, 5000, 40000),
        dmax: Bound = Ramp(0.0, 5.0, 5000, 25000), **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs, renorm=True)  # type: ignore[misc]
        self.rmax = _bound("rmax", rmax, 1)
        self.dmax = _bound("dmax", dmax, 0)

    counts_updates = True

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["renorm"], config["renorm_clipping"]
        bounds = {
            name: keras.saving.serialize_keras_object(bound) if callable(bound) else bound
            for name, bound in (("rmax", self.rmax), ("dmax", self.dmax))
        }
        return {**config, **bounds}

    def _clipping(self) -> Optional[dict[str, Any]]:
        rmax, dmax = (
            bound(self.updates.value) if callable(bound) else bound
            for bound in (self.rmax, self.dmax)
        )
        return {"rmax": rmax, "rmin": None if rmax is None else 1 / rmax, "dmax": dmax}


@NORMALIZERS.register("renorm", channelwise=True)
def renorm(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Batch renormalization at the paper's bounds, 3 and 5, reached within 150 updates."""
    return BatchRenorm(
        rmax=Ramp(1.0, 3.0, 50, 150), dmax=Ramp(0.0, 5.0, 50, 150), renorm_momentum=momentum,
        momentum=momentum, epsilon=epsilon, name=name, dtype=dtype,
    )


def _bound(name: str, value: Any, least: float) -> Union[float, Callable[[Any], Any], None]:
    if isinstance(value, dict):  # a schedule, as get_config writes it
        value = keras.saving.deserialize_keras_object(value)
    if value is None or callable(value):
        return value
    if not float(value) >= least:
        raise ValueError(
            f"BatchRenorm: {name}={value!r}; expected a number of at least {least}, a schedule or "
            "None."
        )
    return float(value)
