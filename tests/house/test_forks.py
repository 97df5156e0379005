"""Forks of a process that only imports."""

import contextlib
import os
import signal
import time

from bn_keras.forks import Forks


def test_a_fork_whose_asker_has_left_ends_in_silence_and_the_next_one_runs(capfd):
    with contextlib.closing(Forks()) as forks:
        os.kill(forks._process.pid, signal.SIGSTOP)
        forks.start("os:getpid", "builtins:dict", {}).close()
        os.kill(forks._process.pid, signal.SIGCONT)
        fork = forks.start("os:getpid", "builtins:dict", {})
        assert fork.wait(60) and fork.returncode == 0
        time.sleep(0.5)  # for what the first one has to say
    assert capfd.readouterr().err == ""
