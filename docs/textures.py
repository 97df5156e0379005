"""A large net that learns and fails in validation: the example of `docs/doctor.md`.

    python docs/textures.py
    bn-keras doctor net.keras --dataset=docs/textures.py:load

Trains EfficientNetB0 on pictures of four kinds of stripes, for 96 steps, and saves `net.keras`.
"""

import keras
import numpy as np

SIZE = 96
DIRECTIONS = np.array([[1, 0], [0, 1], [1, 1], [1, -1]])


def load():
    """512 pictures to train on and 256 to test on, (n, 96, 96, 3) from 0 to 255, and classes."""
    rng = np.random.default_rng(0)
    return (*_pictures(rng, 512), *_pictures(rng, 256))


def _pictures(rng, count):
    labels = rng.integers(0, len(DIRECTIONS), count)
    places = np.stack(np.meshgrid(*[np.linspace(0, 6, SIZE)] * 2, indexing="ij"), -1)
    phases = rng.uniform(0, 6, (count, 1, 1))
    waves = np.sin(3 * np.einsum("nd,hwd->nhw", DIRECTIONS[labels], places) + phases)
    colours = 40 * rng.uniform(0.5, 1, (count, 1, 1, 3))
    noise = 20 * rng.normal(size=(count, SIZE, SIZE, 3))
    return (127 + waves[..., None] * colours + noise).astype("float32"), labels


def main():
    """Trains and saves the net."""
    keras.utils.set_random_seed(0)
    x, y, x_test, y_test = load()
    net = keras.applications.EfficientNetB0(
        weights=None, input_shape=(SIZE, SIZE, 3), classes=4)
    loss = "sparse_categorical_crossentropy"
    net.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    net.fit(x, y, batch_size=32, epochs=6, verbose=2, validation_data=(x_test, y_test))
    net.save("net.keras")


if __name__ == "__main__":
    main()
