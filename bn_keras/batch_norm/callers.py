"""What a layer cannot be told by its arguments: from where it is called.

Three callers run a batch normalization otherwise than its user means it, and none of them says so:
a recomputed pass, an optimizer that accumulates gradients, and a wrapper that hands out one time
step at a time.
"""

import functools
import sys
from types import FrameType
from typing import Any, Callable, Optional, Tuple

import keras
from keras import ops
from keras.src.backend import core
from keras.src.backend.common import global_state

from bn_keras.batch_norm import functional


def recomputing() -> bool:
    """Whether this is the second run of a pass whose activations were not kept.

    By `tf.recompute_grad` or `torch.utils.checkpoint`, and so by `keras.RematScope`. TensorFlow
    runs the pass again while a gradient is taken, which nothing but the stack of callers shows. JAX
    needs no answer: its second run is made of the first one's graph, without its side effects.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        return functional.backend_kernels().recomputing()
    return backend == "tensorflow" and _called_by("custom_gradient.py", "inner_recompute_grad")


def micro_batches() -> Tuple[int, Callable[[], int]]:
    """How many calls make one step of the optimizer that the called model is compiled with.

    Returns:
        `(steps, taken)`: taken is a function that tells how many of the present group there were.
    """
    # Keras keeps what is called outermost, the model, for as long as the call takes.
    context = global_state.get_global_attribute("current_call_ctx")
    optimizer: Any = getattr(getattr(context, "entry_layer", None), "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    steps = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    return steps, lambda: int(optimizer._iterations.numpy()) % steps


def one_step_at_a_time() -> Optional[str]:
    """What hands this call a single time step of a sequence, in words; None if nothing does."""
    if _called_by("rnn.py", "inner_loop"):
        return "an RNN cell"
    return "a TimeDistributed wrapper" if _called_by("time_distributed.py", "call") else None


def _called_by(file: str, function: str) -> bool:
    """Whether a function of that name, in a file of that name, is among the callers."""
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == function and code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


def normalize_whole_sequences(kind: Any) -> None:
    """Lets `TimeDistributed` hand whole sequences to layers of a kind.

    Keras's wrapper calls its layer once a time step: a batch normalization would take statistics of
    each step by itself, and move its averages as often; where the number of steps is open, it would
    never move them. The time steps of such a layer become examples of one batch instead. For all
    other layers the wrapper stays as it is.

    Args:
        kind: the layer class.
    """
    wrapper = keras.layers.TimeDistributed
    step_by_step = wrapper.call

    @functools.wraps(step_by_step)
    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        layer: Any = self.layer
        fits = mask is None or len(mask.shape) > 1 and all(
            None in sizes or sizes[0] == sizes[1] for sizes in zip(mask.shape[:2], inputs.shape)
        )
        # Keras's wrapper says what is wrong with a mask.
        if not fits or not isinstance(layer, kind) or layer.axis % (len(inputs.shape) - 1) == 0:
            return step_by_step(self, inputs, training=training, mask=mask)
        batch, steps, *rest = ops.shape(inputs)
        examples = ops.reshape(inputs, (-1, *rest))
        if mask is not None:
            of_positions = (*ops.shape(mask)[2:], *[1] * len(rest))[:len(rest) - 1]
            mask = ops.reshape(mask, (-1, *of_positions))
        outputs = layer.call(examples, training=training, mask=mask)
        return ops.reshape(outputs, (batch, steps, *rest))

    wrapper.call = call


def let_recomputed_layers_take_keywords() -> None:
    """Lets `keras.RematScope` recompute layers that are called with keywords in a graph.

    `tf.recompute_grad` takes keywords in eager mode only, and Keras calls every layer that has a
    training mode with some, so that `fit` fails in such a scope. Keywords are bound before the pass
    here; floating tensors among them become further inputs, since they may need gradients.
    """
    if keras.backend.backend() != "tensorflow":
        return
    positional = core.remat

    @functools.wraps(positional)
    def remat(f: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(f)
        def call(*args: Any, **kwargs: Any) -> Any:
            names = [
                name for name, value in kwargs.items()
                if ops.is_tensor(value) and "float" in keras.backend.standardize_dtype(value.dtype)
            ]
            rest = {name: value for name, value in kwargs.items() if name not in names}

            def without_keywords(*inputs: Any) -> Any:
                given = len(inputs) - len(names)
                return f(*inputs[:given], **dict(zip(names, inputs[given:])), **rest)

            return positional(without_keywords)(*args, *(kwargs[name] for name in names))

        return call

    core.remat = remat
