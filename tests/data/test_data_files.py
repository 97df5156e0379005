"""Datasets of files that users bring, npz:PATH and folder:PATH, and those of other packages."""

import importlib.util
import io
import os
import re
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from bn_keras import data
from bn_keras.data import sklearn_sets
from bn_keras.data.reading import files, images
from bn_keras.data.splits import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 5, 4)).astype(np.uint8)
LABELS = np.arange(20) % 3
ROWS = RNG.normal(size=(20, 7))


def by_bytes(split):
    return sorted((x.tobytes(), int(y)) for x, y in zip(split.images, split.labels))


# --- npz:PATH -----------------------------------------------------------------------------------


def four(x=IMAGES, y=LABELS, **more):
    return {"x_train": x, "y_train": y, "x_test": x[:8], "y_test": y[:8], **more}


def write(path, arrays, save=np.savez):
    save(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_an_npz_file_are_pixels_with_a_channel(save, tmp_path):
    splits = data.load(write(tmp_path / "mnist.npz", four(), save), validation_size=5)
    assert splits.train.images.shape == (15, 5, 4, 1) and splits.scale == 1 / 255
    assert not splits.as_given and splits.classes == 3
    assert by_bytes(splits.test) == sorted(
        (x.tobytes(), y) for x, y in zip(IMAGES[:8], LABELS[:8]))
    assert splits.notes == (
        f"{tmp_path}/mnist.npz: inputs of bytes, taken as images and scaled as --pixels says",)


def test_an_npz_file_of_other_numbers_is_fed_as_it_is(tmp_path):
    splits = data.load(write(tmp_path / "a.npz", {"x": ROWS, "y": ROWS[:, 0]}))
    assert splits.as_given and splits.regression and splits.scale == 1
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (13, 3, 4)


def test_an_npz_file_may_have_a_validation_set_and_the_names_of_medmnist(tmp_path):
    keras = write(tmp_path / "a.npz", four(x_val=IMAGES[:6], y_val=LABELS[:6]))
    arrays = {}
    for which, stop in (("train", 20), ("val", 6), ("test", 8)):
        arrays[f"{which}_images"] = np.repeat(IMAGES[:stop, ..., None], 3, -1)
        arrays[f"{which}_labels"] = LABELS[:stop, None].astype(np.uint8)
    medmnist = write(tmp_path / "b.npz", arrays)
    for name, channels in ((keras, 1), (medmnist, 3)):
        splits = data.load(name)
        assert splits.train.images.shape == (20, 5, 4, channels)
        assert (len(splits.validation), len(splits.test)) == (6, 8)


def test_an_npz_file_in_fortran_s_order_or_of_texts_is_read(tmp_path):
    texts = np.array(["a", "bb", "ccc"])[LABELS]
    plain = data.load(write(tmp_path / "a.npz", four()))
    other = data.load(write(tmp_path / "b.npz", four(np.asfortranarray(IMAGES), texts)))
    assert other.digest() == plain.digest()


def member(shape="(20, 5, 4)", kind="'|u1'", order="False", content=IMAGES.tobytes(), version=1):
    """An array as NumPy's format has it, or nearly so."""
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def archive(x_train, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    arrays = four()
    with zipfile.ZipFile(stream, "w", method) as zipped:
        zipped.writestr("x_train.npy", x_train)
        for name in ("y_train", "x_test", "y_test"):
            saved = io.BytesIO()
            np.save(saved, arrays[name])
            zipped.writestr(f"{name}.npy", saved.getvalue())
    return stream.getvalue()


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1:]


GOOD = archive(member())
STORED = archive(member(), zipfile.ZIP_STORED)
BROKEN = {
    "empty": (b"", "0 bytes; expected 1 to"),
    "no archive": (b"PK\x03\x04 not really", "cannot be read (File is not a zip file)"),
    "a text": (b"x_train,y_train\n", "cannot be read (File is not a zip file)"),
    "one array": (saved(IMAGES), "holds one array alone; expected an .npz file with x_train"),
    "truncated": (GOOD[:-30], "cannot be read (File is not a zip file)"),
    "front cut off": (GOOD[100:], "cannot be read ("),
    "a flipped bit": (flipped(STORED, STORED.index(IMAGES.tobytes()) + 50), "Bad CRC-32 for file"),
    "claims more": (archive(member("(2000000000, 5, 4)")), "announces the shape (2000000000, "),
    "claims less": (archive(member("(19, 5, 4)")), "380 bytes, and has 400; the file is damaged"),
    "negative": (archive(member("(-20, -5, 4)")), "announces the shape (-20, -5, 4)"),
    "overflow": (archive(member(f"({2**62}, 8)", "'<f8'")), "announces the shape"),
    "ends early": (archive(member(content=b"")),
                   "announces the shape (20, 5, 4) of uint8, 400 bytes, and has 0"),
    "objects": (archive(member("(3,)", "'|O'")), "x_train.npy is of type object; expected"),
    "records": (archive(member("(20,)", "[('a', '<f4')]")), "expected numbers or texts"),
    "no header": (archive(b"\x93NUMPY\x01\x00"), "cannot be read (EOF"),
    "no array": (archive(b"hello"), "cannot be read ("),
    "code for a header": (archive(member("__import__('os').abort()")), "cannot be read ("),
    "a header that nests": (archive(member("(" * 300 + ")" * 300)), "cannot be read ("),
    "another version": (archive(member(version=3)), "is of version (3, 0); expected"),
    "an odd type": (archive(member(kind="'|X9'")), "cannot be read ("),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_or_hostile_npz_file_is_refused_by_name(case, tmp_path):
    content, message = BROKEN[case]
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        data.load(f"npz:{path}")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(refusal.value).startswith(str(path)) and len(str(refusal.value)) < 500
    assert most < 5e6, "it took what the file claims"


def test_an_npz_file_that_unpacks_beyond_the_bound_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    path.write_bytes(archive(member("(50000000,)", content=bytes(50_000_000))))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("bn_keras.data.reading.npz.MAX_BYTES", 10_000_000)
    tracemalloc.start()
    with pytest.raises(DataError, match="its arrays have 50,00.* bytes; expected at most 10,0"):
        data.load(f"npz:{path}")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("arrays, message", [
    ({"x_train": IMAGES, "x_test": IMAGES, "y_test": LABELS}, "and lacks y_train; expected an"),
    ({"x_test": IMAGES, "y_test": LABELS}, "holds x_test, y_test, and lacks x_train, y_train"),
    ({"x": IMAGES}, "holds x, and lacks y"), ({"a": IMAGES}, "holds a; expected an .npz file"),
    ({}, "holds no array; expected"), (four(y=LABELS[:9]), "train: 20 inputs and 9 labels"),
    (four(y=LABELS * 0), "every label is 0"), (four(ROWS * np.nan), "holds NaN or infinity"),
])
def test_an_npz_file_of_other_arrays_is_refused_with_their_names(arrays, message, tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}/a.npz: .*{message}"):
        data.load(write(tmp_path / "a.npz", arrays))


# --- folder:PATH --------------------------------------------------------------------------------


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_folder(root, names=("cat", "dog"), count=10, ending="png", arrays=IMAGES):
    """Images whose classes are known: the n-th is of class n modulo the number of names."""
    for n in range(count):
        save(arrays[n], root / names[n % len(names)] / f"{n:03}.{ending}")
    return f"folder:{root}"


def expected(count=10, classes=2, arrays=IMAGES):
    return sorted((arrays[n].tobytes(), n % classes) for n in range(count))


def test_the_images_of_a_folder_are_read_with_their_classes(tmp_path):
    splits = data.load(write_folder(tmp_path / "a"))
    both = [*by_bytes(splits.train), *by_bytes(splits.validation), *by_bytes(splits.test)]
    assert sorted(both) == expected() and len(splits.test) == 2
    assert splits.train.images.shape[1:] == (5, 4, 1) and splits.train.images.dtype == np.uint8
    assert splits.scale == 1 / 255 and splits.classes == 2 and not splits.as_given
    assert splits.notes == (
        f"{tmp_path}/a: the folders cat, dog are the classes 0 to 1",
        f"{tmp_path}/a: no test set given; 2 images are drawn for it",
    )
    assert data.absolute(f"folder:{tmp_path}/../{tmp_path.name}/a")[0] == f"folder:{tmp_path}/a"


@pytest.mark.parametrize("validation", [None, "validation", "val"])
def test_a_folder_may_hold_sets(validation, tmp_path):
    for name, count in (("train", 10), ("test", 8), (validation, 6)):
        if name:
            write_folder(tmp_path / name, count=count)
    splits = data.load(f"folder:{tmp_path}")
    assert by_bytes(splits.test) == expected(8)
    if validation:
        assert by_bytes(splits.validation) == expected(6)
        assert by_bytes(splits.train) == expected(10)
    assert splits.notes == (f"{tmp_path}: the folders cat, dog are the classes 0 to 1",)


def test_images_are_grey_only_if_all_of_them_are(tmp_path):
    write_folder(tmp_path)
    colour = RNG.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    save(colour, tmp_path / "dog/c.bmp")
    splits = data.load(f"folder:{tmp_path}")
    assert splits.train.images.shape[1:] == (5, 4, 3)
    parts = (splits.train, splits.validation, splits.test)
    found = {image.tobytes() for part in parts for image in part.images}
    assert found == {colour.tobytes(), *(np.stack([one] * 3, -1).tobytes() for one in IMAGES[:10])}


@pytest.mark.parametrize("mode, channels", [
    ("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3),
])
def test_every_mode_of_8_bits_is_read(mode, channels, tmp_path):
    white = Image.fromarray(np.full((5, 4, 3), 255, np.uint8)).convert(mode)
    for name in ("a/0.PNG", "b/1.png"):
        (tmp_path / name[0]).mkdir(exist_ok=True)
        white.save(tmp_path / name)
    save(np.full((5, 4), 255, np.uint8), tmp_path / "a/2.png")
    splits = data.load(f"folder:{tmp_path}")
    assert splits.train.images.shape[1:] == (5, 4, channels)
    assert splits.train.images.min() == 255


def test_images_are_resized_where_a_size_is_asked_for(tmp_path):
    grey = np.repeat([40, 200], 10).astype(np.uint8)
    for n in range(10):  # of different sizes: each has one brightness, which tells its class
        image = np.full((3 + n, 9 - n // 2), grey[n * 2], np.uint8)
        save(image, tmp_path / "ab"[n // 5] / f"{n}.png")
    with pytest.raises(DataError, match=r"a/1.png: 9 x 4 pixels, but .*a/0.png 9 x 3; expected one "
                                        "size. --image_size=3 resizes all of them"):
        data.load(f"folder:{tmp_path}")
    splits = data.load(f"folder:{tmp_path}", image_size=6)
    assert splits.train.images.shape[1:] == (6, 6, 1)
    brightness = np.array([40, 200])[splits.train.labels]
    assert (splits.train.images == brightness[:, None, None, None]).all()


def test_a_size_is_refused_where_nothing_can_be_resized():
    with pytest.raises(DataError, match="image_size=8: dataset 'mnist' comes as it is; leave"):
        data.load("mnist", image_size=8)


def sixteen(path):
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(path)


FOLDERS = {
    "no such folder": (lambda root: os.rename(root / "cat", root.parent / "cat"), "holds 1 fol"),
    "a folder less": (lambda root: os.rename(root, f"{root}2"), "no such folder; expected"),
    "a class of test alone": (lambda root: [
        write_folder(root / which, names) for which, names in (("train", "ab"), ("test", "bc"))
    ], "test/c: no class of {root}/train, which has a, b; expected the same names"),
    "no image": (lambda root: [path.rename(path.with_suffix(".tif")) for path in root.glob("*/*")],
                 "holds no image in the folders of classes"),
    "a text": (lambda root: (root / "dog/x.png").write_text("hello"), "dog/x.png: cannot be read"),
    "empty": (lambda root: (root / "dog/x.jpg").write_bytes(b""), "dog/x.jpg: cannot be read ("),
    "truncated": (lambda root: (root / "dog/001.png").write_bytes(
        (root / "dog/001.png").read_bytes()[:60]), "dog/001.png: cannot be read ("),
    "16 bits": (lambda root: sixteen(root / "dog/x.png"), "dog/x.png: has 16 or 32 bits a pixel"),
    "PostScript": (lambda root: (root / "dog/x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n%%EndComments\n(hello) print\n"),
        "dog/x.png: cannot be read (cannot identify image file"),
    "a huge header": (lambda root: (root / "dog/x.pgm").write_bytes(b"P5 100000 100000 255\n"),
                      "dog/x.pgm: "),
    "many pixels": (lambda root: (root / "dog/x.pgm").write_bytes(b"P5 9000 9000 255\n"),
                    "dog/x.pgm: 9000 x 9000 pixels; expected at most 67,108,864"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_read_is_refused_by_name(case, tmp_path):
    damage, message = FOLDERS[case]
    root = tmp_path / "a"
    write_folder(root)
    damage(root)
    with pytest.raises(DataError, match=re.escape(message.format(root=root))) as refusal:
        data.load(f"folder:{root}")
    assert str(refusal.value).startswith(str(root)) and len(str(refusal.value)) < 500


def test_images_beyond_the_bound_are_refused_before_they_are_read(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setattr(images, "MAX_BYTES", 10 * 5 * 4 - 1)
    with pytest.raises(DataError, match="10 images of 4 x 5 x 1 have 200 bytes; expected at most"):
        data.load(f"folder:{tmp_path}")
    assert images.MAX_BYTES < files.MAX_BYTES
    assert len(data.load(f"folder:{tmp_path}", image_size=3).test) == 2


def test_files_that_are_no_images_are_left_out_and_counted(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "dog/Thumbs.db").write_text("")
    (tmp_path / "dog/more.png").mkdir()
    (tmp_path / "dog/.hidden.png").write_text("")
    os.mkfifo(tmp_path / "dog/pipe.png")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.txt").write_text("")
    splits = data.load(f"folder:{tmp_path}")
    assert splits.classes == 2 and ": 4 files without .png, .jpg, " in splits.notes[1]


def test_folder_needs_a_path():
    with pytest.raises(DataError, match="dataset 'folder': no folder named; expected a folder"):
        data.load("folder:")


# --- datasets of other packages -----------------------------------------------------------------


@pytest.mark.parametrize("name, shape, classes, count", [
    ("digits", (8, 8, 1), 10, 1797), ("iris", (4,), 3, 150), ("wine", (13,), 3, 178),
    ("breast_cancer", (30,), 2, 569), ("diabetes", (10,), 1, 442),
])
def test_the_sets_of_scikit_learn_are_read(name, shape, classes, count):
    pytest.importorskip("sklearn")
    splits = data.load(f"sklearn:{name}")
    assert splits.train.images.shape[1:] == shape and splits.classes == classes
    assert len(splits.train) + len(splits.validation) + len(splits.test) == count
    assert splits.as_given == (name != "digits") and splits.regression == (name == "diabetes")
    if name == "digits":
        assert (splits.train.images.min(), splits.train.images.max(), splits.scale) == (0, 1, 1)
    assert data.load(f"sklearn:{name}").digest() == splits.digest()


def test_other_names_and_a_missing_package_get_a_message(monkeypatch):
    with pytest.raises(DataError, match="'sklearn:digit': expected .* .did you mean 'digits'"):
        data.load("sklearn:digit")
    assert sklearn_sets.NAMES
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match="install it: pip install 'bn_keras.sklearn.'"):
        data.load("sklearn:digits")
    with pytest.raises(DataError, match="'patches:blur': expected patches:denoise"):
        data.load("patches:blur")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="install it: pip install 'bn_keras.patches.'"):
        data.load("patches:denoise")


def test_the_noise_of_the_patches_is_normal_and_always_the_same():
    pytest.importorskip("skimage")
    splits = data.load("patches:denoise")
    assert splits.regression and splits.classes == 1 and splits.as_given
    for split in (splits.train, splits.validation, splits.test):
        assert split.images.shape == split.labels.shape == (len(split), 32, 32, 1)
        assert 0 <= split.labels.min() < 0.1 and 0.9 < split.labels.max() <= 1
        noise = split.images.astype(np.float64) - split.labels
        assert abs(noise.mean()) < 1e-3 and noise.std() == pytest.approx(25 / 255, rel=0.01)
        assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 1e-4, "neighbours share their noise"
    train = {patch.tobytes() for patch in splits.train.labels}
    assert len(splits.train) > 1000 and len(splits.test) > 500
    assert not train & {patch.tobytes() for patch in splits.test.labels if patch.std() > 0.01}
    assert data.load("patches:denoise").digest() == splits.digest()


def test_patches_are_pieces_of_the_photograph(tmp_path, monkeypatch):
    package = tmp_path / "skimage"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    from bn_keras.data import patches

    photo = RNG.integers(0, 256, (70, 100)).astype(np.uint8)
    for name in patches.TRAIN + patches.TEST:
        Image.fromarray(photo).save(package / "data" / name.replace("jpg", "png"))
    with pytest.raises(DataError, match="data/rocket.jpg: missing; expected scikit-image 0.26"):
        patches.patches("denoise", None)
    os.rename(package / "data/rocket.png", package / "data/rocket.jpg")
    source = patches.patches("denoise", None)
    assert len(source.test) == 3 * 2 * 3
    np.testing.assert_allclose(source.test.labels[1, ..., 0] * 255, photo[:32, 32:64], rtol=1e-6)
    np.testing.assert_allclose(source.test.labels[5, ..., 0] * 255, photo[32:64, 64:96], rtol=1e-6)
