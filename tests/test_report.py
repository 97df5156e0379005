"""Verdicts and tables over hand-made results."""

import io
import json

import numpy as np
import pytest
from matplotlib import image
from rich.console import Console
from test_results import result

from bn_keras import figures, report
from bn_keras.results import Store


def both_arms(batch, none, **changes):
    return [
        *(result(seed, "none", value) for seed, value in enumerate(none)),
        *(result(seed, "batch", value, **changes) for seed, value in enumerate(batch)),
    ]


def test_a_clear_difference_is_called_one():
    verdict = report.make_report(both_arms([0.96, 0.97, 0.98], [0.1, 0.11, 0.09])).verdict
    assert verdict.startswith("At learning rate 0.05, batch is better than none")
    assert "batch .970, none .100 (3 of 3 stuck)" in verdict
    assert "higher in 3 of 3 pairs with equal initial weights" in verdict


def test_the_other_direction_is_called_worse():
    verdict = report.make_report(both_arms([0.5, 0.52, 0.51], [0.9, 0.91, 0.92])).verdict
    assert "batch is worse than none" in verdict and "higher in 0 of 3" in verdict


def test_noise_is_not_called_a_difference():
    verdict = report.make_report(both_arms([0.9, 0.95, 0.89], [0.88, 0.9, 0.93])).verdict
    assert "no difference between batch and none is shown" in verdict


def test_one_seed_is_not_called_a_difference():
    verdict = report.make_report(both_arms([0.97], [0.1])).verdict
    assert "one seed alone gives" in verdict and "better" not in verdict


def test_arms_that_started_apart_are_not_called_paired():
    verdict = report.make_report(both_arms([0.9, 0.9], [0.1, 0.1], start="b")).verdict
    assert "initial weights DIFFER" in verdict


def test_what_runs_side_by_side_do_not_measure_is_left_blank(tmp_path):
    """A stack predicts no images singly."""
    store = Store(tmp_path)
    runs = both_arms([0.96, 0.97], [0.9, 0.91])
    for run in runs:
        del run.metrics["one_at_a_time_accuracy"]
        store.add(run)
    store.write_plan([run.config for run in runs])
    summary, _ = report.write(store)
    assert [arm.one_at_a_time for arm in summary.arms] == [None, None]
    told = io.StringIO()
    Console(file=told, width=120).print(summary.table())
    assert told.getvalue().count("–") >= 2 and ".965" in told.getvalue()


def test_one_arm_alone_asks_for_the_other():
    verdict = report.make_report([result(0, "batch", 0.9)]).verdict
    assert "batch .900" in verdict and "train none too" in verdict


def test_diverged_and_stuck_runs_are_counted_apart():
    runs = [result(0, "none", 0.0, "diverged"), result(1, "none", 0.2), result(2, "none", 0.21)]
    (arm,) = report.make_report(runs).arms
    assert (arm.diverged, arm.stuck) == (1, 1)


def test_intervals_stay_within_what_an_accuracy_can_be():
    assert report.interval((0.9, 0.6, 1.2)) == ".900 [.600, 1.000]"
    assert report.interval((0.1, -0.2, 0.3)) == ".100 [.000, .300]"
    assert report.interval((0.5, None, None)) == ".500"


def test_the_report_writes_a_picture_and_strict_json(tmp_path):
    store = Store(tmp_path)
    runs = both_arms([0.9, 0.8], [0.1, 0.1])
    for run in runs:
        store.add(run)
    store.write_plan([run.config for run in runs])
    summary, picture = report.write(store)
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["verdict"] == summary.verdict
    assert [run["validation_accuracy"] for run in content["runs"]] == [0.1, 0.1, 0.9, 0.8]
    assert (tmp_path / "accuracy.png").read_bytes() == picture


def test_no_normalizer_is_grey_and_batch_blue_in_the_picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(figures.accuracy_over_steps(both_arms([0.9, 0.8], [0.1, 0.1]), "title"))
    pixels = np.round(image.imread(path)[..., :3] * 255).reshape(-1, 3).astype(int)
    for color in ((0x7F, 0x7F, 0x7F), (0x00, 0x72, 0xB2)):
        assert (pixels == color).all(axis=1).sum() > 20, color


def test_the_mean_of_a_picture_ends_where_the_first_seed_diverged():
    long, short = result(0), result(1)
    long.curves["accuracy/train"] = [[10, 0.2], [20, 0.4], [30, 0.6]]
    short.curves["accuracy/train"] = [[10, 0.4]]
    ax = figures.Figure().subplots()
    figures.curves([long, short], "accuracy/train", ax)
    bold = max(ax.lines, key=lambda line: line.get_linewidth())
    assert bold.get_xdata().tolist() == [10] and bold.get_ydata() == pytest.approx([0.3])


def test_arms_of_one_normalizer_keep_to_its_family_of_colors():
    """Greys without a normalizer, blues with BN, told apart by their lines."""
    names = ("none", "batch", "none, scaled", "batch, scaled", "none at .5", "batch at .5")
    runs = [result(0, name[:name.find(",")] if "," in name else name.split()[0], arm=name)
            for name in names]
    found = figures.styles(runs)
    assert list(found) == list(names) and len(set(found.values())) == len(names)
    for name, (color, _) in found.items():
        red, green, blue = (int(color[place:place + 2], 16) for place in (1, 3, 5))
        assert (red == green == blue) == name.startswith("none")
        assert (blue > red) == name.startswith("batch")
