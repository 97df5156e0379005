"""The whole default comparison against plain Keras and PyTorch: `python benchmarks/comparison.py`.

Two arms, six seeds, 100 steps, curves, histograms, final evaluations: each alternative as a process
of its own, imports included, in turn. PyTorch takes part where a Python that has it is named.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def seconds(command):
    """Wall time of a process.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": search},
    )
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--torch-python", help="a Python with PyTorch and TensorBoard")
    options = parser.parse_args()
    sizes = [f"--seeds={options.seeds}", f"--steps={options.steps}"]
    scripts = {
        "bn_keras": [sys.executable, str(ROOT / "train.py")],
        "plain Keras": [sys.executable, str(ROOT / "benchmarks" / "plain_keras.py")],
    }
    if options.torch_python:
        scripts["plain PyTorch"] = [
            options.torch_python, str(ROOT / "benchmarks" / "plain_torch.py")
        ]
    times = {name: [] for name in scripts}
    for _ in range(options.rounds):
        for name, command in scripts.items():
            with tempfile.TemporaryDirectory() as logdir:
                more = [f"--logdir={logdir}"] if name == "bn_keras" else []
                times[name].append(seconds([*command, *sizes, *more]))
                print(f"{name}: {times[name][-1]:.1f} s", flush=True)
    print(f"{options.rounds} rounds, {os.cpu_count()} CPUs; seconds: median, lowest to highest")
    ours = times["bn_keras"]
    for name, found in times.items():
        ratios = sorted(other / mine for other, mine in zip(found, ours))
        print(
            f"{name:15s}{statistics.median(found):7.1f}   {min(found):.1f} to {max(found):.1f}"
            f"   {statistics.median(ratios):.2f} times ours ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
