"""The cases that the fast run takes of a product."""

import itertools

import pytest
from make import covering, product_of

FACTORS = {"one": ["a", "b", "c"], "two": [True, False], "three": [0, 1, 2, 3]}


@pytest.mark.parametrize("strength, count", [(1, 4), (2, 12)])
def test_every_value_or_every_pair_of_values_occurs_in_few_cases(strength, count):
    cases = covering(FACTORS, strength=strength)
    assert len(cases) == count and all(case.keys() == FACTORS.keys() for case in cases)
    for names in itertools.combinations(FACTORS, strength):
        for values in itertools.product(*(FACTORS[name] for name in names)):
            assert any([case[name] for name in names] == [*values] for case in cases)


def test_what_is_not_allowed_occurs_in_no_case():
    cases = covering(FACTORS, lambda case: (case.get("one"), case.get("three")) != ("a", 0))
    assert ("a", 0) not in {(case["one"], case["three"]) for case in cases} and len(cases) >= 11


def test_the_cases_that_the_fast_run_leaves_out_are_slow():
    mark = product_of(one={"x": 1, "y": 2}, two=[3, 4], three=[5, 6]).mark
    names, cases = mark.args
    assert names == ["one", "two", "three"]
    assert {case.values for case in cases} == {*itertools.product((1, 2), (3, 4), (5, 6))}
    fast = [case for case in cases if not case.marks]
    assert len(cases) == 8 and len(fast) == 4 and fast[0].id == "x-3-5"


def test_a_product_of_nothing_is_refused():
    with pytest.raises(AssertionError, match="without values"):
        product_of(one=["a"], two=[])
