"""Settings that every test shares."""

import gc
import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tests run in several processes; in each, a second thread would take another one's core.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Makes two replicas possible, before anything uses TensorFlow."""
    starts_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not starts_workers:  # a process that only hands out tests can do without TensorFlow
        from bn_keras.diagnostics.conformance.replicas import make_logical_devices

        make_logical_devices()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: garbage is looked for in what the tests make.

    So it is found early, which also ends the iterators of `fit` early: TensorFlow may wait at their
    end for as long as they have lived.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Every test starts from one random state, alone and among others, fixtures included."""
    import keras

    keras.utils.set_random_seed(0)
