"""Reports: what a plan's results say, as a verdict, tables, pictures and files. No TensorFlow.

`make_report(plan, results)` gives a Report; `write(store)` makes one of a work directory and stores
it there. A new picture, table or text file is one registered function: see `figures/`, `tables.py`
and `files.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bn_keras.report.report import Report, make_report, write

__all__ = ["Report", "make_report", "write"]


def __getattr__(name: str) -> Any:
    """Loads the report on first use: verdicts and registries need its small parts alone."""
    if name not in __all__:
        raise AttributeError(f"module 'bn_keras.report' has no attribute {name!r}")
    return getattr(importlib.import_module("bn_keras.report.report"), name)
