"""Layers that compute a linear map: what scaling their outputs or inputs does to their weights.

`Linear` takes a layer of Keras and keeps its weights in float64, so that several scalings round
once; `write` puts them into a copy of the layer.
"""

import copy
from typing import Optional, Union

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.surgery.convert import own_code

layers = keras.layers
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
LINEAR = (layers.Dense, *CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)

Array = NDArray[np.float64]


class Linear:
    """The weights of a linear layer, which may be scaled; it does not change.

    Args:
        layer: of one of the classes `LINEAR`.

    Attributes:
        layer: that layer; it stays as it is.
        problem: why its weights cannot be changed, as the end of a sentence; None if they can be.
        is_activated: whether it computes an activation behind the linear map.
        axis: the channel axis of its inputs and outputs, as the layer counts it.
        pads: whether some of its outputs do not depend on as many inputs as others, so that a
            constant added to all inputs is no constant in its outputs.
    """

    def __init__(self, layer: keras.Layer) -> None:
        self.layer = layer
        self.problem = _problem(layer)
        self.is_activated = layer.activation not in (None, keras.activations.linear)
        last = isinstance(layer, layers.Dense) or layer.data_format == "channels_last"
        self.axis = -1 if last else 1
        self.pads = _pads(layer)
        if self.problem is None:
            self._kernels = [wide(kernel) for kernel in _kernels(layer)]
            self._bias = wide(layer.bias) if layer.use_bias else np.zeros(self._outputs())

    def scaled_outputs(self, scale: Array, shift: Array) -> Union["Linear", str]:
        """The same layer, giving scale * y + shift where it gave y.

        Args:
            scale, shift: (output channels,).

        Returns:
            A Linear, or why there is none.
        """
        *others, kernel = self._kernels
        if isinstance(self.layer, DEPTHWISE):
            kernel = kernel * scale.reshape(kernel.shape[-2:])
        elif isinstance(self.layer, TRANSPOSED):
            kernel = kernel * scale[:, None]
        else:
            kernel = kernel * scale
        return self._with([*others, kernel], self._bias * scale + shift)

    def scaled_inputs(self, scale: Array, shift: Array) -> Union["Linear", str]:
        """The same layer, taking x where it took scale * x + shift.

        Args:
            scale, shift: (input channels,); shift is all 0 if the layer pads.

        Returns:
            A Linear, or why there is none.
        """
        kernel, *others = self._kernels
        taps = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)  # of all positions, on equal inputs
        if isinstance(self.layer, TRANSPOSED):
            kernel, offset = kernel * scale, taps @ shift
        elif isinstance(self.layer, (*DEPTHWISE, *SEPARABLE)):
            kernel, offset = kernel * scale[:, None], (taps * shift[:, None]).ravel()
            if others:
                offset = offset @ others[0].reshape(others[0].shape[-2:])
        else:
            scale, shift = (self._of_groups(values) for values in (scale, shift))
            kernel, offset = kernel * scale, (taps * shift).sum(0)
        return self._with([kernel, *others], self._bias + offset)

    def write(self, target: keras.Layer) -> list[str]:
        """Gives a copy of the layer the scaled weights.

        Penalties and constraints were made for the old weights, and are left out.

        Returns:
            The names of the arguments that were left out.
        """
        dropped = [
            name for name in vars(target)
            if name.endswith(("_regularizer", "_constraint")) and getattr(target, name) is not None
        ]
        for name in dropped:
            setattr(target, name, None)
        kernels = _kernels(target)
        if not target.use_bias:
            _add_bias(target, kernels[-1], len(self._bias))
        for variable, values in zip([*kernels, target.bias], [*self._kernels, self._bias]):
            variable.assign(values)
            variable.regularizer = variable.constraint = None
        return dropped

    def _outputs(self) -> int:
        shape = self._kernels[-1].shape
        if isinstance(self.layer, DEPTHWISE):
            return shape[-2] * shape[-1]
        return shape[-2] if isinstance(self.layer, TRANSPOSED) else shape[-1]

    def _of_groups(self, values: Array) -> Array:
        """Values of the input channels as (inputs in a group, outputs), as a kernel has them."""
        groups = getattr(self.layer, "groups", 1)
        return np.repeat(values.reshape(groups, -1).T, self._outputs() // groups, axis=1)

    def _with(self, kernels: list[Array], bias: Array) -> Union["Linear", str]:
        dtypes = [kernel.dtype for kernel in _kernels(self.layer)]
        for values, dtype in zip([*kernels, bias], [*dtypes, dtypes[-1]]):
            with np.errstate(over="ignore"):  # half precision may have no number as large
                stored = values.astype(dtype)
            if not np.isfinite(stored).all():
                return f"{self.layer.name!r} would have weights that {dtype} cannot hold"
        new = copy.copy(self)
        new._kernels, new._bias = kernels, bias
        return new


def _problem(layer: keras.Layer) -> Optional[str]:
    """Why the weights of a layer cannot be changed; None if they can."""
    own = own_code(layer, LINEAR)
    if own is not None:
        return f"computes something of its own, as far as anyone knows: {own}"
    if not layer.built:
        return "is not built"
    if getattr(layer, "lora_enabled", False):
        return "has LoRA weights"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"is quantized ({layer.quantization_mode})"
    return None


def _pads(layer: keras.Layer) -> bool:
    if isinstance(layer, layers.Dense):
        return False
    points = set(layer.kernel_size) == {1}
    if isinstance(layer, TRANSPOSED):
        return not points or set(layer.strides) != {1}
    return layer.padding != "valid" and not points


def _kernels(layer: keras.Layer) -> list[keras.Variable]:
    if isinstance(layer, SEPARABLE):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel]


def wide(variable: keras.Variable) -> Array:
    """The values of a variable in float64."""
    return variable.numpy().astype(np.float64)


def _add_bias(layer: keras.Layer, kernel: keras.Variable, size: int) -> None:
    """Gives a built layer the bias that it was made without."""
    layer._tracker.unlock()  # as Keras's `enable_lora` does it
    layer.use_bias = True
    layer.bias = layer.add_weight(
        shape=(size,), name="bias", initializer="zeros", trainable=kernel.trainable,
        dtype=kernel.dtype,
    )
    layer._tracker.lock()
    layer.bias._path = f"{kernel.path.rpartition('/')[0]}/bias"
