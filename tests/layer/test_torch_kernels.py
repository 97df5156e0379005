"""PyTorch's kernels, in a process of their own: `torch_check.py` says what is checked."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
from make import ROOT

CHECKS = 269
HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_the_torch_kernels_match_the_reference():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed; the test extra does not bring it")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(HERE / "torch_check.py")],
        capture_output=True, text=True, env=environment, timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["torch", str(CHECKS)]
