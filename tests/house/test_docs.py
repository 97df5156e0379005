"""The pages that are written by a command say what the kept runs say."""

import importlib.util

import pytest
from make import ROOT

from bn_keras.registry import STUDIES

SPEC = importlib.util.spec_from_file_location("write_studies", ROOT / "docs" / "write_studies.py")
write_studies = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_studies)
KEPT = write_studies.kept()


def test_the_page_of_studies_is_what_the_command_writes():
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert page == write_studies.page(KEPT)


def test_the_table_of_studies_is_what_the_command_writes():
    around = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
    begin, end = write_studies.BEGIN, write_studies.END
    assert around.split(begin)[1].split(end)[0].strip() == write_studies.table()


@pytest.mark.parametrize("name", STUDIES.names())
def test_studies_expect_the_verdicts_that_their_kept_runs_gave(name):
    claims = STUDIES.get(name)().claims
    found = {claim["claim"]: claim["verdict"] for claim in KEPT.get(name, {"claims": ()})["claims"]}
    assert {claim.text: claim.expected for claim in claims} == {
        claim.text: found.get(claim.text) for claim in claims
    }


def test_kept_runs_have_ten_seeds_or_five_of_a_long_study():
    assert KEPT
    for name, kept in KEPT.items():
        assert kept["seeds"] >= 5 and (kept["claims"] or kept["comparisons"]), name
