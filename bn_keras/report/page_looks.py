"""The looks of arms on the HTML page: the pictures' colours and lines, in light and in dark."""

from typing import Mapping, Sequence, Union

# Background, ink, and the contrast of an arm's colour with the background: WCAG 2.2 asks for 3 in
# lines and marks (1.4.11), and thin bluish lines on black need more.
LIGHT, DARK = ("#ffffff", "#000000", 3.0), ("#15181c", "#ffffff", 5.0)


def visible(color: str, background: str, ink: str, least: float) -> str:
    """The colour, moved towards the ink until its contrast with the background is at least that.

    Args:
        color, background, ink: such as `#0072b2`.
        least: as for `contrast`.
    """
    for step in range(101):
        mixed = "#" + "".join(
            f"{round(one + (other - one) * step / 100):02x}"
            for one, other in zip(_channels(color), _channels(ink))
        )
        if contrast(mixed, background) >= least:
            break
    return mixed


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours by WCAG 2.2, from 1 to 21."""
    high, low = sorted(map(_luminance, (first, second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def dashes(line: Union[str, tuple[int, Sequence[float]]]) -> tuple[float, ...]:
    """Matplotlib's line style as a pattern of SVG, in pixels."""
    named: Mapping[str, tuple[float, ...]] = {
        "-": (1, 0), "--": (6, 3), "-.": (8, 3, 2, 3), ":": (2, 3),
    }
    return named[line] if isinstance(line, str) else tuple(2 * length for length in line[1])


def _luminance(color: str) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
              for value in (channel / 255 for channel in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
