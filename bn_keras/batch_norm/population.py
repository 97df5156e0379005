"""Population statistics: the moving mean and variance that inference uses, and what moves them.

A `Population` owns its variables and knows nothing of Keras layers: how much each batch counts
(the momentum), which batches do not count at all (the guards), and how micro-batches are pooled.
"""

import math
from typing import Any, Callable, List, Optional, Tuple

import keras
from keras import ops

from bn_keras.batch_norm import functional
from bn_keras.batch_norm.functional import Tensor


class Population:
    """The moving statistics of one batch normalization.

    Its variables are made where it is made, so that their paths follow the layer that is built.

    Args:
        channels: how many, an int.
        dtype: of the statistics, "float32" or "float64".
        mean_initializer, variance_initializer: their start values.
        momentum: weight of the old statistic: a number, None for the cumulative average, or a
            schedule `(updates) -> number`.
        debias: let the first batch replace the initial statistics (constant momentum only).
        unbiased_variance: keep n / (n - 1) times the batch's variance.
        counts_updates: count them also where the momentum does not depend on it.
        pools: make the variables of the pool of micro-batches at once, and keep them in files.
            Otherwise `open_pool` makes them, and they are in no file.

    Attributes:
        mean, variance: keras.Variable of shape (channels,).
        variables: list of all that belong into a weights file, in its order.
    """

    def __init__(
        self,
        channels: int,
        dtype: str,
        mean_initializer: Any,
        variance_initializer: Any,
        *,
        momentum: Any = 0.99,
        debias: bool = False,
        unbiased_variance: bool = False,
        counts_updates: bool = False,
        pools: bool = False,
    ) -> None:
        self._channels, self._dtype = channels, dtype
        self._momentum, self._debias = momentum, debias
        self._unbiased_variance = unbiased_variance
        self._mean_initializer = mean_initializer
        self._variance_initializer = variance_initializer
        self.variables = self._statistics()
        self.updates = None
        if counts_updates or debias or momentum is None or callable(momentum):
            self.updates = self._counter("updates", "only_first_replica")
            self.variables.append(self.updates)
        self._pool: List[keras.Variable] = []
        if pools:
            self._pool = self._make_pool()
            self.variables += self._pool
        # In no file: Keras's layer has no such weight.
        self.skipped = self._counter("skipped_batches", "sum")

    @property
    def momentum(self) -> Any:
        """Weight of the old statistic: a number, None or a schedule.

        Raises:
            ValueError: set to None or a schedule, where the updates are not counted.
        """
        return self._momentum

    @momentum.setter
    def momentum(self, value: Any) -> None:
        if self.updates is None and (value is None or callable(value)):
            raise ValueError(
                f"BatchNorm: momentum={value!r} counts updates, which a built layer with the "
                f"momentum {self._momentum!r} does not; expected a number, or a new layer."
            )
        self._momentum = value

    def _statistics(self) -> List[keras.Variable]:
        """The statistics that a batch moves, in the order of a weights file."""
        self.mean = self._statistic("moving_mean", self._mean_initializer)
        self.variance = self._statistic("moving_variance", self._variance_initializer)
        return [self.mean, self.variance]

    def update(
        self,
        mean: Tensor,
        variance: Tensor,
        count: functional.Count,
        freedom: functional.Count,
        *,
        when: Any = True,
        micro_batches: int = 1,
    ) -> None:
        """Moves the statistics towards those of a batch, unless that has nothing to say.

        Left out, and counted in `skipped`, is a batch whose variance is not finite (as it is if
        its mean is not), or that leaves no channel a degree of freedom; also one for which a
        schedule gives no momentum between 0 and 1.

        Args:
            mean, variance: of the batch, shape (channels,); the variance is the biased one.
            count: values of a channel behind them: an int, or a tensor, scalar or (channels,).
            freedom: degrees of freedom of the variance, likewise: count less the number of means.
            when: False, or a boolean scalar tensor that may be: leave everything as it is.
            micro_batches: calls that make one update: their statistics are pooled exactly (Chan,
                Golub & LeVeque 1983).

        Raises:
            ValueError: a schedule gave no momentum between 0 and 1, outside of a graph.
        """
        if when is False:
            return
        momentum, accepted = self._momentum_now()
        accepted = both(self._finite(variance), accepted)
        enough = freedom >= 1
        accepted = both(accepted, enough if isinstance(enough, bool) else ops.any(enough))
        taken = accepted if self.groups == 1 else ops.all(accepted)
        if when is not True:
            taken = ops.logical_or(taken, ops.logical_not(when))
        functional.add(self.skipped, ops.where(taken, 0, 1))
        accepted = both(accepted, when)
        if micro_batches > 1:
            mean, variance, count, freedom, accepted = self._pooled(
                mean, variance, count, freedom, accepted, when, micro_batches
            )
        if self._unbiased_variance:
            count, freedom = (ops.cast(number, variance.dtype) for number in (count, freedom))
            variance = variance * (count / ops.maximum(freedom, 1))
        if self.updates is not None:
            functional.add(self.updates, ops.any(accepted))
        self._move(mean, variance, momentum, accepted)

    # Channels that have nothing to do with each other, such as those of nets that are trained side
    # by side: a bad value in one group leaves the statistics of the others free to move.
    groups = 1

    def _finite(self, variance: Tensor) -> Tensor:
        if self.groups == 1:
            return ops.all(ops.isfinite(variance))
        groups = ops.reshape(ops.isfinite(variance), (self.groups, -1))
        return ops.repeat(ops.all(groups, 1), groups.shape[1])

    def _momentum_now(self) -> Tuple[Any, Any]:
        """The momentum of the next update, and whether it is one."""
        if self.updates is None:
            return self._momentum, True
        momentum = momentum_at(self._momentum, self._debias, self.updates.value)
        if not callable(self._momentum):
            return momentum, True
        value = functional.concrete(momentum)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(
                f"BatchNorm: the momentum schedule gave {value:g} after "
                f"{int(self.updates.numpy())} updates; expected 0 <= momentum <= 1."
            )
        return momentum, ops.logical_and(momentum >= 0, momentum <= 1)

    def _move(self, mean: Tensor, variance: Tensor, momentum: Any, accepted: Any) -> None:
        """One update of the moving averages."""
        rate = self._rate(momentum, accepted)
        functional.move(self.mean, mean, rate)
        functional.move(self.variance, variance, rate)

    def _rate(self, momentum: Any, accepted: Any) -> Tensor:
        """The share of the way that statistics move."""
        share = ops.convert_to_tensor(1.0 - momentum, self._dtype)
        return ops.where(accepted, share, ops.zeros_like(share))

    def forget(self) -> None:
        """Drops a group of micro-batches that is not full, and counts skipped batches from 0."""
        for variable in [*self._pool, self.skipped]:
            variable.assign(ops.zeros_like(variable.value))

    # ------------------------------------------------------------ micro-batches

    def open_pool(self, taken: Callable[[], int]) -> None:
        """Makes the variables of the pool, if they are not there yet.

        Args:
            taken: a function that tells how many micro-batches of the first group are gone, as in
                a training that goes on from a file.
        """
        if not self._pool:
            with functional.outside_of_graphs():
                self._pool = self._make_pool()
                self._pool[-1].assign(taken())

    def _make_pool(self) -> List[keras.Variable]:
        """Mean, sum of squared distances, counts and degrees of freedom of some micro-batches."""
        names = ("pooled_mean", "pooled_squares", "pooled_count", "pooled_freedom")
        return [
            *(self._statistic(name, "zeros") for name in names),
            self._counter("pooled_batches", "only_first_replica"),
        ]

    def _pooled(
        self,
        mean: Tensor,
        variance: Tensor,
        count: functional.Count,
        freedom: functional.Count,
        accepted: Any,
        when: Any,
        micro_batches: int,
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Adds a micro-batch to the pool; the last one of a group takes out the whole.

        Returns:
            mean, variance, count, freedom and accepted of the pool; accepted is False before the
            last micro-batch.
        """
        pooled_mean, pooled_squares, pooled_count, pooled_freedom, batches = self._pool
        zero = ops.zeros_like(mean)
        n, freedom = (ops.where(accepted, ops.cast(number, self._dtype) + zero, zero)
                      for number in (count, freedom))
        total = pooled_count + n
        share = n / ops.maximum(total, 1)
        distance = ops.where(n > 0, mean - pooled_mean, zero)
        squares = ops.where(n > 0, variance * n, zero)
        squares = pooled_squares + squares + ops.square(distance) * pooled_count * share
        mean = pooled_mean + share * distance
        # Each further micro-batch has a mean that one degree more was spent on.
        joined = ops.cast(ops.logical_and(n > 0, pooled_count.value > 0), self._dtype)
        freedom = pooled_freedom + freedom + joined
        seen = batches + ops.cast(when, "int32")
        full = seen >= micro_batches
        for variable, value in zip(self._pool, (mean, squares, total, freedom, seen)):
            variable.assign(ops.where(full, ops.zeros_like(value), value))
        variance = squares / ops.maximum(total, 1)
        return mean, variance, total, freedom, ops.logical_and(full, freedom >= 1)

    # ------------------------------------------------------------ variables

    def _statistic(
        self,
        name: str,
        initializer: Any,
        shape: Optional[Tuple[int, ...]] = None,
        dtype: Optional[str] = None,
        aggregation: str = "mean",
    ) -> keras.Variable:
        # Each replica moves its own copy; whoever reads from outside gets their mean.
        return keras.Variable(
            initializer,
            shape=(self._channels,) if shape is None else shape,
            dtype=self._dtype if dtype is None else dtype,
            trainable=False,
            autocast=False,
            aggregation=aggregation,
            synchronization="on_read",
            name=name,
        )

    def _counter(self, name: str, aggregation: str) -> keras.Variable:
        return self._statistic(name, "zeros", (), "int32", aggregation)


def momentum_at(momentum: Any, debias: bool, updates: Tensor) -> Any:
    """Weight of the old statistic in the update that follows `updates` earlier ones.

    With a constant m it is m. The cumulative average has t / (t + 1) after t updates. The debiased
    average, whose first batch replaces the initial value whatever that is, has
    1 - (1 - m) / (1 - m^(t + 1)): the values are those of Adam's bias correction (Kingma & Ba
    2015, section 3), but kept up to date in place, so that inference needs no division.

    Args:
        momentum: a number, None (cumulative) or a schedule `(updates) -> number`.
        debias: whether a constant momentum is debiased.
        updates: integer scalar tensor.
    """
    if callable(momentum):
        return momentum(updates)
    if momentum is not None and not debias:
        return momentum
    t = ops.cast(updates + 1, "float32")
    if momentum is None or momentum == 1:  # 1 is the limit of the debiased average
        return 1 - 1 / t
    # 1 - m^t without cancellation for m close to 1.
    return 1 - (1 - momentum) / -ops.expm1(t * math.log(max(momentum, 1e-30)))


def both(one: Any, other: Any) -> Any:
    """`one and other`, of Python bools or boolean tensors."""
    if one is True:
        return other
    return one if other is True else ops.logical_and(one, other)
