"""`idx:FOLDER`: the four IDX files of MNIST and its relatives, gzipped or not.

They are known by their names: `train-images-idx3-ubyte`, with a dot as in `train-images.idx3-ubyte`
where a tool has unpacked them, or behind the name of a set as in EMNIST's
`emnist-letters-train-images-idx3-ubyte`. Of a folder that holds several sets, one is named as
`idx:FOLDER/emnist-letters`. (EMNIST stores its images transposed; they are taken as they are.)
"""

import os
import pathlib
import re
from typing import Optional

from bn_keras.data.reading.files import resolve
from bn_keras.data.reading.idx import read_set
from bn_keras.data.splits import DataError, Source
from bn_keras.registry import DATASETS

FILES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
NAME = re.compile(
    r"(?:(.+)[-_.])?(train|t10k|test)[-_.](?:images[-_.]idx3|labels[-_.]idx1)[-_.]ubyte(\.gz)?"
)
REMEDY = "name a folder that holds the four IDX files of one set"
SHOWN = 8  # names of other files in a message


@DATASETS.register("idx", takes_path=True)
def idx(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the folder named behind the colon."""
    if not argument:
        raise DataError("dataset 'idx': no folder named; expected idx:FOLDER.")
    path = resolve(argument, data_dir)
    folder, wanted = (path, "") if os.path.isdir(path) else (path.parent, path.name)
    if not os.path.isdir(folder):
        raise DataError(f"{path}: no such folder; {REMEDY}.")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error}); {REMEDY}.") from error
    sets = _sets(folder, names)
    if wanted and wanted not in sets:
        kind = "not a folder" if os.path.exists(path) else "no such folder"
        raise DataError(f"{path}: {kind}; {REMEDY}.")
    if not wanted and len(sets.get("", {})) < len(FILES):
        complete = [name for name, parts in sets.items() if len(parts) == len(FILES)]
        if len(complete) > 1:
            raise DataError(
                f"{folder}: holds the sets {', '.join(complete)}; name one of them, as "
                f"idx:{path / complete[0]}."
            )
        wanted = "".join(complete)
    parts = sets.get(wanted, {})
    for part, name in FILES.items():
        if part not in parts:
            others = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
            raise DataError(
                f"{folder / '-'.join(filter(None, [wanted, name]))}[.gz]: missing ({part}); the "
                f"folder holds {others or 'nothing'}; {REMEDY}."
            )
    return read_set({part: parts[part] for part in FILES}, REMEDY)


def _sets(folder: pathlib.Path, names: list[str]) -> dict[str, dict[str, pathlib.Path]]:
    """Path by part by name of the set; that name is empty for MNIST's own names."""
    sets: dict[str, dict[str, pathlib.Path]] = {}
    for name in sorted(names, key=lambda name: name.endswith(".gz")):  # unpacked ones first
        match = NAME.fullmatch(name)
        if match and os.path.isfile(folder / name):
            which = "train" if match[2] == "train" else "test"
            part = f"{which} {'images' if 'images' in name[match.start(2):] else 'labels'}"
            sets.setdefault(match[1] or "", {}).setdefault(part, folder / name)
    return sets
