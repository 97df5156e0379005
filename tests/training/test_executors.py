"""Groups side by side, their items one after another."""

import threading
import time

import pytest

from bn_keras.executors import in_threads


def test_every_item_is_done_and_those_of_a_group_in_order():
    groups, stop = [[1, 2, 3], [10, 20], []], threading.Event()
    found = list(in_threads(lambda item: item, groups, 2, stop))
    assert sorted(found) == [1, 2, 3, 10, 20] and stop.is_set()
    assert [item for item in found if item < 10] == [1, 2, 3]


def test_groups_run_side_by_side_as_far_as_there_are_workers():
    meeting = threading.Barrier(2, timeout=10)  # one group alone would wait in vain
    assert sorted(in_threads(lambda item: meeting.wait(), [[0], [0]], 2, threading.Event())) \
        == [0, 1]


def test_an_item_without_a_result_does_not_end_its_group():
    found = in_threads(lambda item: item or None, [[0, 0, 5], [0, 6]], 1, threading.Event())
    assert sorted(found) == [5, 6]


def test_the_first_error_stops_the_others_and_comes_out():
    stop, done = threading.Event(), []

    def work(item):
        if item == "bad":
            raise ValueError("bad item")
        while not stop.is_set():
            time.sleep(0.001)
        done.append(item)

    with pytest.raises(ValueError, match="bad item"):
        list(in_threads(work, [["waits", "never done"], ["bad"]], 2, stop))
    assert done == ["waits"]


def test_a_caller_that_leaves_stops_the_workers():
    stop = threading.Event()
    results = in_threads(lambda item: item, [[1, 2]], 1, stop)
    assert next(results) == 1 and not stop.is_set()
    results.close()
    assert stop.is_set()
