"""Numbers and names as text."""

import io
import math

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from bn_keras.report.numbers import chosen, count, difference, number, p_value, share, spread
from bn_keras.texts import encodable, in_picture, plain


@pytest.mark.parametrize("value, text", [
    (0.9526, ".953"), (2.4, "2.4"), (836.4, "836"), (12750, "12,750"), (5.2e-5, "5e-5"),
    (-3e-12, "−3e-12"),
    (0, "0"), (1, "1"), (-0.0021, "−.002"), (-3.14159, "−3.14"), (0.9996, "1.000"),
])
def test_a_number_has_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize("value, text", [
    (0.1, ".1"), (-0.02, "−.02"), (0.75, ".75"), (1, "1"), (0, "0"),
    (15001, "15,001"), (2.4, "2.4"), (10.05, "10.05"), (780, "780"), (1e-4, ".0001"),
    (2e-6, "2e-6"),
])
def test_a_chosen_number_keeps_its_digits(value, text):
    assert chosen(value) == text


def test_shares_and_differences_have_no_leading_zero():
    assert (share(0.5407, 2), share(1, 2), share(0)) == (".54", "1", "0")
    assert (difference(0.853), difference(-0.002), difference(0)) == ("+.853", "−.002", "0")
    assert (p_value(0.03125), p_value(1e-9)) == ("= .031", "< .001")
    assert (count(1, "seed"), count(0, "seed")) == ("1 seed", "0 seeds")


@pytest.mark.parametrize("values, missing, text", [
    ([0.1, 0.3, 0.2], math.nan, ".200 [.100, .300]"),
    ([5, 5], math.nan, "5"),
    ([], math.nan, "–"),
    ([None, None], math.inf, "never"),
    ([100, None, 300], math.inf, "300 [100, 300] (2 of 3)"),  # the third is infinite
    ([100, None, None], math.inf, "never [100, 100] (1 of 3)"),
    ([0.9, None, 0.8], -math.inf, ".800 [.800, .900] (2 of 3)"),
    ([0.9, None, 0.8], math.nan, ".850 [.800, .900] (2 of 3)"),
])
def test_a_median_counts_the_runs_without_a_value(values, missing, text):
    assert spread(values, missing, "never") == text


HOSTILE = "a\x1b[31mb\r\n$x_1$ [red]c[/red] \u202e*d*\udc80"


def test_a_name_sends_no_control_character_to_the_terminal():
    text = plain(HOSTILE)
    assert text == "a\\x1b[31mb $x_1$ [red]c[/red] \\u202e*d*\\udc80"
    assert all(character.isprintable() for character in text)
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=200).print(Text(text))
    assert "\x1b[31m" not in out.getvalue() and "[red]c[/red]" in out.getvalue()


def test_a_name_is_no_mathematics_in_a_picture():
    drawn = Figure().text(0, 0, in_picture("$x_1$ and $y$"))
    assert drawn._preprocess_math(drawn.get_text()) == ("$x_1$ and $y$", False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_any_text_can_be_printed_in_any_encoding(encoding):
    text = "• .967 – [.965, .971] ± 2² 学 ≤ −1"
    shown = encodable(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    assert (shown == text) == (encoding == "utf-8")
    if encoding == "ascii":
        assert shown == "* .967 - [.965, .971] +- 2^2 \\u5b66 <= -1"
