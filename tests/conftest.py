"""Settings that every test shares."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tests run in several processes; in each, a second thread would take another one's core.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

from bn_keras.diagnostics.conformance.replicas import make_logical_devices  # noqa: E402

make_logical_devices()
