"""NumPy arrays out of a pickle from anywhere, without running it.

A pickle is a program: `pickle.load` imports and calls whatever it names. Here nothing is imported
and nothing that the file names is called. The few instructions by which Python 2 and 3 write a dict
of arrays are carried out on stand-ins of our own; all others, and all names but NumPy's, are
refused as soon as they are met. Time and memory stay within a small multiple of the file's size.
"""

import codecs
import enum
import math
import pathlib
import pickletools
import types
import warnings
from typing import Any, BinaryIO, Optional, Sequence, Union, cast

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.reading.files import MAX_BYTES
from bn_keras.data.splits import DataError

MAX_INSTRUCTIONS = 10_000  # six arrays take about 200
MAX_DIMENSIONS = 32  # NumPy 1's own limit
REMEDY = (
    "expected a dict of NumPy arrays and nothing else: name another file. Nothing of this one was "
    "run."
)
INSTRUCTIONS = types.MappingProxyType(
    {instruction.code.encode("latin-1"): instruction for instruction in pickletools.opcodes}
)


class _Name(enum.Enum):
    """What stands on the stack for a name that the file may use; it cannot be called."""

    RECONSTRUCT = enum.auto()
    FROM_BUFFER = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()
    BYTES = enum.auto()


NAMES = types.MappingProxyType({
    ("numpy.core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,  # NumPy 2
    ("numpy.core.numeric", "_frombuffer"): _Name.FROM_BUFFER,  # protocol 5
    ("numpy._core.numeric", "_frombuffer"): _Name.FROM_BUFFER,
    ("numpy", "ndarray"): _Name.NDARRAY,
    ("numpy", "dtype"): _Name.DTYPE,
    ("_codecs", "encode"): _Name.ENCODE,  # bytes, as Python 3 writes them in protocols 0 to 2
    ("__builtin__", "bytes"): _Name.BYTES,  # no bytes at all, likewise
})
# Numbers only: an object array would hold whatever its file says.
DTYPES = frozenset({"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


def load_arrays(path: pathlib.Path) -> dict[str, NDArray[Any]]:
    """The arrays in a pickled dict.

    Args:
        path: pathlib.Path of a pickle of any protocol from 0 to 5.

    Returns:
        Dict from str to np.ndarray; some are read-only.

    Raises:
        DataError: the file is broken, or holds or names anything else.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            stream = _Stream(file, size)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # pickletools only warns of a broken escape
                    content = _run(stream)
                return _convert(content, size)
            except (ValueError, Warning) as error:
                what = str(error)[:300]  # a name or a line may be as long as the file
                raise DataError(f"{path}: {what} (before byte {file.tell()}); {REMEDY}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); {REMEDY}") from error


class _Stream:
    """A file of which never more is asked for than is left: an announced length costs nothing."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.readline = file.readline
        self._file, self._size = file, size

    def left(self) -> int:
        return self._size - self._file.tell()

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self.left()))


class _Dtype:
    """Stands for np.dtype, whose own objects are shared by the whole process."""

    def __init__(self, code: str) -> None:
        self.code, self.byteorder = code, "="

    def build(self, state: Any) -> None:
        match state:
            case (_, "<" | ">" | "|" | "=" as byteorder, None, None, None, _, _, _):
                self.byteorder = byteorder
                return
        raise ValueError("sets another state of a dtype than its byte order")


class _Array:
    """Stands for np.ndarray: what the file says of it, checked, and only converted at the end."""

    def __init__(
        self, shape: tuple[Any, ...] = (0,), dtype: Optional[_Dtype] = None, order: str = "C",
        data: Union[str, bytes, bytearray] = b"",
    ) -> None:
        self.shape, self.order, self.data = shape, order, data
        self.dtype = _Dtype("") if dtype is None else dtype

    def build(self, state: Any) -> None:
        match state:
            case (_, tuple(shape), _Dtype() as dtype, fortran, str() | bytes() as data):
                self.shape, self.dtype, self.data = shape, dtype, data
                self.order = "F" if fortran else "C"
                return
        raise ValueError("sets another state of an array than its shape, dtype and bytes")

    def check(self) -> int:
        """Returns the size in bytes, or raises ValueError unless the data have just that size."""
        if not self.dtype.code:
            raise ValueError("holds an array without a shape and dtype")
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"announces {len(self.shape)} dimensions; at most {MAX_DIMENSIONS}")
        if not all(type(n) is int and 0 <= n <= MAX_BYTES for n in self.shape):
            raise ValueError(f"announces a shape with a dimension that is not 0 to {MAX_BYTES}")
        size: int = int(self.dtype.code[1]) * math.prod(self.shape)
        if size != len(self.data):
            raise ValueError(
                f"announces an array of shape {self.shape} and type {self.dtype.code}, {size} "
                f"bytes, but holds {len(self.data)} bytes for it"
            )
        return size

    def numpy(self) -> NDArray[Any]:
        data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        values: NDArray[Any] = np.frombuffer(data, self.dtype.byteorder + self.dtype.code)
        return values.reshape(self.shape, order="F" if self.order == "F" else "C")


def _run(stream: _Stream) -> Any:
    """Carries out the instructions and returns what they leave, a dict."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int = 1) -> list[Any]:
        if len(stack) < count:
            raise ValueError("takes a value that is not there")
        values = stack[len(stack) - count:]
        del stack[len(stack) - count:]
        return values

    def pop_to_mark() -> list[Any]:
        if not marks:
            raise ValueError("takes a mark that is not there")
        return pop(max(0, len(stack) - marks.pop()))

    def top() -> Any:
        if not stack:
            raise ValueError("takes a value that is not there")
        return stack[-1]

    for _ in range(MAX_INSTRUCTIONS):
        instruction, argument = _next(stream)
        match instruction:
            case "STOP":
                return top()
            case "PROTO":
                if argument > 5:
                    raise ValueError(f"is of protocol {argument}; known are 0 to 5")
            case "FRAME":
                if argument > stream.left():
                    raise ValueError(f"announces {argument} bytes and has {stream.left()}")
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case ("INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1"
                  | "STRING" | "BINSTRING" | "SHORT_BINSTRING"
                  | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                  | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"):
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(instruction[-1]))))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = pop_to_mark()
                stack.append({})
                _set_items(top(), items)
            case "SETITEM":
                items = pop(2)
                _set_items(top(), items)
            case "SETITEMS":
                items = pop_to_mark()
                _set_items(top(), items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = top()
            case "MEMOIZE":
                memo[len(memo)] = top()
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise ValueError(f"takes the value {argument} before it is kept")
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_find(*pop(2)))
            case "REDUCE":
                stack.append(_reduce(*pop(2)))
            case "BUILD":
                (state,) = pop()
                if not isinstance(top(), (_Dtype, _Array)):
                    raise ValueError(f"sets the state of a {type(top()).__name__}")
                top().build(state)
            case _:
                of = f" of {argument!r}" if isinstance(argument, str) else ""
                raise ValueError(f"uses the instruction {instruction}{of}, which arrays do not")
    raise ValueError(f"takes more than {MAX_INSTRUCTIONS} instructions")


def _next(stream: _Stream) -> tuple[str, Any]:
    """Name and argument of the next instruction."""
    code = stream.read(1)
    if not code:
        raise ValueError("ends before its STOP")
    if code not in INSTRUCTIONS:
        raise ValueError(f"holds the byte {code!r}, which is no pickle instruction")
    instruction = INSTRUCTIONS[code]
    if instruction.name == "STRING":
        return "STRING", _python_2_string(stream.readline())
    reader = instruction.arg and instruction.arg.reader
    return instruction.name, reader and reader(cast(BinaryIO, stream))


def _python_2_string(line: bytes) -> str:
    # pickletools takes ASCII only here, and Python 2 writes the bytes of an array this way.
    quoted = line[:-1]
    if len(quoted) < 2 or quoted[:1] not in b"'\"" or quoted[-1:] != quoted[:1]:
        raise ValueError("holds a text without its quotes")
    return codecs.escape_decode(quoted[1:-1])[0].decode("latin-1")


def _find(module: Any, name: Any) -> _Name:
    if type(module) is not str or type(name) is not str:
        raise ValueError("names something by other values than two texts")
    if (module, name) not in NAMES:
        raise ValueError(f"names {f'{module}.{name}'!r}")
    return NAMES[module, name]


def _reduce(function: Any, arguments: Any) -> Any:
    """What a call would return; the bytes that `_codecs.encode` would return stay a text."""
    match function, arguments:
        case _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), "b" | b"b"):
            return _Array()
        case _Name.FROM_BUFFER, (bytes() | bytearray() as data, _Dtype() as dtype, tuple(shape),
                                 "C" | "F" as order):
            return _Array(shape, dtype, order, data)
        case _Name.DTYPE, (str(code), _, _):
            if code not in DTYPES:
                raise ValueError(f"holds an array of type {code!r}; known: {sorted(DTYPES)}")
            return _Dtype(code)
        case _Name.ENCODE, (str(text), "latin1"):
            return text
        case _Name.BYTES, ():
            return ""
    called = function.name if isinstance(function, _Name) else type(function).__name__
    raise ValueError(f"calls {called} in another way than arrays do")


def _set_items(target: Any, items: Sequence[Any]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise ValueError(f"puts {len(items)} values into a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        if type(key) is not str:  # hashing a deep tuple would overflow Python's own stack
            raise ValueError(f"uses a {type(key).__name__} as a key")
        target[key] = value


def _convert(content: Any, size: int) -> dict[str, NDArray[Any]]:
    if type(content) is not dict:
        raise ValueError(f"holds a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, _Array):
            raise ValueError(f"holds a {type(value).__name__} under {key!r}")
    if sum(array.check() for array in content.values()) > size:
        raise ValueError("announces more values than the file has, by using some twice")
    return {key: array.numpy() for key, array in content.items()}
