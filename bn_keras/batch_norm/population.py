"""Population statistics: how much each batch counts in the moving averages."""

import math

from keras import ops


def check_momentum(momentum, debias):
    """Returns the momentum as a layer keeps it: a float, None or a schedule.

    Raises:
        ValueError: out of range, or a debiased average of something else than a constant momentum.
    """
    if debias and (momentum is None or callable(momentum)):
        raise ValueError(
            f"BatchNorm: debias=True with momentum={momentum!r}; expected a number as momentum."
        )
    if momentum is None or callable(momentum):
        return momentum
    number = float(momentum)
    if not 0 <= number <= 1:
        raise ValueError(f"BatchNorm: momentum={momentum!r}; expected 0 <= momentum <= 1.")
    return number


def counts_updates(momentum, debias):
    """Whether the weight of a batch depends on how many came before."""
    return debias or momentum is None or callable(momentum)


def momentum_at(momentum, debias, updates):
    """Weight of the old statistic in the update that follows `updates` earlier ones.

    With a constant m it is m. The cumulative average has t / (t + 1) after t updates. The debiased
    average, whose first batch replaces the initial value whatever that is, has
    1 - (1 - m) / (1 - m^(t + 1)): the values are those of Adam's bias correction (Kingma & Ba
    2015, section 3), but kept up to date in place, so that inference needs no division.

    Args:
        momentum: a number, None (cumulative) or a schedule `(updates) -> number`.
        debias: whether a constant momentum is debiased.
        updates: integer scalar tensor, or None where it does not matter.
    """
    if not counts_updates(momentum, debias):
        return momentum
    if callable(momentum):
        return momentum(updates)
    t = ops.cast(updates + 1, "float32")
    if momentum is None:
        return 1 - 1 / t
    if momentum == 1:
        return 1 - 1 / t  # the limit of the debiased average
    # 1 - m^t without cancellation for m close to 1.
    return 1 - (1 - momentum) / -ops.expm1(t * math.log(max(momentum, 1e-30)))
