"""Read MLflow's pages in a browser: curves, groups, axes. MLflow's element names are in this file alone."""

from __future__ import annotations

import re
from typing import Any

from tests.ui.browser import Browser

CHART = "[data-testid=experiment-view-compare-runs-card]"
SECTION = "[data-testid=experiment-view-compare-runs-section-header]"
DESCRIPTION = "[data-component-id='mlflow.experiment.metadata_editor.expand_button']"
CLOSE_NOTE = "[data-component-id='mlflow.experiment_page.shared_view.dismiss']"
VIEWS_MENU = "[data-testid=saved-views-trigger]"
ROW = ".ag-row"


def curves(browser: Browser, metric: str, *, at_least: int) -> dict[str, list[float]]:
    """Return the lines of a metric's chart, by the name of their run, once so many are drawn.

    A smoothed line comes with what was logged, drawn paler and after it: that is returned.
    """
    script = """
        const drawn = [...document.querySelectorAll('.js-plotly-plot')]
            .filter(plot => plot.querySelectorAll('.scatterlayer path.js-line').length)
            .flatMap(plot => plot.data)
            .filter(line => line.metricKey === arguments[0]);
        const byName = {};
        for (const line of drawn) byName[line.name] = Array.from(line.y);
        return byName;
    """

    def drawn() -> dict[str, list[float]] | None:
        found = browser.ask(script, metric)
        return found if len(found) >= at_least else None

    return browser.wait(drawn, f"chart of {metric} with {at_least} runs")


def legend(browser: Browser) -> str:
    """Return the text of all charts, their legends with it."""
    script = "return [...document.querySelectorAll(arguments[0])].map(card => card.innerText).join('\\n')"
    return browser.ask(script, CHART)


def rows(browser: Browser, *, with_text: str, at_least: int = 1) -> dict[str, str]:
    """Return the text of each row of the table of runs, by MLflow's id of it, once so many have this text."""
    script = """
        const rows = {};
        for (const row of document.querySelectorAll(arguments[0])) {
            const id = row.getAttribute('row-id');
            rows[id] = [rows[id] || '', row.innerText].join('\\n');
        }
        return rows;
    """

    def shown() -> dict[str, str] | None:
        found: dict[str, Any] = browser.ask(script, ROW)
        return found if sum(with_text in text for text in found.values()) >= at_least else None

    return browser.wait(shown, f"table with {at_least} times {with_text}")


def unfold(browser: Browser, run_id: str) -> None:
    """Click what shows the children of a run in the table."""
    browser.click(f"{ROW}[row-id='{run_id}'] button")


def averages(row: str) -> list[float]:
    """Return the numbers of a group of runs, in the order of its columns."""
    return [float(number) for number in re.findall(r"(\S+) \(average\)", row)]


def axes(browser: Browser, *, at_least: int) -> dict[str, list[str]]:
    """Return the axes of the parallel coordinates with the marks on them, from left to right, once they are drawn."""
    script = """
        return [...document.querySelectorAll('.parcoords .dimension')].map(axis =>
            [axis.querySelector('.label').textContent,
             [...axis.querySelectorAll('.tick text')].map(tick => tick.textContent)]);
    """

    def drawn() -> dict[str, list[str]] | None:
        found = dict(browser.ask(script))
        return found if len(found) >= at_least else None

    return browser.wait(drawn, "parallel coordinates")


def sections(browser: Browser, *, with_text: str) -> list[str]:
    """Return the headings of the groups of charts, such as ``loss (4)``, once one begins so."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(item => item.innerText.replace(/\\s+/g, ' ').trim())"
    )

    def shown() -> list[str] | None:
        found: list[str] = browser.ask(script, SECTION)
        return found if any(text.startswith(with_text) for text in found) else None

    return browser.wait(shown, f"group of charts {with_text}")


def links(browser: Browser) -> dict[str, str]:
    """Return where the links of a page lead, by their text."""
    return dict(browser.ask("return [...document.links].map(link => [link.innerText, link.href])"))
