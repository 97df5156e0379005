"""Animations: frames over the same axes, as a GIF and as a page that needs no other file."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from reports import frames, row

from bn_keras.report import animation

CURVES = {"loss/test": [[0, 9.0], [10, 3.0], [20, 1.5]]}


def net(normalizer, seed=0, **changes):
    return row(f"tanh {normalizer}", normalizer=normalizer, curves=CURVES,
               frames={**frames(seed=seed), **changes})


@pytest.fixture(scope="module")
def images():
    return animation.layer_histograms(net("batch"), net("none", 1), "a title")


@pytest.mark.slow
def test_a_frame_differs_from_another_within_the_axes_and_the_heading_only(images):
    assert len(images) == 3
    first, last = (np.asarray(image.convert("RGB")) for image in (images[0], images[-1]))
    changed = (first != last).any(-1)
    height, width = changed.shape
    assert changed[: height // 5].any()  # epoch and errors
    assert changed[height // 5:].any() and not changed[int(0.95 * height):].any()
    assert not changed[:, : width // 20].any()


@pytest.mark.slow
def test_the_upper_net_is_blue_and_the_lower_one_grey(images):
    pixels = np.asarray(images[-1].convert("RGB"), int)
    half = len(pixels) * 52 // 100  # between the two nets

    def near(part, color):
        return (np.abs(part - color).max(-1) < 12).sum()

    blue, grey = (0, 0x72, 0xB2), (0x7F, 0x7F, 0x7F)
    assert near(pixels[:half], blue) > 1000 and near(pixels[half:], blue) < 10
    assert near(pixels[half:], grey) > 1000


def test_the_gif_has_all_frames_and_waits_at_the_last(images):
    with Image.open(io.BytesIO(animation.gif(images))) as movie:
        assert movie.n_frames == 3
        durations = []
        for frame in range(3):
            movie.seek(frame)
            durations.append(movie.info["duration"])
    assert durations == [700, 700, 2500]


def test_the_page_needs_no_other_file_and_takes_any_title(images):
    page = animation.page(images, 'what <every> "layer" $sees \x1b[0m')
    assert page.count("data:image/png;base64,") == 3 and 'max="2"' in page
    assert "what &lt;every&gt; &quot;layer&quot; $sees \\x1b[0m" in page and "<every>" not in page
    assert 'src="http' not in page and "href" not in page and "${" not in page


def test_the_page_suits_phones_dark_screens_and_screen_readers(images):
    page = animation.page(images, "a title")
    for part in ('name="viewport"', "prefers-color-scheme: dark", "<main>", "<h1>a title</h1>",
                 'class="scroll"', "image.alt ="):
        assert part in page


@pytest.mark.slow
def test_a_diverged_net_is_drawn_as_far_as_it_goes():
    lost = net("none")
    for layer in lost.frames["layers"]:
        lost.frames[f"{layer}/output"][1:] = np.nan
    lost = dataclasses.replace(lost, curves={"loss/test": [[0, 9.0]]})
    assert len(animation.layer_histograms(net("batch"), lost, "title")) == 3
    assert animation._heading(lost, lost, 0).endswith("tanh none 9.0, tanh none 9.0")
    assert "diverged" in animation._heading(lost, lost, 2)


@pytest.mark.parametrize("values, edges", [
    (np.full(5, np.nan), (-0.5, 0.5)),
    (np.full(5, 2.0), (1.5, 2.5)),
    (np.arange(3.0), (0.01, 1.99)),
])
def test_edges_suit_the_values_and_one_value_alone(values, edges):
    found = animation._edges(values)
    assert (found[0], found[-1]) == pytest.approx(edges) and len(found) == animation.BINS + 1
