"""What a visitor of MLflow's UI finds of a finished study, in a real browser."""

from __future__ import annotations

from statistics import fmean

import pytest

from crisscross.tracking.ui import UNTRAINED, VIEWS
from tests.ui import pages
from tests.ui.study import RELAXATIONS, SEEDS

BY_KEY = {view.key: view for view in VIEWS}


def test_the_losses_of_the_five_relaxations_are_compared_in_one_chart(site):
    site.browser.open(BY_KEY["loss"].path(site.experiment_id))
    curves = pages.curves(site.browser, "loss/total", at_least=len(site.study.losses))
    assert curves.keys() == site.study.losses.keys()
    assert {name.split("-")[1] for name in curves} == set(RELAXATIONS)
    for name, losses in site.study.losses.items():
        assert curves[name] == pytest.approx(losses)
        assert name in pages.legend(site.browser)


def test_runs_are_grouped_by_relaxation(site):
    site.browser.open(BY_KEY["relaxation"].path(site.experiment_id))
    rows = pages.rows(site.browser, with_text="(average)", at_least=len(RELAXATIONS) + 1)
    for relaxation in RELAXATIONS:
        row = rows[f"param.relaxation.{relaxation}"]
        assert f"Group: {relaxation}\n{len(SEEDS)}" in row
        top1 = [site.study.top1[f"crisscross-{relaxation}-demo-s{seed}-svm-demo"] for seed in SEEDS]
        assert pages.averages(row)[-1] == pytest.approx(fmean(top1))
    assert f"Group: {UNTRAINED}\n{len(SEEDS)}" in rows[f"param.relaxation.{UNTRAINED}"]


def test_parallel_coordinates_lead_from_seed_and_relaxation_to_top1(site):
    site.browser.open(BY_KEY["sweep"].path(site.experiment_id))
    axes = pages.axes(site.browser, at_least=5)
    assert list(axes) == ["seed", "relaxation", "eval/top1_v", "eval/top1_a", "eval/top1_av"]
    assert set(axes["relaxation"]) == {*RELAXATIONS, UNTRAINED}
    assert all(axes.values())


def test_the_experiment_says_what_it_is_and_how_to_run_it(site):
    site.browser.open(f"#/experiments/{site.experiment_id}/runs")
    site.browser.wait_for_text(*(view.name for view in VIEWS))  # links, in the line that shows without a click
    site.browser.click(pages.DESCRIPTION)
    site.browser.wait_for_text("Self-supervised audio-visual learning", "uv run launch/sweep_relaxation.py")
    links = pages.links(site.browser)  # they open in a tab of their own
    assert all(links[view.name].endswith(view.path(site.experiment_id)) for view in VIEWS)


def test_the_views_are_in_the_menu_of_the_experiment(site):
    site.browser.open(f"#/experiments/{site.experiment_id}/runs")
    site.browser.click(pages.VIEWS_MENU)
    text = site.browser.wait_for_text("SAVED VIEWS", *(view.name for view in VIEWS))
    assert sorted(VIEWS, key=lambda view: text.index(view.name)) == list(VIEWS)
    site.browser.click("[role=menuitem]", BY_KEY["relaxation"].name)
    assert "param.relaxation.mild" in pages.rows(site.browser, with_text="Group: mild")


def test_evaluations_are_folded_up_below_their_pretraining(site):
    site.browser.open(f"#/experiments/{site.experiment_id}/runs")
    rows = pages.rows(site.browser, with_text="crisscross-mild-demo-s0")
    assert not any("crisscross-mild-demo-s0-svm-demo" in text for text in rows.values())
    pages.unfold(site.browser, site.run_ids["crisscross-mild-demo-s0"])
    rows = pages.rows(site.browser, with_text="crisscross-mild-demo-s0-svm-demo")
    assert site.run_ids["crisscross-mild-demo-s0-svm-demo"] in rows


def test_the_page_of_a_pretraining_says_what_it_is_and_leads_to_its_evaluation(site):
    site.open_run("crisscross-mild-demo-s0")
    text = site.browser.wait_for_text("Child runs", "Parameters (")
    assert "Pretraining with crisscross, temporal relaxation mild, on demo (demo scale, seed 0)." in text
    assert "Table 3: relaxation mild" in text
    assert "uv run launch/sweep_relaxation.py" in text
    for metric in ("loss/total", "collapse/video_std", "time/step_s"):
        assert metric in text
    assert "relaxation\nmild" in text.partition("Parameters (")[2]
    assert "relaxation\n: mild" in text.partition("Tags")[2]
    site.browser.click("a", "crisscross-mild-demo-s0-svm-demo")
    text = site.browser.wait_for_text(
        "Evaluation (svm) of the pretraining crisscross-mild-demo-s0", "Parent run", "eval/top1_av"
    )
    assert "relaxation\nmild" in text.partition("Parameters (")[2]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("crisscross-mild-demo-s0", {"loss (4)", "collapse (2)", "time (2)"}),
        ("crisscross-mild-demo-s0-svm-demo", {"eval (3)", "svm (1)"}),
    ],
)
def test_metrics_are_grouped_by_their_prefix(site, name, wanted):
    site.open_run(name, "/model-metrics")
    headings = pages.sections(site.browser, with_text=min(wanted)[:4])
    assert {heading.removesuffix(" Add chart") for heading in headings} >= wanted
