"""A run's scalars as curves in memory, from which its result is made."""

from typing import Any, Dict, List, Mapping

from bn_keras.writers import Writer


class Memory(Writer):
    """Keeps scalars as curves: dict of tag to list of [step, value]."""

    def __init__(self) -> None:
        self.curves: Dict[str, List[Any]] = {}

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for tag, value in values.items():
            self.curves.setdefault(tag, []).append([step, value])
