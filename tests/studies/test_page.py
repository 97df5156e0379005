"""The HTML page: what it holds, that it needs nothing else, and that no text becomes markup."""

import base64
import hashlib
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pages
import pytest
import reports
import vl_convert
from pages import ATTACKS, parsed

from bn_keras.commands import flags, train
from bn_keras.plan import make_plan
from bn_keras.registry import STUDIES
from bn_keras.report import page_charts, page_command, sentences
from bn_keras.report.figures.drawing import FAMILIES, OTHERS, STYLES
from bn_keras.report.page import _read, page
from bn_keras.report.page_looks import DARK, LIGHT, contrast, visible
from bn_keras.report.report import make_report
from bn_keras.results import Store

UP, DOWN = [0.96, 0.965, 0.961, 0.963, 0.966, 0.959], [0.1, 0.101, 0.098, 0.103, 0.099, None]
PNG = b"\x89PNG, by name"


@pytest.fixture(scope="module")
def usual():
    return pages.plain({"none": DOWN, "batch": UP}, {"group, seed 0": "not finished"})


@pytest.fixture
def register(monkeypatch):
    """Makes a study known as "hostile"."""
    return lambda study: monkeypatch.setitem(
        STUDIES._registered, "hostile", (lambda: study, {}))


@pytest.mark.slow
def test_the_page_tells_everything_in_order(usual):
    found = parsed(usual, PNG)
    assert found.texts("h1") == [usual.plan.study.question]
    assert found.texts("h2") == [
        "Verdict", "Picture", "Arms", "How to read it", "Curves", "Final values by seed", "Runs",
        "Versions and machine", "Missing runs", "Do it again",
    ]
    levels = [int(element["tag"][1]) for element in found.elements
              if re.fullmatch("h[1-6]", element["tag"])]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    paragraphs = found.texts("p")
    told = list(sentences.against_baseline(usual))
    assert len(told) == 3 and set(told) <= set(paragraphs)
    assert "1 of 12 runs missing: what follows is of the others." in paragraphs
    assert set(usual.notes) <= set(found.texts("li"))
    headings, cells = sentences.table_of_arms(usual)
    assert set(headings) <= set(found.texts("th"))
    shown = found.texts("td") + found.texts("th")
    assert {cell for row in cells for cell in row} <= set(shown)
    assert {"keras", "3"} <= {*found.texts("dt"), *found.texts("dd")}
    assert any(text.startswith("1: not finished") for text in found.texts("li"))
    assert found.texts("code") == ["bn-keras train --seeds=6"]


@pytest.mark.slow
def test_the_page_is_marked_up_for_every_reader(usual):
    found = parsed(usual, PNG)
    ids = [element["attributes"]["id"] for element in found.elements
           if "id" in element["attributes"]]
    assert len(ids) == len(set(ids)) > 10
    for element in found.elements:
        named = element["attributes"].get("aria-labelledby")
        assert named is None or named in ids
    assert found.all("html")[0]["attributes"]["lang"] == "en"
    assert all(head["attributes"].get("scope") in ("col", "row") for head in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table")) == 2
    image, = found.all("img")
    assert "validation accuracy" in image["attributes"]["alt"]
    assert base64.b64decode(image["attributes"]["src"].partition(",")[2]) == PNG
    labels = [element["text"] for element in found.all("label")]
    controls = len(found.all("select")) + len(found.all("input"))
    assert controls == len(labels) == 4 + 2 + 1
    assert all(label.strip() for label in labels)


def test_the_page_needs_no_other_file_and_its_policy_names_its_own_scripts_alone(usual):
    found = parsed(usual, PNG)
    for element in found.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            address = element["attributes"].get(name, "")
            assert not address or address.startswith("data:") or element["tag"] == "a"
    links = [link["attributes"]["href"] for link in found.all("a")]
    assert links == ["results.json", "results.csv"]
    policy, = (meta["attributes"]["content"] for meta in found.all("meta")
               if meta["attributes"].get("http-equiv") == "Content-Security-Policy")
    scripts = [script["text"] for script in found.all("script") if not script["attributes"]]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
              for text in scripts}
    assert len(scripts) == 2 and set(re.findall("'sha256-([^']*)'", policy)) == hashes
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


@pytest.mark.slow
def test_no_text_of_a_user_becomes_markup(register):
    found = parsed(pages.hostile(register), PNG)
    known = parsed(pages.plain({"none": [0.1], "batch": [0.9]}), PNG)
    for tag in ("script", "style", "img", "iframe", "object", "link", "base"):
        assert len(found.all(tag)) == len(known.all(tag)), tag
    attributes = {name for element in found.elements for name in element["attributes"]}
    assert not {name for name in attributes if name.startswith("on")}
    text = found.all("body")[0]["text"]
    for attack in ATTACKS:
        shown = attack.replace("\u2028", " ").replace("\u202e", "\\u202e")
        assert text.count(shown) >= 4, shown  # question, source, arm, claim, settings, versions …
    names = found.data()["arms"]
    assert names[0].endswith(ATTACKS[0]) and len(names) == len(ATTACKS)
    assert any(ATTACKS[0] in name for name in found.data()["finals"]["metrics"])


def test_values_that_json_lacks_are_left_out():
    plan, results = reports.compared({"none": [0.1, 0.2], "batch": [0.9, 0.8]})
    results[0].metrics.update(test_loss=float("inf"), validation_loss=float("nan"))
    results[1].metrics.update(test_loss=0.5, validation_loss=None)
    results[0].curves["loss/train"] = [[10, float("nan")], [20, float("inf")], [30, 1.0]]
    data = parsed(make_report(plan, results)).data()
    assert data["finals"]["metrics"]["test_loss"]["values"][:2] == [None, 0.5]
    assert "validation_loss" not in data["finals"]["metrics"]
    line, = (line for line in data["curves"]["groups"][""]["loss/train"]["lines"]
             if line[:2] == [0, 0])
    assert line[3:] == [[30], [1.0]]


def test_runs_without_a_point_of_a_curve_are_counted():
    plan, results = reports.compared({"none": [None, 0.2], "batch": [0.9, 0.8]})
    results[0].curves.clear()  # diverged before the first point
    metric = parsed(make_report(plan, results)).data()["curves"]["groups"][""]["loss/train"]
    assert metric["without"] == [[1, 2], [0, 2]]


@pytest.mark.parametrize("accuracies", [
    {"batch": [0.9]}, {"none": [0.1], "batch": [0.9]}, {"batch": [0.9, 0.91]}, {"none": [None]},
], ids=["one run", "one seed", "one arm", "diverged"])
def test_few_runs_make_a_page(accuracies):
    found = parsed(pages.plain(accuracies))
    assert found.texts("h1") and "Picture" not in found.texts("h2")
    lines = found.data()["curves"]["groups"][""]["loss/train"]["lines"]
    medians = [line for line in lines if line[1] is None]
    assert len(medians) == sum(len(values) > 1 for values in accuracies.values())


def test_runs_without_curves_and_values_say_so():
    plan, results = reports.compared({"none": [0.1], "batch": [0.9]})
    for result in results:
        result.curves.clear()
        result.metrics.clear()
    found = parsed(make_report(plan, results))
    assert {"No run has a curve.", "No run has a final value."} <= set(found.texts("p"))


def test_a_median_is_that_of_all_seeds_and_a_diverged_curve_ends_with_its_mark():
    report = pages.many(seeds=5, length=8)
    lines = parsed(report).data()["curves"]["groups"][""]["loss/validation"]["lines"]
    seeds = {tuple(line[:2]): line for line in lines}
    assert {key for key, line in seeds.items() if line[2]} == {(0, 1)}
    assert seeds[0, 1][3] == [10, 20, 30, 40]
    batch = np.median([pages.curve(8, 0.03, seed) for seed in range(5)], axis=0)
    assert seeds[1, None][3] == batch[:, 0].tolist()
    np.testing.assert_allclose(seeds[1, None][4], batch[:, 1], rtol=1e-4)
    # The diverged seed counts as the worst, which is the highest loss, from step 50 on.
    none = [dict(pages.curve(8, 0.01, seed)) for seed in (0, 2, 3, 4)]
    last = sorted(curve[80] for curve in none)[2]
    np.testing.assert_allclose(seeds[0, None][4][-1], last, rtol=1e-4)


@pytest.mark.slow
def test_a_thousand_runs_fit_in_a_page_that_tells_what_is_left_out():
    text = page(pages.many(seeds=500, length=120))
    found = pages.Parser(text)
    data = found.data()
    assert len(text) < 3e6
    assert len(json.dumps(data)) < 1.5e6
    for metric in data["curves"]["groups"][""].values():
        points = sum(len(line[3]) for line in metric["lines"])
        assert 2000 < points < 1.1 * page_charts.MOST_DRAWN
        seeds, lengths = (
            {line[1] for line in metric["lines"]}, {len(line[3]) for line in metric["lines"]}
        )
        assert {None, 0, 1} < seeds and max(lengths) <= 20
        steps = metric["lines"][0][3]
        assert (steps[0], steps[-1]) == (10, 1200)
    told = " ".join(found.texts("p"))
    assert "Of curves with up to 120 points, 20 are drawn. Of 1,000 runs, the first seeds" in told
    assert len(data["finals"]["rows"]) == 1000


@pytest.mark.slow
def test_a_ladder_has_the_curves_of_every_learning_rate():
    report = pages.ladder()
    found = parsed(report)
    groups = found.data()["curves"]["groups"]
    rates = dict.fromkeys(f"{run.learning_rate:g}" for run in report.plan.runs)
    assert list(groups) == sorted(rates, key=float) and len(groups) > 5
    lines = groups["2.4"]["accuracy/validation"]["lines"]
    assert {line[0] for line in lines} == {0, 1, 2} and len(lines) == 3 * (2 + 1)
    assert any("learning_rate" == text for text in found.texts("th"))


@pytest.mark.slow
def test_a_study_of_numbers_has_no_accuracy():
    plan = make_plan("bad_init_regression", {}, quick=True)
    results = [reports.result(run, 0.5, curves={"loss/test": [[1, 900.0], [2, 3.0]]})
               for run in plan.runs]
    for result in results:
        result.metrics.clear()
        result.metrics["test_loss"] = 10.0
    found = parsed(make_report(plan, results))
    assert "finished" in found.texts("td") and "accuracy" not in json.dumps(found.data())
    chart = found.data()["curves"]["groups"][""]["loss/test"]
    assert chart["scale"]["type"] == "log" and chart["title"].endswith("(logarithmic)")
    assert any(text.startswith("This is the quick version") for text in found.texts("p"))


@pytest.mark.slow
def test_claims_are_counted_and_told():
    plan = make_plan("bad_init_regression", {}, seeds=5)
    results = [reports.result(run, None, metrics={"test_loss": 10.0}, curves={})
               for run in plan.runs]
    report = make_report(plan, results)
    found = parsed(report)
    holding = sum(judged.verdict == "holds" for judged in report.judged)
    assert len(report.judged) < len(plan.study.claims)
    assert any(re.match(rf"Claims: .*{holding or 'not'}", text) for text in found.texts("p"))
    unjudged = len(plan.study.claims) - len(report.judged)
    assert any(f"{unjudged} claims cannot be judged" in text for text in found.texts("p"))
    assert len(found.all("ol")) == 1
    assert [text.partition(":")[0] for text in found.texts("strong")] == [
        judged.verdict for judged in report.judged
    ]


def test_settings_that_all_runs_share_are_told_once():
    found = parsed(pages.plain({"none": [0.1], "batch": [0.9]}, batch_size=48))
    names = [element["text"] for element in found.all("dt")]
    assert names.count("batch_size") == 1 and "normalizer" not in names
    assert "normalizer" in found.texts("th") and "48" in found.texts("dd")


PLANS = [
    ("comparison", {}, {"normalizers": ["none", "batch"]}),
    ("comparison", {"learning_rate": 0.1, "epochs": 0.5, "measure": (), "l2": 1e-7},
     {"normalizers": ["none", "batch", "group"], "seeds": 3, "first_seed": 4}),
    ("comparison", {"measure": ("one_at_a_time", "penalty"), "optimizer": "adam"},
     {"normalizers": ["batch"]}),
    ("comparison", {}, {"normalizers": ["none"], "seeds": 1}),
    ("comparison", {}, {"normalizers": ["layer", "group"], "quick": True}),
    ("comparison", {"dataset": "csv:/a b/it's $x.csv"},
     {"normalizers": ["none", "batch"]}),
    ("learning_rates", {"steps": 100}, {"seeds": 2}),
    ("learning_rates", {}, {"arms": ["batch at 2.4", "none at 2.4"]}),
    ("bad_init_regression", {"batch_size": 10}, {"quick": True}),
]


@pytest.mark.parametrize("name, overrides, choice", PLANS,
                         ids=[f"{number} {plan[0]}" for number, plan in enumerate(PLANS)])
def test_the_command_plans_the_same_runs(name, overrides, choice):
    """Read back by the flags' own parser, as a shell hands them over."""
    plan = make_plan(name, overrides, **choice)
    program, verb, *arguments = shlex.split(page_command.command(plan))
    assert (program, verb) == ("bn-keras", "train")
    again = train._plan(flags.parse(["train", *arguments]))
    assert set(again.runs) == set(plan.runs) and again.folder_name() == plan.folder_name()


def test_the_default_comparison_is_the_shortest_command():
    assert page_command.command(make_plan("comparison", {})) == "bn-keras train --seeds=6"


@pytest.mark.slow
def test_runs_of_several_commands_or_from_python_have_no_command(register):
    first, second = (make_plan("comparison", {}, seeds=seeds, normalizers=[name])
                     for seeds, name in ((2, "batch"), (3, "none")))
    assert page_command.command(first.merged(second)) is None
    gap = make_plan("comparison", {}, seeds=1).merged(
        make_plan("comparison", {}, seeds=1, first_seed=2))
    assert page_command.command(gap) is None
    report = pages.hostile(register)
    assert page_command.command(report.plan) is None
    assert any("No single command" in text for text in parsed(report).texts("p"))


@pytest.mark.parametrize("background", [LIGHT, DARK], ids=["light", "dark"])
def test_the_colours_of_arms_are_seen_on_the_page(background):
    colors = {color for color, _ in (*STYLES.values(), *sum(FAMILIES.values(), ()))} | {*OTHERS}
    assert len(colors) > 10
    for color in colors:
        assert contrast(visible(color, *background), background[0]) >= background[2] >= 3
    assert visible("#0072b2", *LIGHT) == "#0072b2", "batch is as blue as in the pictures"
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's example


def test_texts_have_the_contrast_that_wcag_asks_for():
    modes = re.findall(r":root \{(.*?)\}", _read("page.css"), re.S)
    assert len(modes) == 2
    for mode in modes:
        colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", mode))
        assert len(colors) == 10
        for text in ("ink", "quiet", "link", "holds", "other", "fails", "open"):
            for behind in ("paper", "soft"):
                assert contrast(colors[text], colors[behind]) >= 4.5, (text, behind)


@pytest.mark.slow
def test_vega_lite_accepts_the_charts():
    """Compiled by the very version that the page brings along."""
    curves = page_charts.curves_chart(3, ((1, 0), (6, 3), (2, 3)))
    finals = page_charts.finals_chart(3)
    version = ".".join(curves["$schema"].rpartition("/v")[2].split(".")[:2])
    for chart in (curves, finals):
        compiled = vl_convert.vegalite_to_vega(chart, vl_version=version)
        assert {"shown", "width"} < {signal["name"] for signal in compiled["signals"]}
        assert "var(--arm-2)" in json.dumps(compiled["scales"])


@pytest.mark.slow
def test_a_report_writes_the_page_without_tensorflow(tmp_path):
    plan, results = reports.compared({"none": DOWN, "batch": UP})
    store = Store(tmp_path)
    (tmp_path / "plan.json").write_text(plan.to_json())
    for result in results:
        store.add(result)
    code = ("import sys; from bn_keras.__main__ import main; status = main(sys.argv[1:]); "
            "print(sorted({'tensorflow', 'keras', 'pandas'} & set(sys.modules)), status)")
    found = subprocess.run([sys.executable, "-W", "error", "-c", code, "report", str(tmp_path)],
                           capture_output=True, text=True)
    assert found.stderr == "" and found.stdout.endswith("[] 0\n")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 5e5 < len(text) < 3e6
    assert text.count("data:image/png;base64,") == 1
    lines = found.stdout.splitlines()
    files = [line for line in lines if str(tmp_path) in line]
    assert files[0] == f"report       {tmp_path / 'report.html'}"
