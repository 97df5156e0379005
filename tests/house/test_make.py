"""The cases that the tests take of a product."""

import itertools

import pytest
from make import covering, models_with_normalizers, product_of

from bn_keras.registry import MODELS, NORMALIZERS

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


def test_given_cases_come_first_and_only_what_is_missing_behind_them():
    given = covering(FACTORS, strength=1)
    cases = covering(FACTORS, given=given)
    assert cases[:4] == given and len(cases) == len({tuple(case.values()) for case in cases})
    assert covering(FACTORS, given=cases) == cases
    for one, other in itertools.product(FACTORS["one"], FACTORS["three"]):
        assert any((case["one"], case["three"]) == (one, other) for case in cases)


def test_a_product_takes_few_cases_and_those_beyond_the_fast_runs_are_slow():
    factors = {"one": {"x": 1, "y": 2}, "two": [3, 4], "three": [5, 6]}
    names, cases = product_of(**factors).mark.args
    assert names == [*factors] and len(cases) == 4 and cases[0].id == "x-3-5"
    assert {case.values[:2] for case in cases} == {*itertools.product((1, 2), (3, 4))}
    assert not any(case.marks for case in cases)
    _, more = product_of(fast=1, **factors).mark.args
    fast = [case.values for case in more if not case.marks]
    assert fast == [(1, 3, 5), (2, 4, 6)] and len(more) > len(fast)


def test_every_normalizer_is_tried_in_a_convolutional_and_in_a_dense_net():
    models, found = MODELS.names(), models_with_normalizers(MODELS.names())
    assert {model for model, _ in found} == {*models}
    for name in NORMALIZERS.names():
        dense = [bool(MODELS.properties(model).get("stacks"))
                 for model, normalizer in found if normalizer == name]
        scales = NORMALIZERS.properties(name).get("scales_branches")
        assert dense == ([False] if scales else [False, True]), name


def test_a_product_of_nothing_is_refused():
    with pytest.raises(AssertionError, match="without values"):
        product_of(one=["a"], two=[])
