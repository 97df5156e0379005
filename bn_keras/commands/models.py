"""What the verbs for a finished model share: reading it and its data, and writing a new one."""

import argparse
import json
import os
import pathlib
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence

from bn_keras import data, objects
from bn_keras.commands.console import INTERRUPTED, refuse, say
from bn_keras.data import Splits
from bn_keras.native_log import quiet_native_log
from bn_keras.results import in_place_of
from bn_keras.texts import plain

if TYPE_CHECKING:
    import keras

FILE = ".keras"
EXPECTED = (
    "expected a file that model.save('NAME.keras') wrote, or my_net.py:make, a function of yours "
    "that returns a finished model"
)
# A file holds weights, which hardly compress; one that grows further than this is a trap.
GROWTH, SMALL = 50, 2**28
DESCRIPTION = """
MODEL is a file NAME.keras, which is loaded with Keras's safe_mode: nothing in it is run. A model
with layers of your own is made by my_net.py:make, a function without arguments that returns it.
"""
DATA = """
DATA is a name that bn-keras list has, or npz:PATH, folder:PATH, my_data.py:load and so on, see
docs/data.md. Pixels of images are scaled to 0 to 1; --pixels=raw leaves them as they are stored.
Choose what the model was trained on: other pixels look like another data set.
"""


class Refused(ValueError):
    """A model or a place for one that cannot be used; the message says why."""


def make_parser(
    verb: str, does: str, *, with_data: bool, data_required: bool = False, writes: bool = True,
) -> argparse.ArgumentParser:
    """The parser of a verb for a model.

    Args:
        verb: its name.
        does: what it does, in full sentences, for --help.
        with_data: whether it takes --dataset.
        data_required: whether it needs it.
        writes: whether it writes a new model.
    """
    parser = argparse.ArgumentParser(
        f"bn-keras {verb}", description=does + DESCRIPTION + (DATA if with_data else ""),
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    if writes:
        parser.add_argument(
            "--output", metavar="FILE.keras", help="the new model (default: MODEL.%s.keras beside "
            "the given file)" % verb)
        parser.add_argument(
            "--force", action="store_true", help="write over a file that is there already")
    if with_data:
        parser.add_argument("--dataset", metavar="DATA", required=data_required)
        parser.add_argument("--data_dir", metavar="FOLDER")
        parser.add_argument("--image_size", type=int, metavar="PIXELS")
        parser.add_argument(
            "--examples", type=_count, metavar="N", help="read the first N of each set only")
        parser.add_argument(
            "--pixels", default="unit", choices=("unit", "centered", "raw"),
            help="0 to 1, -0.5 to 0.5, or as they are stored (default: %(default)s)")
        parser.add_argument("--batch_size", type=_count, metavar="N", default=32)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def read_model(name: str) -> "keras.Model":
    """The model of a file or of a function.

    Raises:
        Refused: there is none, or it is not built.
    """
    path = pathlib.Path(os.path.expanduser(name))
    is_object = objects.is_object_name(name)
    if not is_object:
        _check_file(name, path)
    with quiet_native_log():
        import keras
        import tensorflow as tf

        tf.config.list_logical_devices()  # now, as it talks while it looks for them
    if is_object:
        model = _made(name)
    else:
        try:
            model = keras.models.load_model(path, safe_mode=True)
        except Exception as error:  # a file of a stranger's fails in every way there is
            raise Refused(
                f"{name}: cannot be loaded ({objects.told(error)}); {EXPECTED}"
            ) from error
    if not isinstance(model, keras.Model):
        raise Refused(f"{name}: gives a {type(model).__name__}; {EXPECTED}")
    if not model.built:
        raise Refused(
            f"{name}: {model.name!r} is not built; expected one that was called on data, or built, "
            "before it was saved or returned"
        )
    return model


def read_data(options: argparse.Namespace) -> Optional[Splits]:
    """The data that --dataset names, with pixels as --pixels says; None without it.

    Labels have the shape in which they came, as the model's own loss takes them.

    Raises:
        DataError, UnknownName: as `data.load`.
    """
    if options.dataset is None:
        return None
    most = options.examples
    return data.load(
        options.dataset, options.data_dir, train_size=most, validation_size=most, test_size=most,
        image_size=options.image_size,
    ).scaled(options.pixels).labels_as_given()


def some_inputs(splits: Optional[Splits], options: argparse.Namespace) -> Any:
    """A batch of test inputs to call models on, or None without data."""
    return None if splits is None else splits.test.first(options.batch_size).images


def output_path(options: argparse.Namespace, verb: str) -> pathlib.Path:
    """Where the new model is to go; nothing is computed for a place that cannot have it.

    Raises:
        Refused: the given model itself, a file that is there without --force, or no such folder.
    """
    given = pathlib.Path(os.path.expanduser(options.model))
    is_object = objects.is_object_name(options.model)
    name = options.output or (
        f"{options.model.rpartition(':')[2]}.{verb}{FILE}" if is_object
        else str(given.with_suffix(f".{verb}{FILE}"))
    )
    path = pathlib.Path(os.path.expanduser(name))
    if path.suffix != FILE:
        raise Refused(f"--output={name}: expected a name that ends in {FILE}")
    if path.exists() and given.exists() and path.samefile(given):
        raise Refused(f"--output={name} is the given model, which stays as it is; expected another")
    if path.is_dir() or path.exists() and not options.force:
        raise Refused(f"{path} is there already; expected another --output, or --force")
    if not path.parent.is_dir():
        raise Refused(f"--output={name}: there is no folder {path.parent}")
    return path


def write_model(model: "keras.Model", path: pathlib.Path) -> None:
    """Saves a model so that the file is, at any moment, the old one or the new one.

    Raises:
        Refused: Keras cannot save it.
        OSError: the disk.
    """
    with in_place_of(path) as scratch:
        try:
            model.save(scratch)
        except OSError:
            raise
        except Exception as error:
            raise Refused(
                f"{path}: Keras cannot save this model ({objects.told(error)}); call the function "
                "from Python and use the model it returns"
            ) from error


def inspect(
    parser: argparse.ArgumentParser, arguments: Sequence[str],
    work: Callable[[argparse.Namespace], int],
) -> int:
    """A verb's work for parsed arguments.

    Returns:
        The exit status: what `work` returns, 1 for a full disk, 2 for what was refused.
    """
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            status = work(options)
        for one in said:
            if issubclass(one.category, UserWarning):
                refuse(parser.prog, f"warning: {one.message}")
        return status
    except OSError as error:
        return refuse(parser.prog, error, 1)
    except (ValueError, TypeError) as error:  # Refused, DataError and UnknownName among them
        return refuse(parser.prog, error, lines=True)
    except KeyboardInterrupt:
        return INTERRUPTED


def operate(
    verb: str, parser: argparse.ArgumentParser, arguments: Sequence[str],
    surgery: Callable[["keras.Model", Optional[Splits], argparse.Namespace], Any],
) -> int:
    """A verb that makes a new model: reads, operates, writes, and prints the certificate.

    Args:
        verb: its name.
        parser: from `make_parser`.
        arguments: of the command line.
        surgery: `(model, splits, options) -> (new model, certificate)`.

    Returns:
        The exit status.
    """
    def work(options: argparse.Namespace) -> int:
        path = output_path(options, verb)
        splits = read_data(options) if hasattr(options, "dataset") else None
        given = read_model(options.model)
        new, certificate = surgery(given, splits, options)
        _compile_like(given, new)
        write_model(new, path)
        reason = _why_it_does_not_load(path)
        if options.json:
            told = {"output": str(path), "does_not_load": reason, **certificate.to_dict()}
            say(json.dumps(told, indent=1, default=str))
        else:
            say(str(certificate))
            say(f"written to {plain(str(path))}")
            if reason:
                say(f"but it does not load by itself: {plain(reason)}")
        return 0

    return inspect(parser, arguments, work)


def _why_it_does_not_load(path: pathlib.Path) -> Optional[str]:
    """Why Keras cannot load a file that was written, such as classes of one's own; None if it can.

    The file of a model whose own code makes its layers holds weights of other layers than that.
    """
    import keras

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keras.models.load_model(path, safe_mode=True)
    except Exception as error:
        return objects.told(error)
    return None


def _compile_like(given: "keras.Model", new: "keras.Model") -> None:
    """Gives a new model the loss, metrics and optimizer of the given one, as files keep them."""
    config = given.get_compile_config() if given.compiled else None
    if config:
        new.compile_from_config(config)


def _made(name: str) -> Any:
    try:
        function = objects.load_object(name)
        return function() if callable(function) else function
    except objects.ObjectError as error:
        raise Refused(str(error)) from error
    except Exception as error:
        raise Refused(f"{name}: raised {objects.told(error)}; {EXPECTED}") from error


def _check_file(name: str, path: pathlib.Path) -> None:
    """Raises unless a file can be a model: a zip archive that does not grow beyond all bounds."""
    if not path.exists():
        raise Refused(f"{name}: there is no such file; {EXPECTED}")
    if not path.is_file() or path.suffix != FILE or not zipfile.is_zipfile(path):
        kind = "a folder" if path.is_dir() else "not a .keras file"
        raise Refused(f"{name}: {kind}; {EXPECTED}")
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > max(SMALL, GROWTH * path.stat().st_size):
        raise Refused(
            f"{name}: {path.stat().st_size} bytes that grow to {size}, which no model's weights "
            f"do; {EXPECTED}"
        )


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"received {text!r}; expected a whole number above 0")
    return int(text)
