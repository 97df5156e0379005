"""Reports for the tests of the HTML page, and its parts as a browser's parser sees them."""

import dataclasses
import html.parser
import json
import math
import random

from reports import compared, result

from bn_keras.plan import Plan, make_plan
from bn_keras.registry import STUDIES
from bn_keras.report.page import page
from bn_keras.report.report import make_report
from bn_keras.results import DIVERGED, OK
from bn_keras.study import Claim, Comparison

ATTACKS = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>',
           "</script><script>alert(3)</script>", "<!--<script>", "{{ 7 * 7 }}", "'; alert(4); '",
           "a\u2028b\u202ec", "${alert(5)}", "</style><style>body{display:none}")
VOID = {"meta", "img", "input", "br", "line"}


class Parser(html.parser.HTMLParser):
    """Elements of a page, in order: tag, attributes, and the text in it."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "attributes": dict(attributes), "text": ""}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "attributes": dict(attributes), "text": ""})

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag):
        """The elements of that tag."""
        return [element for element in self.elements if element["tag"] == tag]

    def texts(self, tag):
        """Their texts."""
        return [element["text"].strip() for element in self.all(tag)]

    def data(self):
        """What the page's script draws; a number that JSON does not have is an error."""
        text, = (element["text"] for element in self.all("script")
                 if element["attributes"].get("id") == "data")
        return json.loads(text, parse_constant=lambda name: 1 / 0)


def parsed(report, picture=None):
    """The page of a report, parsed."""
    return Parser(page(report, picture))


def plain(accuracies, missing=None, **settings):
    """The report of the plain comparison; arguments as of `reports.compared`."""
    return make_report(*compared(accuracies, **settings), missing)


def curve(length, rate, seed, diverged=False):
    """Points of a falling loss; a diverged one ends with a value that is not finite."""
    rng = random.Random(seed)
    points = [[10 * step, math.exp(-rate * step) * (1 + 0.1 * rng.random())]
              for step in range(1, length + 1)]
    return points[:length // 2] + [[5 * length, None]] if diverged else points


def many(seeds, length):
    """The report of two arms of so many seeds, with three curves of that length; one diverged."""
    plan = make_plan("comparison", {}, seeds=seeds)
    results = []
    for run in plan.runs:
        rate = {"none": 0.01, "batch": 0.03}[run.normalizer]
        lost = run.normalizer == "none" and run.seed == 1
        points = curve(length, rate, run.seed, lost)
        results.append(result(
            run, None if lost else 0.9 + run.seed % 10 / 1000, DIVERGED if lost else OK,
            curves={name: points for name in ("loss/train", "loss/validation", "gradient/norm")},
        ))
    return make_report(plan, results)


def hostile(register):
    """A report in which everything that a user can write is an attack.

    Args:
        register: called with a study, makes it known as "hostile".
    """
    attack = " ".join(ATTACKS)
    arms = {f"{number} {text}": {"normalizer": name}
            for number, (text, name) in enumerate(zip(ATTACKS, ("none", "batch") * 9))}
    first, second, *_ = arms
    study = dataclasses.replace(
        STUDIES.get("comparison")(), question=attack, source=attack, arms=arms, baseline=first,
        claims=(Claim(attack, attack, (Comparison("test_accuracy", second, "at least", first),)),),
    )
    register(study)
    plan = make_plan("hostile", {"dataset": f"csv:{attack}", "data_dir": attack}, seeds=2)
    results = [
        dataclasses.replace(
            result(run, 0.9, metrics={attack: 0.5}, curves={"loss/train": [[1, 2], [2, 1]],
                                                            attack: [[1, 2], [2, 1]]}),
            versions={attack: attack}, data=attack, start=attack,
        ) for run in plan.runs[1:]
    ]
    return make_report(plan, results, {attack: attack})


def ladder(quick=True):
    """The report of a study with a ladder of learning rates."""
    plan: Plan = make_plan("learning_rates", {}, seeds=2, quick=quick)
    return make_report(plan, [
        result(run, None if run.learning_rate > 5 else 0.9,
               DIVERGED if run.learning_rate > 5 else OK) for run in plan.runs
    ])
