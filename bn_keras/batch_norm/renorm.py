"""Batch renormalization: the correction that makes training use the moving statistics.

Ioffe (2017), "Batch Renormalization", algorithm 1:

    r = clip(sigma_batch / sigma_moving)        d = clip((mean_batch - mean_moving) / sigma_moving)
    y = (x_hat * r + d) * gamma + beta

with r and d held constant in the backward pass.
"""

from keras import ops

CLIPPING_KEYS = ("rmax", "rmin", "dmax")


def check_clipping(clipping):
    """Returns the clipping values as a dict.

    Raises:
        ValueError: an unknown key, rmax below rmin, or a negative dmax.
    """
    clipping = dict(clipping or {})
    unknown = sorted(set(clipping) - set(CLIPPING_KEYS))
    if unknown:
        raise ValueError(
            f"BatchNorm: renorm_clipping has the unknown keys {unknown}; "
            f"expected some of {list(CLIPPING_KEYS)}."
        )
    rmax, rmin, dmax = (clipping.get(key) for key in CLIPPING_KEYS)
    if rmax is not None and rmin is not None and rmax < rmin:
        raise ValueError(
            f"BatchNorm: renorm_clipping has rmax={rmax} below rmin={rmin}; expected rmax >= rmin."
        )
    if dmax is not None and dmax < 0:
        raise ValueError(f"BatchNorm: renorm_clipping has dmax={dmax}; expected dmax >= 0.")
    return clipping


def correction(mean, stddev, moving_mean, moving_stddev, epsilon, clipping):
    """r and d of algorithm 1, each of shape (channels,), without a gradient."""
    floor = ops.sqrt(ops.cast(epsilon, stddev.dtype))
    moving_stddev = ops.maximum(ops.cast(moving_stddev, stddev.dtype), floor)
    r = stddev / moving_stddev
    d = (mean - ops.cast(moving_mean, mean.dtype)) / moving_stddev
    if clipping.get("rmin") is not None:
        r = ops.maximum(r, clipping["rmin"])
    if clipping.get("rmax") is not None:
        r = ops.minimum(r, clipping["rmax"])
    if clipping.get("dmax") is not None:
        d = ops.clip(d, -clipping["dmax"], clipping["dmax"])
    return ops.stop_gradient(r), ops.stop_gradient(d)
