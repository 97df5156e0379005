"""Two nets registered outside the package: small, and quick to trace."""

from collections.abc import Iterator
from typing import Any

import pytest


def _small(spec: Any) -> Any:
    """4 units."""
    from bn_keras.models.blocks import Blocks

    blocks = Blocks(spec)
    inputs, x = blocks.inputs()
    x = blocks.dense(blocks.flatten(x), 4, "dense1")
    x = blocks.dense(x, spec.classes, "logits_dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "small_net")


@pytest.fixture
def small_net() -> Iterator[str]:
    """A net that can stand beside others."""
    from bn_keras.registry import MODELS

    MODELS.register("small_net", loss="softmax", stacks=True)(_small)
    yield "small_net"
    del MODELS._registered["small_net"]


@pytest.fixture
def lone_net() -> Iterator[str]:
    """The same one, as one that cannot."""
    from bn_keras.registry import MODELS

    MODELS.register("lone_net", loss="softmax")(_small)
    yield "lone_net"
    del MODELS._registered["lone_net"]
