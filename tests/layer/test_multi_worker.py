"""BatchNorm in two worker processes, which talk over the loopback interface."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import worker
from make import ROOT

HERE = pathlib.Path(__file__).parent
TIMEOUT = 120  # seconds; a scenario takes about 5


def free_ports(count):
    """Ports that nobody listens on; all are held at once, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def run_workers(scenario, folder, count=2):
    """Runs `worker.py` in some processes at once.

    Returns:
        For each worker its exit status, what it printed, and its arrays (None if it failed).
    """
    addresses = [f"localhost:{port}" for port in free_ports(count)]
    logs = [folder / f"{index}.log" for index in range(count)]
    results = [folder / f"{index}.npz" for index in range(count)]
    processes = []
    try:
        for index in range(count):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps(task),
                "PYTHONPATH": str(ROOT),
                "CUDA_VISIBLE_DEVICES": "-1",  # one replica a worker, on the CPU
            }
            command = [sys.executable, str(HERE / "worker.py"), scenario, str(results[index])]
            with logs[index].open("w") as log:
                processes.append(subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment
                ))
        deadline = time.monotonic() + TIMEOUT
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        ends = "\n".join(log.read_text()[-1500:] for log in logs)
        pytest.fail(f"{scenario}: still running after {TIMEOUT} s; the workers said\n{ends}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = []
    for process, log, path in zip(processes, logs, results):
        arrays = dict(np.load(path)) if path.exists() else None
        found.append((process.returncode, log.read_text(), arrays))
    return found


def arrays_of(scenario, folder):
    """What each worker saw; a failure in one of them is one of the test."""
    found = run_workers(scenario, folder)
    for status, text, _ in found:
        assert status == 0, text[-3000:]
    return [arrays for _, _, arrays in found]


@pytest.mark.slow
def test_synchronized_workers_train_like_one_process_on_the_whole_batch(tmp_path):
    """Also with unequal shares of the batch: 4 samples in one worker, 8 in the other."""
    model = worker.make_net()
    step = worker.make_step(model, keras.optimizers.SGD(0.05))
    losses = [step(images, targets) for images, targets in zip(*worker.batches())]
    assert losses[-1] < 0.8 * losses[0], "a net that learns nothing would show nothing"

    one, other = arrays_of("train", tmp_path)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_allclose(one["losses"], losses, rtol=1e-5)
    for number, weight in enumerate(model.weights):
        for kind in ("read", "own"):
            # A bias in front of a normalization has a gradient of rounding errors: absolute.
            np.testing.assert_allclose(
                one[f"{kind}_{number}"], weight, rtol=1e-4, atol=1e-5, err_msg=weight.path
            )


@pytest.mark.slow
def test_unsynchronized_statistics_are_read_as_the_mean_over_the_workers(tmp_path):
    """The mean of the workers' statistics, each worker counting alike, whatever its share."""
    images, _ = worker.batches()
    shares = [images[0][:worker.FIRST], images[0][worker.FIRST:]]
    means = [share.mean((0, 1, 2)) for share in shares]
    assert np.abs(means[0] - means[1]).min() > 0.05, "equal shares would show nothing"
    for found, mean in zip(arrays_of("unsynchronized", tmp_path), means, strict=True):
        np.testing.assert_allclose(found["own"], mean, rtol=1e-5)
        np.testing.assert_allclose(found["read"], np.mean(means, 0), rtol=1e-5)


@pytest.mark.slow
def test_skipped_batches_add_up_over_the_workers(tmp_path):
    """One batch that is not finite, in one worker: 1; synchronized, both workers skip it: 2."""
    for found in arrays_of("skipped", tmp_path):
        assert found["alone"] == 1
        assert found["synchronized"] == 2
        assert np.isfinite(found["alone_mean"]).all()
        assert np.isfinite(found["synchronized_mean"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", worker.FIT_LAYERS)
def test_fit_fails_in_keras_with_any_net(scenario, tmp_path):
    """Keras's `fit` cannot train under this strategy, whatever the net: nothing of ours in it.

    Before the first step, `_maybe_symbolic_build` of Keras's TensorFlow trainer hands the batch, a
    tuple of PerReplica values, to `strategy.reduce`, whose implementation for several workers takes
    one value only:

        ValueError: Attempt to convert a value (PerReplica:{
          0: <tf.Tensor: …>
        }) with an unsupported type
        (<class 'tensorflow.python.distribute.values.PerReplica'>) to a Tensor.

    Where this test fails, Keras has mended it: tell in the README that `fit` works.
    """
    expected = (
        r"ValueError: Attempt to convert a value \(PerReplica:\{\n  0: <tf\.Tensor: .*\n\}\) with "
        r"an unsupported type \(<class 'tensorflow\.python\.distribute\.values\.PerReplica'>\) to "
        r"a Tensor\.\n"
    )
    for status, text, _ in run_workers(scenario, tmp_path):
        assert status == 1, f"fit works now, or fails otherwise: {text[-3000:]}"
        assert re.search(expected, text, re.DOTALL), text[-3000:]


def test_ports_differ():
    assert len(set(free_ports(20))) == 20
