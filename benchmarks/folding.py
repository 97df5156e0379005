"""Nets before and after `fold`: `python benchmarks/folding.py [--nets=MobileNetV2] [--rounds=15]`.

Nets of keras.applications with random weights and statistics that do something. For each: how many
batch normalizations are folded and left, the largest relative difference of the outputs in float32
and float64, and how long a prediction takes, in milliseconds, before and after: as a tf.function,
compiled by XLA, as a SavedModel, in TFLite, and in ONNX where onnxruntime and tf2onnx are
installed. Both nets run in turn in one process; a time is the median over the rounds, "times as
fast" the median of the ratios of neighbouring rounds with the lowest and highest.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import tempfile
import time
import warnings

import keras
import numpy as np
import tensorflow as tf

from bn_keras.surgery.fold import fold

# Name → size of the pictures: the smallest that each net takes, or a small one.
NETS = {"MobileNetV2": 96, "ResNet50": 96, "DenseNet121": 96, "EfficientNetB0": 96, "Xception": 96}


def net(name, size, dtype):
    """A net of keras.applications whose normalizations do something."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(dtype)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight, low, high in (
                (layer.gamma, 0.5, 1.5), (layer.beta, -0.5, 0.5), (layer.moving_mean, -0.5, 0.5),
                (layer.moving_variance, 0.5, 2),
            ):
                if weight is not None:
                    weight.assign(rng.uniform(low, high, weight.shape))
    keras.config.set_dtype_policy("float32")
    return model


def lite(folder, shape):
    """A TFLite model of an exported net, as a function of a batch of that shape."""
    content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=1)
    given, wanted = (
        details()[0]["index"]
        for details in (interpreter.get_input_details, interpreter.get_output_details)
    )
    interpreter.resize_tensor_input(given, shape)
    interpreter.allocate_tensors()

    def predict(x):
        interpreter.set_tensor(given, x)
        interpreter.invoke()
        return interpreter.get_tensor(wanted)

    return predict


def onnx(model, folder):
    """An ONNX model of a net, as a function; None if packages are missing or err."""
    try:
        import onnxruntime
        import tf2onnx  # noqa: F401  Keras's export uses it
    except ImportError:
        return None
    path = os.path.join(folder, "net.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    if len(session.get_inputs()) > 1:
        print("  ONNX       not run: tf2onnx makes inputs of constants of this net", flush=True)
        return None
    return lambda x: session.run(None, {session.get_inputs()[0].name: np.asarray(x)})[0]


def ways(model, folder, shape):
    """Name of a way to run a net → function of a batch."""
    model.export(folder, verbose=False)
    saved = tf.saved_model.load(folder)
    found = {
        "Keras": tf.function(lambda x: model(x, training=False)),
        "XLA": tf.function(lambda x: model(x, training=False), jit_compile=True),
        "SavedModel": lambda x: saved.serve(x),
        "TFLite": lite(folder, shape),
        "ONNX": onnx(model, folder),
    }
    return {name: predict for name, predict in found.items() if predict is not None}


def milliseconds(predict, x):
    """How long one prediction takes."""
    start = time.perf_counter()
    np.asarray(predict(x))
    return 1000 * (time.perf_counter() - start)


def alternated(before, after, x, rounds):
    """`(median before, median after, ratios)` of rounds in turn; a first one does not count."""
    times = [(milliseconds(before, x), milliseconds(after, x)) for _ in range(rounds + 1)][1:]
    medians = [statistics.median(column) for column in zip(*times)]
    return *medians, sorted(one / other for one, other in times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", default=",".join(NETS), help="names, with commas")
    parser.add_argument("--batch", type=int, default=1, help="pictures in a prediction")
    parser.add_argument("--rounds", type=int, default=15)
    flags = parser.parse_args()
    for name in flags.nets.split(","):
        size = NETS[name]
        x = np.random.default_rng(1).normal(size=(flags.batch, size, size, 3))
        _, wide = fold(net(name, size, "float64"), inputs=x)
        model, x = net(name, size, "float32"), x.astype("float32")
        folded, certificate = fold(model, inputs=x)
        print(
            f"{name}: {certificate.count('folded')} folded, {certificate.count('left')} left; "
            f"relative difference {certificate.relative:.1e} in float32, {wide.relative:.1e} in "
            "float64", flush=True,
        )
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            before, after = (
                ways(which, folder, x.shape) for which, folder in ((model, one), (folded, other))
            )
            for way in before:
                slow, fast, ratios = alternated(before[way], after[way], x, flags.rounds)
                print(
                    f"  {way:<10} {slow:>8.2f} ms before, {fast:>8.2f} after: "
                    f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to "
                    f"{ratios[-1]:.2f})", flush=True,
                )


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFLite announces its move to another package
        main()
