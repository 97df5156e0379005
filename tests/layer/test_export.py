"""A net with BatchNorm leaves Keras: SavedModel and TFLite predict what the model predicts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import tflite_predictions

from bn_keras import BatchNorm


@pytest.fixture(scope="module", params=[BatchNorm, keras.layers.BatchNormalization])
def trained(request):
    """A small net with either layer after one training call, inputs and predictions."""
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), keras.layers.Conv2D(4, 3), request.param(momentum=0.5),
         keras.layers.Flatten(), keras.layers.Dense(3), request.param(momentum=0.5)]
    )
    x = np.random.default_rng(0).normal(1, 2, (16, 8, 8, 2)).astype("float32")
    model(x, training=True)
    return model, x, np.asarray(model(x, training=False))


# tf.lite.Interpreter announces its move to another package.
quiet_export = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")


@pytest.mark.slow
@quiet_export
def test_a_saved_model_predicts_the_same(trained, tmp_path):
    model, x, expected = trained
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-5)


@pytest.mark.slow
@quiet_export
def test_a_tflite_model_predicts_the_same(trained, tmp_path):
    model, x, expected = trained
    model.export(tmp_path / "saved", verbose=False)
    np.testing.assert_allclose(
        tflite_predictions(tmp_path / "saved", x), expected, atol=1e-4
    )
