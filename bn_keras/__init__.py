"""bn_keras: what does batch normalization do to my network, and is it doing it right?

`from bn_keras import BatchNorm` gives the layer. Names are loaded on first use, so that importing
the package alone does not import TensorFlow. A file of a model that holds the layers loads once
`bn_keras` and `keras` are imported, in either order.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

from bn_keras.loading import register_layers

if TYPE_CHECKING:  # editors and type checkers see the names where they are
    from bn_keras.api import load, run
    from bn_keras.batch_norm.layer import BatchNorm
    from bn_keras.checking import check
    from bn_keras.comparison import compare
    from bn_keras.config import ConfigError, RunConfig
    from bn_keras.diagnosis import doctor
    from bn_keras.diagnostics.gap import gap
    from bn_keras.normalizers.activated import ActivatedBatchNorm
    from bn_keras.normalizers.conditional import ConditionalBatchNorm
    from bn_keras.normalizers.frozen import FrozenBatchNorm
    from bn_keras.normalizers.ghost import GhostBatchNorm
    from bn_keras.normalizers.renorm import BatchRenorm, Ramp
    from bn_keras.results import RunResult, Store
    from bn_keras.surgery import statistics
    from bn_keras.surgery.average import average
    from bn_keras.surgery.convert import convert
    from bn_keras.surgery.exchange import exchange
    from bn_keras.surgery.fold import fold
    from bn_keras.surgery.freeze import freeze, unfreeze
    from bn_keras.surgery.ports import from_flax, from_torch, to_torch
    from bn_keras.surgery.recalibrate import recalibrate

__version__ = "0.4.0"

__all__ = [
    "ActivatedBatchNorm",
    "BatchNorm",
    "BatchRenorm",
    "ConditionalBatchNorm",
    "ConfigError",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "Ramp",
    "RunConfig",
    "RunResult",
    "Store",
    "__version__",
    "check",
    "average",
    "compare",
    "convert",
    "doctor",
    "exchange",
    "fold",
    "freeze",
    "from_flax",
    "from_torch",
    "gap",
    "load",
    "recalibrate",
    "run",
    "statistics",
    "to_torch",
    "unfreeze",
]

_HOMES = {
    "ActivatedBatchNorm": "bn_keras.normalizers.activated",
    "BatchNorm": "bn_keras.batch_norm.layer",
    "BatchRenorm": "bn_keras.normalizers.renorm",
    "ConditionalBatchNorm": "bn_keras.normalizers.conditional",
    "ConfigError": "bn_keras.config",
    "compare": "bn_keras.comparison",
    "average": "bn_keras.surgery.average",
    "convert": "bn_keras.surgery.convert",
    "doctor": "bn_keras.diagnosis",
    "exchange": "bn_keras.surgery.exchange",
    "fold": "bn_keras.surgery.fold",
    "freeze": "bn_keras.surgery.freeze",
    "from_flax": "bn_keras.surgery.ports",
    "from_torch": "bn_keras.surgery.ports",
    "gap": "bn_keras.diagnostics.gap",
    "recalibrate": "bn_keras.surgery.recalibrate",
    "FrozenBatchNorm": "bn_keras.normalizers.frozen",
    "GhostBatchNorm": "bn_keras.normalizers.ghost",
    "Ramp": "bn_keras.normalizers.renorm",
    "RunConfig": "bn_keras.config",
    "RunResult": "bn_keras.results",
    "Store": "bn_keras.results",
    "check": "bn_keras.checking",
    "load": "bn_keras.api",
    "run": "bn_keras.api",
    "statistics": "bn_keras.surgery.statistics",
    "to_torch": "bn_keras.surgery.ports",
    "unfreeze": "bn_keras.surgery.freeze",
}


if not TYPE_CHECKING:  # where it stands, a type checker takes every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'bn_keras' has no attribute {name!r}")
        home = importlib.import_module(_HOMES[name])
        return getattr(home, name, home)  # `statistics` is a module


def __dir__() -> List[str]:
    return __all__


register_layers()
