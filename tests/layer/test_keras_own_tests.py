"""The tests that Keras ships for its own layer, run on ours."""

import re
from pathlib import Path
from xml.etree import ElementTree

import keras
import pytest
from processes import run

THEIRS = Path("src/layers/normalization/batch_normalization_test.py")
IN_THE_WHEEL = 33  # of Keras 3.15; a later one may have more


@pytest.mark.slow
def test_our_layer_passes_every_test_that_keras_has_for_its_own(tmp_path):
    source = Path(keras.__file__).parent / THEIRS
    assert source.exists(), f"this Keras ships no {THEIRS.name}: nothing was tested"
    text, uses = re.subn(r"\blayers\.BatchNormalization\b", "BatchNorm", source.read_text())
    assert uses >= 15, f"only {uses} mentions of the layer: the file is written otherwise now"
    # Fails if a mention of another form is left, such as an import of the class itself.
    assert not re.search(r"import .*BatchNormalization", text)
    (tmp_path / "test_copy.py").write_text(f"from bn_keras import BatchNorm\n\n{text}")
    status, output, errors = run(
        Path(pytest.__file__).with_name("__main__.py"), "-q", "--junitxml=found.xml", "-p",
        "no:cacheprovider", "test_copy.py", cwd=tmp_path,
    )
    assert (tmp_path / "found.xml").exists(), output[-2000:] + errors[-2000:]
    cases = list(ElementTree.parse(tmp_path / "found.xml").iter("testcase"))
    ran = [case for case in cases if case.find("skipped") is None]
    failed = [case.get("name") for case in cases
              if case.find("failure") is not None or case.find("error") is not None]
    assert not failed and status == 0, f"{failed}\n{output[-4000:]}"
    assert len(ran) >= IN_THE_WHEEL, f"only {len(ran)} tests ran"
