"""Figures: what is drawn, in which colour, and that nothing is hidden."""

import io
import math

import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from reports import frames, row

from bn_keras.registry import FIGURES, UnknownName
from bn_keras.report import figures
from bn_keras.report.figures import drawing
from bn_keras.report.figures.pitfalls import WORDS
from bn_keras.results import DIVERGED, OK
from bn_keras.studies.pitfalls import PITFALLS

# Of matplotlib's defaults, in line widths.
PATTERNS = {"-": (), "--": (3.7, 1.6), ":": (1, 1.65), "-.": (6.4, 1.6, 1, 1.6)}
CURVE = "accuracy/validation"


def axes():
    return Figure().subplots()


def learning(arm, seed=0, values=(0.2, 0.5, 0.9), status=OK, **metrics):
    return row(arm, seed, status, curves={CURVE: [[10 * (at + 1), value]
                                                  for at, value in enumerate(values)]}, **metrics)


def bold(ax):
    return [line for line in ax.lines if line.get_linewidth() > 2]


def crosses(ax):
    return [line for line in ax.lines if line.get_marker() == "x"]


def test_a_curve_is_every_seed_and_their_median():
    rows = [learning("batch", seed, (0.1 * seed, 0.5, value))
            for seed, value in enumerate((0.9, 0.2, 0.8))]
    ax = figures.draw("curve:accuracy/validation", rows, axes())
    median, = bold(ax)
    np.testing.assert_allclose(median.get_ydata(), [0.1, 0.5, 0.8])
    assert [len(line.get_xdata()) for line in ax.lines if line is not median] == [3, 3, 3]
    assert median.get_label() == "batch normalization (3 seeds)"
    assert "thin: one seed, bold: median" in ax.get_title()


def test_a_diverged_run_ends_in_a_cross_and_counts_as_worst_in_the_median():
    rows = [learning("none", 0, (0.5,), DIVERGED), learning("none", 1, (0.5, 0.6, 0.7)),
            learning("none", 2, (0.5, 0.8, 0.9))]
    ax = figures.draw("curve", rows, axes())
    cross, = crosses(ax)
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (10, 0.5)
    median, = bold(ax)
    np.testing.assert_allclose(median.get_ydata(), [0.5, 0.6, 0.7])  # of -inf, .6 and .8
    assert median.get_label() == "no normalization (3 seeds, 1 diverged)"
    assert "x: diverged" in ax.get_title()


def test_the_median_ends_where_half_of_the_runs_have_diverged():
    rows = [learning("none", 0, (0.5, None), DIVERGED), learning("none", 1, (0.5, 0.6))]
    median, = bold(figures.draw("curve", rows, axes()))
    assert median.get_xdata().tolist() == [10]
    assert median.get_marker() == "o"  # a point of its own would be invisible


def test_a_curve_of_one_point_is_visible():
    ax = figures.draw("curve", [learning("batch", values=(0.7,))], axes())
    assert all(line.get_marker() not in ("", "None") for line in ax.lines)


def test_a_step_that_was_not_measured_is_no_divergence():
    rows = [learning("batch", 0, (0.2, 0.5)), learning("batch", 1, (0.2,))]
    median, = bold(figures.draw("curve", rows, axes()))
    np.testing.assert_allclose(median.get_ydata(), [0.2, 0.5])


def test_no_normalization_is_grey_and_batch_normalization_blue_also_in_grey_print():
    looks = drawing.styles([row("batch"), row("none")])
    assert looks == {"batch": ("#0072b2", "-"), "none": ("#7f7f7f", "--")}
    # An arm with a name of its own, too, if it is the first of its normalizer.
    looks = drawing.styles([row("tanh none", normalizer="none"),
                            row("tanh batch", normalizer="batch")])
    assert [color for color, _ in looks.values()] == ["#7f7f7f", "#0072b2"]


def test_arms_of_one_normalizer_keep_to_its_colours_and_differ_in_their_lines():
    names = ("none", "batch", "none, scaled", "batch, scaled", "none at .5", "batch at .5")
    looks = drawing.styles([row(name) for name in names])
    assert list(looks) == list(names) and len(set(looks.values())) == len(names)
    for name, (color, _) in looks.items():
        red, green, blue = to_rgb(color)
        assert (red == green == blue) == name.startswith("none")
        assert (blue > red) == name.startswith("batch")


def test_the_named_arm_has_its_colour_wherever_it_stands():
    looks = drawing.styles([row("none, scaled"), row("none")])
    assert looks["none"] == ("#7f7f7f", "--") != looks["none, scaled"]


def test_outcomes_are_a_marker_a_seed_and_diverged_runs_stand_at_the_worst_end():
    rows = [row("none", 0, DIVERGED, validation_accuracy=None), row("none", 1,
            validation_accuracy=0.1), row("batch", 0, validation_accuracy=0.9),
            row("batch", 1, validation_accuracy=0.95)]
    ax = figures.draw("outcomes", rows, axes())
    markers = [line for line in ax.lines if line.get_markersize() == 7]
    assert len(markers) == 4
    cross, = crosses(ax)
    assert cross.get_xdata()[0] == ax.get_xlim()[0]
    none, batch = (label.get_text() for label in ax.get_yticklabels())
    assert none == "no normalization\nn = 2, median none, 1 diverged"
    assert batch == "batch normalization\nn = 2, median .925"


def test_a_loss_has_its_worst_end_on_the_right():
    rows = [row("none", 0, DIVERGED, **{"loss/test": None}), row("batch", **{"loss/test": 2.0})]
    cross, = crosses(figures.draw("outcomes:loss/test", rows, axes()))
    assert cross.get_xdata()[0] > 2.0


def test_rates_name_the_largest_workable_one_and_show_every_diverged_run():
    def net(arm, seed, accuracies, largest):
        return row(arm, seed, largest_workable_rate=largest, **{
            f"test_accuracy_at_{rate:g}": value for rate, value in zip((0.1, 1, 10), accuracies)
        })

    rows = [net("none", 0, (0.95, None, None), 0.1), net("none", 1, (0.95, 0.5, None), 0.1),
            net("batch", 0, (0.95, 0.95, 0.2), 1), net("batch", 1, (0.95, 0.95, 0.95), 10)]
    ax = figures.draw("accuracy_over_rates", rows, axes())
    assert [text.get_text() for text in ax.texts] == ["0.1", "5.5"]
    assert sorted(x for line in crosses(ax) for x in line.get_xdata()) == [1, 10, 10]
    none = next(line for line in bold(ax) if line.get_color() == "#7f7f7f")
    np.testing.assert_array_equal(none.get_ydata(), [0.95, math.nan, math.nan])


def test_percentiles_show_one_seed_bold_and_the_others_faint():
    curves = {f"unit/p{percentile}": [[0, percentile], [100, percentile + 1]]
              for percentile in (15, 50, 85)}
    rows = [row(arm, seed, curves=curves) for arm in ("none", "batch") for seed in range(2)]
    ax = figures.draw("percentiles:batch", rows, axes())
    assert len(ax.lines) == 6 and {line.get_color() for line in ax.lines} == {"#0072b2"}
    assert "seed 0 bold, 1 more faint" in ax.get_title()


def test_pitfalls_are_the_lines_of_one_net_and_its_variants():
    metrics = {f"pitfall/{name}/{batch}": 0.5 for name in ("correct", "as_written")
               for batch in ("whole", "16", "2", "1")}
    rows = [row("CNN", seed, **metrics, **{"pitfall/images": 96.0}) for seed in range(2)]
    rows += [row("CNN, no BN", **{"pitfall/correct/whole": 0.4}), row("MLP", **metrics)]
    ax = figures.draw("pitfalls:CNN", rows, axes())
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["correct inference", "as written: two bugs at\nonce",
                      "correct inference\n(no BN)"]
    assert [len(line.get_xdata()) for line in ax.lines] == [5, 4, 4, 4]
    assert "CNN, 96 test images" in ax.get_title()


def test_a_pitfall_has_the_same_name_in_picture_and_table():
    named = {}
    for pitfall in PITFALLS:  # the first one of an evaluation; the others are arms of their own
        named.setdefault(pitfall.evaluation, pitfall.name)
    assert named == WORDS


@pytest.mark.parametrize("name", ["fits", "errors", "starts"])
def test_a_regression_is_drawn_of_the_arms_with_frames(name):
    errors = {"loss/test": [[0, 9.0], [10, 3.0], [20, 1.0]]}
    rows = [row(f"{word} {normalizer}", seed, normalizer=normalizer, curves=errors,
                frames=frames() if seed == 0 else None)
            for word in ("tanh", "relu") for normalizer in ("none", "batch") for seed in range(2)]
    ax = figures.draw(f"{name}:tanh", rows, axes())
    labels = ax.get_legend_handles_labels()[1]
    assert not any("relu" in label for label in labels)
    if name == "fits":
        assert labels == ["20 test points", "tanh none, seed 0", "tanh batch, seed 0"]
    if name == "errors":
        assert labels == ["tanh none (2 seeds)", "tanh batch (2 seeds)"]
        assert bold(ax)[0].get_xdata().tolist() == [0, 1, 2]  # epochs
    if name == "starts":
        assert "tanh none, seed 0" in ax.get_title()
        assert sum("std" in text.get_text() for text in ax.texts) == 2  # hidden layers


def test_an_activation_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="starts:gelu: expected one of tanh, relu"):
        figures.draw("starts:gelu", [row("gelu none", frames=frames())], axes())


@pytest.mark.parametrize("name", [
    "curve", "curve:no/such", "outcomes", "accuracy_over_rates", "percentiles:none",
    "pitfalls:CNN", "fits:tanh", "errors:tanh", "starts:tanh", "over:learning_rate",
])
@pytest.mark.parametrize("rows", [[], [row("none", status=DIVERGED)]], ids=["no row", "diverged"])
def test_a_panel_with_nothing_to_show_says_so(name, rows):
    ax = figures.draw(name, rows, axes())
    assert not ax.lines and ax.texts[0].get_text().startswith("no ")
    assert figures.picture(rows, [name], "title").startswith(b"\x89PNG")


def test_every_figure_of_the_package_is_tried_here():
    assert set(FIGURES.names()) == {
        "curve", "outcomes", "accuracy_over_rates", "percentiles", "pitfalls", "fits", "errors",
        "starts", "over",
    }
    for name in FIGURES.names():
        assert "How to read it:" in FIGURES.get(name).__doc__


@pytest.mark.parametrize("name", ["curve", "outcomes"])
def test_runs_that_all_diverged_at_once_are_named(name):
    rows = [row(arm, seed, DIVERGED, validation_accuracy=None)
            for arm in ("none", "batch") for seed in range(6)]
    ax = figures.draw(name, rows, axes())
    assert ax.texts[0].get_text().splitlines()[1:] == [
        "no normalization (6 seeds, 6 diverged)", "batch normalization (6 seeds, 6 diverged)",
    ]
    assert not ax.get_legend_handles_labels()[1]


def test_an_arm_that_diverged_before_its_first_point_is_in_the_legend():
    rows = [row("none", seed, DIVERGED) for seed in range(2)] + [learning("batch")]
    assert figures.draw("curve", rows, axes()).get_legend_handles_labels()[1] == [
        "no normalization (2 seeds, 2 diverged)", "batch normalization (1 seed)",
    ]


def test_the_outputs_of_a_diverged_net_are_no_fit():
    rows = [row("tanh none", status=DIVERGED, normalizer="none", frames=frames()),
            row("tanh batch", normalizer="batch", frames=frames())]
    ax = figures.draw("fits:tanh", rows, axes())
    assert [line.get_label() for line in ax.lines if len(line.get_xdata())] == [
        "tanh batch, seed 0"]
    assert "tanh none, seed 0: diverged" in ax.get_legend_handles_labels()[1]


def test_perfect_accuracies_leave_an_axis_of_some_width():
    rows = [learning("batch", seed, (1.0, 1.0, 1.0), validation_accuracy=1.0) for seed in range(2)]
    for name, limits in (("outcomes", "get_xlim"), ("curve", "get_ylim")):
        low, high = getattr(figures.draw(name, rows, axes()), limits)()
        assert (low, high) == pytest.approx((0.9, 1), abs=0.01), name


def test_faint_lines_between_two_arms_are_explained():
    rows = [row(arm, seed, validation_accuracy=0.5) for arm in ("none", "batch") for seed in (0, 1)]
    assert "faint lines join the runs of a seed" in figures.draw("outcomes", rows, axes()
                                                                 ).get_title()
    rows += [row("layer", validation_accuracy=0.5)]
    assert "faint" not in figures.draw("outcomes", rows, axes()).get_title()


def test_rates_that_never_work_promise_no_number_and_lines_on_top_of_each_other_can_be_seen():
    rows = [row(arm, largest_workable_rate=None, test_accuracy_at_1=0.2, test_accuracy_at_2=0.1)
            for arm in ("none", "batch")]
    ax = figures.draw("accuracy_over_rates", rows, axes())
    assert ax.get_title().startswith("no net has a workable rate")
    below, above = bold(ax)
    assert below.get_linewidth() > above.get_linewidth() + 1


def test_a_legend_has_room_for_all_of_a_pattern_of_dashes():
    looks = [*drawing.STYLES.values(), *((None, dashes) for dashes in drawing.DASHES),
             *(look for family in drawing.FAMILIES.values() for look in family)]
    room = drawing.HANDLE_LENGTH * 8  # the smallest font of a legend
    for _, line in looks:
        _, pattern = line if isinstance(line, tuple) else (0, PATTERNS[line])
        assert sum(pattern) * drawing.MEDIAN_WIDTH <= room, line
    colors = [color for color, _ in drawing.FAMILIES["batch"]]
    assert len(set(colors)) == len(colors)


def test_a_figure_from_outside_the_package_is_a_panel_like_any_other():
    @FIGURES.register("seconds")
    def seconds(rows, ax, argument=None):
        ax.bar(range(len(rows)), [float(argument)] * len(rows))
        return ax

    try:
        assert figures.picture([learning("none")], ["curve", "seconds:3"], "t").startswith(b"\x89P")
        assert len(figures.draw("seconds:3", [row("none")], axes()).patches) == 1
    finally:
        del FIGURES._registered["seconds"]
    with pytest.raises(UnknownName, match="unknown figure 'seconds'"):
        figures.draw("seconds", [], axes())


def pixels(picture):
    return np.round(image.imread(io.BytesIO(picture))[..., :3] * 255).reshape(-1, 3).astype(int)


def test_a_picture_has_the_colours_and_takes_any_title():
    rows = [learning("none", 0, (0.1, 0.1)), learning("batch", 0, (0.8, 0.9))]
    picture = figures.picture(rows, ["curve"], "csv:/tmp/$x$_{学}.csv [red]\x1b[0m\nof $")
    for color in ((0x7F, 0x7F, 0x7F), (0x00, 0x72, 0xB2)):
        assert (pixels(picture) == color).all(axis=1).sum() > 20, color
    with pytest.raises(ValueError, match="a picture of no figures"):
        figures.picture(rows, [], "title")


def test_a_hostile_arm_is_drawn_as_it_is_written():
    name = "$x$ [red]_{1}"
    ax = figures.draw("curve", [learning(name)], axes())
    assert bold(ax)[0].get_label() == r"\$x\$ [red]_{1} (1 seed)"


@pytest.mark.slow
def test_no_legend_covers_a_panel(monkeypatch):
    """Legends lie below the axes, one for all panels with the same lines."""
    drawn = []
    monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or b"")
    rows = [learning(f"none, number {number}") for number in range(5)]
    figures.picture(rows, ["curve", "curve"], "title")
    figures.picture(rows, ["curve", "fits"], "title")
    together, apart = drawn
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
    assert len(together.legends) == 1 and not any(ax.get_legend() for ax in together.axes)
    place = together.legends[0].get_window_extent()
    assert all(place.y1 <= ax.get_window_extent().y0 for ax in together.axes)
    below = apart.axes[0].get_legend().get_window_extent()
    assert below.y1 <= apart.axes[0].get_window_extent().y0 and below.y0 >= 0
