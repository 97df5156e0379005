"""Hostile and unfit pickles, each with the words by which it must be refused.

`ATTACKS` maps a name to (content, refused): the content of a file, in which `PATH` stands for one
that the attack would write to, and what the refusal must say. Those in `ARMED` really write
there under `pickle.load`, which a test shows first: an attack that is dead on arrival proves
nothing.
"""

import pickle
import struct

import numpy as np

PATH = b"M" * 120  # as long as the path that takes its place: some lengths are written in the file
TOUCH = b"echo > " + PATH
WRITE = b"open('" + PATH + b"', 'w').close()"


def text(value):
    """A text, pushed by BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value


def name(path):
    """`module.attribute` by GLOBAL; the attribute is what follows the last dot."""
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module, attribute):
    """The same by STACK_GLOBAL, where the attribute may hold dots."""
    return b"\x80\x04" + text(module) + text(attribute) + b"\x93"


def call(path, *arguments):
    """The name called by REDUCE with arguments that are given as instructions."""
    return name(path) + b"(" + b"".join(arguments) + b"tR."


def number(value):
    """A whole number of up to 4 bytes."""
    return b"J" + struct.pack("<i", value)


def dtype(code, state=None):
    """np.dtype(code), and a BUILD with the state where one is given."""
    made = name("numpy.dtype") + b"(" + text(code) + number(0) + number(1) + b"tR"
    return made if state is None else made + state + b"b"


def array(shape, data, made=dtype(b"u1")):
    """A NumPy array by _reconstruct and BUILD."""
    return (
        name("numpy.core.multiarray._reconstruct") + b"(" + name("numpy.ndarray") + b"("
        + number(0) + b"t" + text(b"b") + b"tR" + b"(" + number(1) + b"("
        + b"".join(number(n) for n in shape) + b"t" + made + b"\x89" + data + b"tb"
    )


def entry(value, key=text(b"a")):
    """A dict with one entry."""
    return b"}" + key + value + b"s."


STATE = b"(" + number(3) + text(b">") + b"NNN" + number(-1) + number(-1) + number(0) + b"t"
FIELDS = (
    b"(" + number(3) + text(b"|") + b"N(" + text(b"f") + b"t}" + text(b"f") + b"(" + dtype(b"f4")
    + number(0) + b"ts" + number(4) + number(1) + number(16) + b"t"
)
SYSTEM = b"(" + text(TOUCH) + b"tR."
INNER = name("os.system") + SYSTEM


def _object(protocol, value):
    return pickle.dumps({"a": value}, protocol=protocol)


ARMED = {
    "os.system": (call("os.system", text(TOUCH)), "names 'os.system'"),
    "posix.system": (call("posix.system", text(TOUCH)), "names 'posix.system'"),
    "eval": (call("builtins.eval", text(WRITE)), "names 'builtins.eval'"),
    "exec": (call("builtins.exec", text(WRITE)), "names 'builtins.exec'"),
    "Python 2's eval": (call("__builtin__.eval", text(WRITE)), "names '__builtin__.eval'"),
    "open": (call("builtins.open", text(PATH), text(b"w")), "names 'builtins.open'"),
    "io.open": (call("io.open", text(PATH), text(b"w")), "names 'io.open'"),
    "subprocess.getoutput": (
        call("subprocess.getoutput", text(TOUCH)), "names 'subprocess.getoutput'"),
    "subprocess.run": (
        call("subprocess.check_call", b"(" + text(b"touch") + text(PATH) + b"t"),
        "names 'subprocess.check_call'"),
    "os.mkdir": (call("os.mkdir", text(PATH)), "names 'os.mkdir'"),
    "numpy.memmap": (
        call("numpy.memmap", text(PATH), text(b"u1"), text(b"w+"), number(0), number(9)),
        "names 'numpy.memmap'"),
    "NumPy's runstring": (
        call("numpy.testing._private.utils.runstring", text(WRITE), b"}"),
        "names 'numpy.testing._private.utils.runstring'"),
    "timeit": (call("timeit.timeit", text(WRITE), text(b""), name("time.time"), number(1)),
               "names 'timeit.timeit'"),
    "a pickle in a pickle": (
        call("pickle.loads", b"B" + struct.pack("<I", len(INNER)) + INNER),
        "names 'pickle.loads'"),
    "by STACK_GLOBAL": (stack_name(b"os", b"system") + SYSTEM, "names 'os.system'"),
    "by a dotted STACK_GLOBAL": (
        stack_name(b"pathlib", b"os.system") + SYSTEM, "names 'pathlib.os.system'"),
    "by INST": (b"(" + text(TOUCH) + b"ios\nsystem\n.", "INST of 'os system'"),
    "by OBJ": (b"(" + name("os.system") + text(TOUCH) + b"o.", "names 'os.system'"),
    "by a key of the dict": (b"}" + call("os.system", text(TOUCH))[:-1] + b"Ns.", "names 'os.sys"),
    "behind a good array": (
        b"}" + text(b"a") + array((1,), b"C\x01x") + b"s0" + call("os.system", text(TOUCH)),
        "uses the instruction POP"),
    "as the state of an array": (
        entry(array((1,), call("os.system", text(TOUCH))[:-1])), "names 'os.system'"),
}
ATTACKS = {
    **ARMED,
    "nt.system": (call("nt.system", text(TOUCH)), "names 'nt.system'"),
    "Python 2's commands": (
        call("commands.getoutput", text(TOUCH)), "names 'commands.getoutput'"),
    "__import__": (call("builtins.__import__", text(b"this")), "names 'builtins.__import__'"),
    "importlib": (
        call("importlib.import_module", text(b"this")), "names 'importlib.import_module'"),
    "getattr": (
        call("builtins.getattr", name("numpy.dtype"), text(b"__class__")),
        "names 'builtins.getattr'"),
    "setattr": (
        call("builtins.setattr", name("numpy.ndarray"), text(b"x"), number(1)),
        "names 'builtins.setattr'"),
    "compile": (
        call("builtins.compile", text(WRITE), text(b"x"), text(b"exec")),
        "names 'builtins.compile'"),
    "globals": (call("builtins.globals"), "names 'builtins.globals'"),
    "a code object": (name("types.CodeType") + b".", "names 'types.CodeType'"),
    "a function": (name("types.FunctionType") + b".", "names 'types.FunctionType'"),
    "partial": (
        call("functools.partial", name("os.system"), text(TOUCH)), "names 'functools.partial'"),
    "attrgetter": (call("operator.attrgetter", text(b"x")), "names 'operator.attrgetter'"),
    "methodcaller": (call("operator.methodcaller", text(b"x")), "names 'operator.methodcaller'"),
    "copyreg": (
        call("copyreg._reconstructor", name("builtins.object"), name("builtins.object"), b"N"),
        "names 'copyreg._reconstructor'"),
    "copyreg's registry": (
        call("copyreg.add_extension", text(b"os"), text(b"system"), number(1)),
        "names 'copyreg.add_extension'"),
    "ctypes": (call("ctypes.CDLL", text(b"x.so")), "names 'ctypes.CDLL'"),
    "a network": (
        call("socket.create_connection", text(b"x")), "names 'socket.create_connection'"),
    "sys.exit": (call("sys.exit"), "names 'sys.exit'"),
    "shutil.rmtree": (call("shutil.rmtree", text(PATH)), "names 'shutil.rmtree'"),
    "numpy.load": (call("numpy.load", text(PATH)), "names 'numpy.load'"),
    "numpy.fromfile": (call("numpy.fromfile", text(PATH)), "names 'numpy.fromfile'"),
    "numpy.frompyfunc": (call("numpy.frompyfunc", name("os.system")), "names 'numpy.frompyfunc'"),
    "a NumPy scalar": (
        call("numpy.core.multiarray.scalar", dtype(b"O8"), b"N"),
        "names 'numpy.core.multiarray.scalar'"),
    "NumPy's own C module": (
        name("numpy.core._multiarray_umath._reconstruct") + b".",
        "names 'numpy.core._multiarray_umath._reconstruct'"),
    "our own modules": (name("bn_keras.data.load") + b".", "names 'bn_keras.data.load'"),
    "_codecs.decode": (
        call("_codecs.decode", text(b"x"), text(b"rot13")), "names '_codecs.decode'"),
    "codecs.encode": (call("codecs.encode", text(b"x"), text(b"latin1")), "names 'codecs.encode'"),
    "_codecs.register": (call("_codecs.register", name("os.system")), "names '_codecs.register'"),
    "dotted GLOBAL": (
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        "names 'numpy.core.multiarray._reconstruct.__globals__'"),
    "dotted STACK_GLOBAL": (
        stack_name(b"numpy.core.multiarray", b"_reconstruct.__globals__") + b".",
        "names 'numpy.core.multiarray._reconstruct.__globals__'"),
    "a module as a name": (b"cnumpy\ncore.multiarray\n.", "names 'numpy.core.multiarray'"),
    "a name of other than text": (b"\x80\x04NN\x93.", "something by other values than two"),
    "a name of a name": (
        b"\x80\x04" + name("numpy.dtype") + text(b"x") + b"\x93.", "by other values than two"),

    "rot13": (call("_codecs.encode", text(b"x"), text(b"rot13")), "calls ENCODE in another way"),
    "zlib": (call("_codecs.encode", text(b"x"), text(b"zlib")), "calls ENCODE in another way"),
    "idna": (call("_codecs.encode", text(b"x" * 999), text(b"idna")), "calls ENCODE in another"),
    "utf-8": (call("_codecs.encode", text(b"x"), text(b"utf-8")), "calls ENCODE in another way"),
    "an encoding left to chance": (call("_codecs.encode", text(b"x")), "calls ENCODE in another"),
    "an error handler": (
        call("_codecs.encode", text(b"x"), text(b"latin1"), text(b"ignore")), "calls ENCODE in"),
    "a gigabyte of bytes": (
        call("__builtin__.bytes", number(2**30)), "calls BYTES in another way than arrays do"),
    "a call of ndarray": (
        call("numpy.ndarray", b"(" + number(1) + b"t" + text(b"O")), "calls NDARRAY in another"),
    "a large ndarray": (
        call("numpy.ndarray", b"(" + number(2**30) + b"t"), "calls NDARRAY in another way"),
    "_reconstruct of a dtype": (
        call("numpy.core.multiarray._reconstruct", name("numpy.dtype"), b"(" + number(0) + b"t",
             text(b"b")), "calls RECONSTRUCT in another way"),
    "_reconstruct of a shape": (
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"),
             b"(" + number(2**30) + b"t", text(b"b")), "calls RECONSTRUCT in another way"),
    "_reconstruct of objects": (
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"),
             b"(" + number(0) + b"t", text(b"O")), "calls RECONSTRUCT in another way"),
    "a call of a text": (text(b"x") + b")R.", "calls str in another way"),
    "a call without a tuple": (name("numpy.dtype") + text(b"f4") + b"R.", "calls DTYPE in another"),
    "an object dtype": (entry(array((1,), b"C\x08" + b"x" * 8, dtype(b"O8"))), "of type 'O8'"),
    "a list of objects": (_object(2, np.array([{}, None], object)), "of type 'O8'"),
    "a structured dtype": (entry(array((1,), b"C\x04abcd", dtype(b"f4,O"))), "of type 'f4,O'"),
    "a dtype of bytes": (_object(4, np.array([b"x"])), "of type 'S1'"),
    "a date": (_object(4, np.array(["2020"], "M8[s]")), "of type 'M8'"),
    "fields of a dtype": (
        entry(array((1,), b"C\x04abcd", dtype(b"f4", FIELDS))), "another state of a dtype"),
    "NEWOBJ of another class": (
        b"\x80\x02" + name("_io.FileIO") + text(PATH) + text(b"w") + b"\x86\x81.",
        "names '_io.FileIO'"),
    "NEWOBJ of ndarray": (
        b"\x80\x02" + name("numpy.ndarray") + b"(" + number(1) + b"t\x85\x81.",
        "uses the instruction NEWOBJ"),
    "NEWOBJ_EX": (
        b"\x80\x04" + name("numpy.ndarray") + b")}\x92.", "uses the instruction NEWOBJ_EX"),
    "OBJ of dtype": (b"(" + name("numpy.dtype") + text(b"f4") + b"o.", "uses the instruction OBJ"),
    "INST of dtype": (b"(" + text(b"f4") + b"inumpy\ndtype\n.", "INST of 'numpy dtype'"),
    "BUILD on ndarray": (
        name("numpy.ndarray") + b"}" + text(b"__reduce__") + b"Nsb.", "sets the state of a _Name"),
    "BUILD on _reconstruct": (
        name("numpy.core.multiarray._reconstruct") + b"N}" + text(b"__defaults__") + b"Ns\x86b.",
        "sets the state of a _Name"),
    "BUILD on a dict": (b"}}" + text(b"x") + b"Nsb.", "sets the state of a dict"),
    "BUILD on a dtype by a dict": (
        dtype(b"f4") + b"}" + text(b"x") + b"Nsb.", "another state of a dtype"),
    "BUILD on an array by a dict": (
        array((1,), b"C\x01x") + b"}" + text(b"x") + b"Nsb.", "another state of an array"),
    "a shared dtype turned round": (dtype(b"f8", STATE) + b".", "holds a _Dtype"),
    "EXT1": (b"\x80\x02\x82\x01.", "uses the instruction EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "uses the instruction EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "uses the instruction EXT4"),
    "PERSID": (b"Pos.system\n.", "uses the instruction PERSID of 'os.system'"),
    "BINPERSID": (text(b"x") + b"Q.", "uses the instruction BINPERSID"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "uses the instruction NEXT_BUFFER"),
    "READONLY_BUFFER": (b"\x80\x05N\x98.", "uses the instruction READONLY_BUFFER"),
    "a list": (_object(2, [1, 2]), "uses the instruction EMPTY_LIST"),
    "a set": (_object(4, {1}), "uses the instruction EMPTY_SET"),
    "a deep frozenset": (b"\x80\x04(N\x91(N\x91.", "uses the instruction FROZENSET"),
    "a float": (_object(2, 1.0), "uses the instruction BINFLOAT"),

    "DUP bomb": (b"}" + text(b"x" * 9999) + b"2" * 9999 + b".", "uses the instruction DUP"),
    "many instructions": (b"N" * 10_001 + b".", "takes more than 10000 instructions"),
    "a text encoded again and again": (
        text(b"x" * 50_000) + b"q\x00"
        + (name("_codecs.encode") + b"h\x00" + text(b"latin1") + b"\x86R") * 1500 + b".",
        "holds a str"),
    "an array used again and again": (
        b"}" + text(b"a") + array((200,), text(b"x" * 200)) + b"q\x00s"
        + b"".join(text(b"%d" % n) + b"h\x00s" for n in range(3000)) + b".",
        "more values than the file has"),
    "a doubled tuple": (b")q\x00" + b"h\x00h\x00\x86q\x00" * 300 + b".", "holds a tuple"),
    "a deep tuple as a key": (b"})" + b"\x85" * 9900 + b"Ns.", "uses a tuple as a key"),
    "a deep tuple as a shape": (
        entry(array((), b"C\x01x").replace(b"(tc", b"()" + b"\x85" * 9000 + b"tc")),
        "a dimension that is not"),
    "a number of many digits": (b"I" + b"9" * 50_000 + b"\n.", "Exceeds the limit"),
    "a text without an end": (b"V" + b"x" * 50_000, "no newline found"),
    "LONG4 of 2 GB": (b"\x8b\xff\xff\xff\x7f.", "not enough data"),
    "BINBYTES of 4 GB": (b"B\xff\xff\xff\xff.", "expected 4294967295 bytes"),
    "BINUNICODE of 4 GB": (b"X\xff\xff\xff\xff.", "expected 4294967295 bytes"),
    "BINBYTES8 of 8 EB": (b"\x8e" + b"\xff" * 7 + b"\x7f.", "expected 9223372036854775807 bytes"),
    "BINUNICODE8 of 1 TB": (
        b"\x8d" + struct.pack("<Q", 2**40) + b".", "expected 1099511627776 bytes"),
    "BYTEARRAY8 of 8 GB": (
        b"\x96" + struct.pack("<Q", 2**33) + b".", "expected 8589934592 bytes"),
    "BINUNICODE8 of more than there is": (b"\x8d" + b"\xff" * 8 + b".", "sys.maxsize"),
    "FRAME of 1 TB": (
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.", "announces 1099511627776 bytes and"),
    "a huge place in the memo": (b"Nr\xff\xff\xff\x7f.", "holds a NoneType"),
    "a place that is not kept": (b"j\xff\xff\xff\x7f.", "takes the value 2147483647 before"),
    "a huge shape": (
        entry(array((2**31 - 1,) * 2, b"C\x01x")), "bytes, but holds 1 bytes for it"),
    "a shape of many numbers": (
        entry(array((1,) * 33, b"C\x01x")), "announces 33 dimensions; at most 32"),
    "a shape of nothing times much": (
        entry(array((), b"C\x00").replace(b"(tc", b"(K\x00\x8a\x09" + b"\x7f" * 9 + b"tc")),
        "a dimension that is not"),
    "a large shape of nothing": (
        entry(array((0, *[2**31 - 1] * 9), b"C\x00")), "[Mm]aximum|too (big|large)"),
    "a negative shape": (entry(array((-1, -1), b"C\x01x")), "a dimension that is not"),
    "a shape of truth": (
        entry(array((), b"C\x01x").replace(b"(tc", b"(\x88tc")), "a dimension that is not"),
    "too few bytes": (entry(array((3,), b"C\x02xx")), "of shape \\(3,\\) and type u1, 3 bytes"),
    "too many bytes": (entry(array((1,), b"C\x02xx")), "1 bytes, but holds 2 bytes"),
    "no bytes": (entry(array((1,), b"N")), "another state of an array"),
    "a dict as bytes": (entry(array((1,), b"}" + text(b"x") + b"Ns")), "another state of an array"),
    "_frombuffer of a dict": (
        call("numpy.core.numeric._frombuffer", b"}" + text(b"x") + b"Ns", dtype(b"u1"),
             b"(" + number(1) + b"t", text(b"C")), "calls FROM_BUFFER in another way"),
    "_frombuffer of another dtype": (
        call("numpy.core.numeric._frombuffer", b"C\x01x", name("numpy.dtype"),
             b"(" + number(1) + b"t", text(b"C")), "calls FROM_BUFFER in another way"),
    "_frombuffer in another order": (
        call("numpy.core.numeric._frombuffer", b"C\x01x", dtype(b"u1"),
             b"(" + number(1) + b"t", text(b"K")), "calls FROM_BUFFER in another way"),
    "text that is no bytes": (
        entry(array((1,), text("\u20ac".encode()))), "'latin-1' codec can't encode"),
    "an array without its state": (
        entry(call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"),
                   b"(" + number(0) + b"t", text(b"b"))[:-1]), "without a shape and dtype"),

    "empty values": (b".", "takes a value that is not there"),
    "a call of nothing": (b"NR.", "takes a value that is not there"),
    "a tuple of nothing": (b"\x85.", "takes a value that is not there"),
    "no mark": (b"Nt.", "takes a mark that is not there"),
    "no value to keep": (b"q\x00.", "takes a value that is not there"),
    "no dict": (b"N.", "holds a NoneType;|holds a NoneType "),
    "something else in the dict": (entry(b"N"), "holds a NoneType under 'a'"),
    "entries of a text": (text(b"x") + text(b"y") + b"Ns.", "puts 2 values into a str"),
    "a key without a value": (b"}(" + text(b"x") + b"u.", "puts 1 values into a dict"),
    "a number as a key": (b"}NNs.", "uses a NoneType as a key"),
    "a later protocol": (b"\x80\x06N.", "is of protocol 6; known are 0 to 5"),
    "a byte that is no instruction": (b"\xff", "holds the byte b'\\\\xff'"),
    "a text file": (b"hello", "holds the byte b'h'|uses the instruction|before it is kept|invalid"),
    "gzip": (b"\x1f\x8b\x08\x00", "holds the byte b'\\\\x1f'"),
    "HTML": (b"<html>", "holds the byte b'<'"),
    "no STOP": (b"}", "ends before its STOP"),
    "a text without quotes": (b"Sabc\n.", "holds a text without its quotes"),
    "two kinds of quotes": (b"S'abc\"\n.", "holds a text without its quotes"),
    "two letters as quotes": (b"Sabca\n.", "holds a text without its quotes"),
    "a long number that is none": (b"F" + b"x" * 5000 + b"\n.", "could not convert string"),
    "one quote": (b"S'\n.", "holds a text without its quotes"),
    "a broken escape": (b"S'\\d'\n.", "invalid escape sequence"),
    "a cut escape": (b"S'\\x0'\n.", "invalid .x escape"),
    "a module that is no ASCII": (b"c\xff\nx\n.", "codec can't decode"),
}
