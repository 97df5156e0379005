"""The table of findings: each finds its planted fault, and all are silent on healthy nets."""

import ast
import functools
import re

import keras
import pytest
from faults import FAULTS
from healthy import APPLICATIONS, NOTES, REGISTERED, SMALL
from make import ROOT

import bn_keras
from bn_keras.diagnosis import doctor
from bn_keras.registry import FINDINGS

PAGES = ROOT / "docs" / "findings"
# A remedy that builds a layer to be put into the model's code mends nothing by itself.
IN_PLACE = "in place of"
# These are mended in the model's code, by training on, by a choice of the user's, or for as long as
# nobody trains on.
LATER = {"gamma_decayed", "foreign_epsilon", "dropout_in_front", "training_not_handed_on"}


def examined(make, **options):
    """A model, its data and the doctor's answer; a finding must not have failed."""
    model, data = make()
    found = doctor(model, data, **options)
    failed = [one for one in found.not_looked if "failed" in one.reason]
    assert not failed
    return model, data, found


# The first fault of each finding, and further ones on other kinds of models.
FIRST = {fault.finding: fault for fault in reversed(FAULTS)}
CASES = [pytest.param(fault, id=fault.make.__name__) for fault in FAULTS]


def without_numbers(text):
    """A text without numbers, and without those in automatic names of layers."""
    return re.sub(r"[-+\d.,e%]+", "#", re.sub(r"^\d+\.|_\d+", "", text, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("fault", CASES)
def test_a_planted_fault_is_found_and_nothing_else_and_its_remedy_runs(fault):
    model, data, found = examined(fault.make, **fault.options)
    names = {one.name for one in found.findings}
    assert fault.finding in names
    assert names <= {fault.finding} | fault.consequences
    finding = found.named(fault.finding)[0]
    assert finding.cost or finding.cost_note
    assert str(found) and found.to_json()
    if fault is FIRST[fault.finding]:
        page = (PAGES / f"{fault.finding}.md").read_text(encoding="utf-8")
        printed = next(line for line in found.words() if f"({fault.finding})" in line)
        assert without_numbers(printed) in without_numbers(page)
    scope = {"model": model, "data": data, "keras": keras, "bn_keras": bn_keras}
    exec(finding.remedy, scope)
    if IN_PLACE not in finding.remedy and not LATER & {fault.finding, fault.make.__name__}:
        again = doctor(
            scope["model"], scope["data"], only=fault.finding, loss=model.loss, **fault.options
        )
        assert fault.finding in again.looked and not again.findings


def test_every_finding_has_a_planted_fault():
    assert {fault.finding for fault in FAULTS} == set(FINDINGS.names())


@pytest.mark.slow
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_no_finding_in_a_small_healthy_net(make):
    assert not examined(make)[2].findings


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REGISTERED, *APPLICATIONS])
def test_no_finding_in_a_healthy_net(name):
    found = examined({**REGISTERED, **APPLICATIONS}[name])[2]
    assert {one.name for one in found.findings} == NOTES.get(name, set())


@pytest.mark.slow
def test_every_finding_looks_at_a_healthy_net():
    found = examined(functools.partial(SMALL["functional-keras"]))[2]
    assert set(found.looked) == set(FINDINGS.names())


@pytest.mark.parametrize("name", FINDINGS.names())
def test_every_finding_has_a_page(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert titles == ["Symptom", "Cause", "Evidence", "Remedy", "Source"]
    assert page.startswith(f"# {name}: {FINDINGS.properties(name)['title']}\n")
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert code
    for block in code:
        ast.parse(block)
