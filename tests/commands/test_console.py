"""The terminal: any encoding, no reader, no space; and verbs from outside the package."""

import io
import os
import subprocess
import sys

import pytest
from processes import ENVIRONMENT

import bn_keras
from bn_keras.__main__ import main, usage
from bn_keras.commands.console import Output, make_console, refuse
from bn_keras.registry import COMMANDS, PROBES, Registry


def encoded(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


@pytest.mark.parametrize(
    "encoding, expected", [("ascii", "a - b \\u5b66"), ("latin-1", "a - b \\u5b66"),
                           ("utf-8", "a – b 学")],
)
def test_what_an_encoding_lacks_is_spelt_out(encoding, expected):
    stream = encoded(encoding)
    Output(stream).write("a – b 学")
    assert stream.buffer.getvalue().decode(encoding) == expected


@pytest.mark.slow
@pytest.mark.parametrize("code", ["--help", "train --help"])
@pytest.mark.parametrize("place", ["a pipe without a reader", "a full disk"])
def test_output_that_goes_nowhere_is_no_traceback(code, place):
    """Of little, which waits in the buffer to the end, and of more than a buffer holds."""
    if place == "a full disk":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    program = "import sys; from bn_keras.__main__ import main; sys.exit(main(sys.argv[1].split()))"
    process = subprocess.run(
        [sys.executable, "-c", program, code], stdout=target, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )
    os.close(target)
    if place == "a full disk":
        assert process.returncode == 1 and process.stderr.count("\n") == 1
        assert process.stderr.endswith("[Errno 28] No space left on device\n")
    else:
        assert (process.returncode, process.stderr) == (0, "")


def test_markup_and_escape_codes_are_printed_as_they_are(capsys):
    assert refuse("bn-keras", "[red]a\x1b[31m\nb\ud800") == 2
    assert capsys.readouterr().err == "bn-keras: [red]a\\x1b[31m b\\ud800\n"
    refuse("bn-keras", "a\rb\nc", lines=True)
    assert capsys.readouterr().err == "bn-keras: a b\nc\n"


def test_a_console_elsewhere_than_on_a_terminal_is_wide_and_plain(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = make_console()
    assert console.width == 100 and not console.is_terminal
    console.print("word " * 19)
    assert capsys.readouterr().out == "word " * 19 + "\n"
    for columns, width in (("60", 60), ("0", 100), ("many", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        assert make_console().width == width


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bn-keras {bn_keras.__version__}\n"


def test_a_file_of_parts_that_is_no_python_gets_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "broken.py").write_text("def part(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = Registry("probe", "PROBES", "broken")
    monkeypatch.setattr(PROBES, "_known", broken._known)
    assert main(["train", "--help"]) == 2
    errors = capsys.readouterr().err
    assert "broken.py, line 1: invalid syntax; expected" in errors and errors.count("\n") == 1


def test_a_verb_from_outside_the_package_is_called_and_listed(monkeypatch, capsys):
    monkeypatch.setattr(COMMANDS, "_registered", dict(COMMANDS._registered))
    seen = []

    @COMMANDS.register("greet", usage="greet NAME", does="says hello")
    def greet(arguments):
        seen.append(arguments)
        return 7

    assert main(["greet", "you"]) == 7 and seen == [["you"]]
    assert "  greet NAME\n        says hello" in usage()

    @COMMANDS.register("plain")
    def plain(arguments):
        raise KeyboardInterrupt

    assert main(["plain"]) == 130 and "  plain\n" in usage()
    assert main([]) == 0 and "greet" in capsys.readouterr().out


@pytest.mark.parametrize("verb", COMMANDS.names())
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_has_help_with_its_usage_and_an_example(verb, flag, capsys):
    assert main([verb, flag]) == 0
    output, errors = capsys.readouterr()
    assert verb in output.splitlines()[0] or output.startswith("Trains a net")
    assert f"bn-keras {verb}" in output.split("\n", 1)[1] and errors == ""
    assert main([verb, "--hlep"]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and f"bn-keras {verb}: " in errors


def test_list_names_everything_that_has_a_name(capsys):
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    for text in ("mnist_cnn", "keras_batch", "one_at_a_time", "  bad_init_regression", "tfds"):
        assert text in output
    assert main(["list", "models"]) == 2
    assert "received models; expected no arguments" in capsys.readouterr().err
