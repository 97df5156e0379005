"""bn_keras: what does batch normalization do to my network, and is it doing it right?

`from bn_keras import BatchNorm` gives the layer. Names are loaded on first use, so that importing
the package alone does not import TensorFlow. A file of a model that holds the layers loads once
`bn_keras` and `keras` are imported, in either order.
"""

import importlib

from bn_keras.loading import register_layers

__version__ = "0.1.0"

_HOMES = {
    "ActivatedBatchNorm": "bn_keras.normalizers.activated",
    "BatchNorm": "bn_keras.batch_norm.layer",
    "BatchRenorm": "bn_keras.normalizers.renorm",
    "ConditionalBatchNorm": "bn_keras.normalizers.conditional",
    "ConfigError": "bn_keras.config",
    "FrozenBatchNorm": "bn_keras.normalizers.frozen",
    "GhostBatchNorm": "bn_keras.normalizers.ghost",
    "Ramp": "bn_keras.normalizers.renorm",
    "RunConfig": "bn_keras.config",
    "RunResult": "bn_keras.results",
    "Store": "bn_keras.results",
}


_MODULES = {"statistics": "bn_keras.surgery.statistics"}

__all__ = sorted([*_HOMES, *_MODULES, "__version__"])


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'bn_keras' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return __all__


register_layers()
