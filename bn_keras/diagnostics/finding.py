"""What the doctor says: a finding, what it costs, and what could not be looked at."""

import dataclasses
from typing import Any, Mapping, Optional

WRONG_RESULTS = "wrong results"  # the model's outputs are not what its weights are good for
COSTS_ACCURACY = "costs accuracy"  # measured on the given data
RISK = "risk"  # nothing is lost now; something will be, on other batches or in training
NOTE = "note"
SEVERITIES = (WRONG_RESULTS, COSTS_ACCURACY, RISK, NOTE)

MOST_LAYERS = 3  # that a sentence names


@dataclasses.dataclass(frozen=True)
class Cost:
    """A quantity measured twice, on the same examples and with the same weights.

    Attributes:
        quantity: which, such as "loss".
        present: its value for the model as it is.
        mended: its value without the fault.
    """

    quantity: str
    present: float
    mended: float

    def __str__(self) -> str:
        return f"{self.quantity} {self.present:.4g} as it is, {self.mended:.4g} mended"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a model, or may become so.

    Attributes:
        symptom: a sentence with numbers.
        remedy: a line of code; `model` is the model and `data` what the doctor was given.
        layers: paths of the layers it is about, the worst first; () for the whole model.
        evidence: name → number, text, or list of them, as JSON can hold it.
        cost: what it costs, or None.
        cost_note: why nothing was measured, where `cost` is None.
        severity: one of SEVERITIES; "" takes the one that the finding was registered with.
        name: that it is registered with; the doctor fills it in.
    """

    symptom: str
    remedy: str
    layers: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: Optional[Cost] = None
    cost_note: str = ""
    severity: str = ""
    name: str = ""

    @property
    def layer(self) -> Optional[str]:
        """The path of the layer, where it is about a single one."""
        return self.layers[0] if len(self.layers) == 1 else None

    @property
    def page(self) -> str:
        """The page that explains it."""
        return f"docs/findings/{self.name}.md"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {**dataclasses.asdict(self), "layer": self.layer, "page": self.page,
                "evidence": dict(self.evidence)}


@dataclasses.dataclass(frozen=True)
class NotLooked:
    """A finding that was not looked for, in the whole model or in a layer of it.

    Attributes:
        name: of the finding; "" for all that takes a forward pass.
        reason: why not, and what would help.
        layer: its path; None for the whole model.
    """

    name: str
    reason: str
    layer: Optional[str] = None


class CannotLook(Exception):
    """Raised by a finding or an examination that cannot look; the message is the reason."""


class Unusable(ValueError):
    """The data, labels or loss that a user gave are none for this model; the message says why."""


def named(paths: tuple[str, ...] | list[str], of: int) -> str:
    """Some layers in words: `2 of 5 BN layers (a, b)`.

    Args:
        paths: theirs.
        of: how many there are in the model.
    """
    rest = ", …" if len(paths) > MOST_LAYERS else ""
    return f"{len(paths)} of {of} BN layers ({', '.join(paths[:MOST_LAYERS])}{rest})"
