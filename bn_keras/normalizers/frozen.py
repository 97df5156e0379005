"""Half a freeze: the population statistics, or gamma and beta. `trainable=False` freezes both."""

from typing import Any, Optional

import keras

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.registry import NORMALIZERS

PARTS = ("statistics", "affine")


@keras.saving.register_keras_serializable(package="bn_keras")
class FrozenBatchNorm(BatchNorm):
    """BatchNorm of which one half stays as it is.

    With `freeze="statistics"`, training normalizes with the moving statistics and leaves them as
    they are, while gamma and beta learn: for fine-tuning on batches too small for statistics of
    their own.
    With `freeze="affine"`, gamma and beta stay, while training uses and gathers batch statistics:
    to adapt a trained net to new data, or to ask what the affine map is good for.

    Args:
        freeze: "statistics" or "affine".
        replaces: the layer in whose place this one stands, as
            `keras.saving.serialize_keras_object` writes it; `surgery.freeze` notes it, so that
            `unfreeze` can make it again, also from a file. None for a BatchNorm.
        *args, **kwargs: as for BatchNorm.

    Raises:
        ValueError: another word.
    """

    def __init__(
        self, *args: Any, freeze: str, replaces: Optional[dict[str, Any]] = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if freeze not in PARTS:
            raise ValueError(
                f"FrozenBatchNorm: freeze={freeze!r}; expected one of {', '.join(PARTS)} "
                "(trainable=False freezes both)."
            )
        self.freeze, self.replaces = freeze, replaces
        self.trains_affine = freeze != "affine"
        self.moves_statistics = freeze != "statistics"  # asked by `surgery.statistics`

    def call(
        self, inputs: Any, training: Any = None, mask: Any = None, update_statistics: Any = True
    ) -> Any:
        """As BatchNorm's; in inference mode throughout where the statistics are frozen."""
        if self.freeze == "statistics":
            training = False
        return super().call(inputs, training, mask, update_statistics)

    def get_config(self) -> dict[str, Any]:
        noted = {} if self.replaces is None else {"replaces": dict(self.replaces)}
        return {**super().get_config(), "freeze": self.freeze, **noted}


@NORMALIZERS.register("frozen_statistics", channelwise=True)
def frozen_statistics(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """No normalization at all, from the start: gamma and beta of a BatchNorm, learning."""
    return FrozenBatchNorm(
        freeze="statistics", momentum=momentum, epsilon=epsilon, name=name, dtype=dtype
    )


@NORMALIZERS.register("frozen_affine", channelwise=True)
def frozen_affine(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Batch normalization whose gamma stays 1 and whose beta stays 0."""
    return FrozenBatchNorm(
        freeze="affine", momentum=momentum, epsilon=epsilon, name=name, dtype=dtype
    )
