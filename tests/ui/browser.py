"""A headless Chromium that looks at MLflow's pages. Every wait is for content; nothing sleeps."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    StaleElementReferenceException,
    TimeoutException,
    WebDriverException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE_S = 60.0  # a page takes 2-4 s; the rest is for a machine that does much else
NOT_YET = (
    *(ElementClickInterceptedException, ElementNotInteractableException),
    *(JavascriptException, StaleElementReferenceException),
)
"""Errors of a page that is half built, or builds itself again."""

Found = TypeVar("Found")

FIRST_VISIT = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,  # else a panel of chat covers a quarter of the page
    "mlflow.assistant.panelOpen_v1": False,
    "mlflow.telemetry.info.alert.dismissed_v1": True,
    "mlflow.settings.telemetry.enabled_v1": False,
    "mlflow.workflowType_v1": "machine_learning",  # the menu on the left: not that of traces and prompts
    "_mlflow_dark_mode_toggle_enabled": False,
}
"""What MLflow 3.17 remembers, in the browser's localStorage, of a visitor who has closed what opens by itself."""


def missing_program() -> str:
    """Return which program is not installed, in words; empty when the browser can be started."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} here: apt-get install chromium chromium-driver" if absent else ""


class Browser:
    """A window of Chromium on one MLflow server."""

    def __init__(self, uri: str, *, width_px: int = 1400, height_px: int = 1000) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for argument in (
            "--headless=new",
            "--no-sandbox",  # CI is root in a container
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {urlsplit(uri).hostname}",  # the server and nothing else
            f"--window-size={width_px},{height_px}",
        ):
            options.add_argument(argument)
        # Named, so that selenium looks for no driver to download.
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_script_timeout(PATIENCE_S)
        self.uri = uri
        lines = ["localStorage.clear()"] + [
            f"localStorage.setItem({json.dumps(key)}, {json.dumps(json.dumps(FIRST_VISIT[key]))})"
            for key in FIRST_VISIT
        ]
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": ";".join(lines)})

    def close(self) -> None:
        """Close the window and end Chromium."""
        self.driver.quit()

    def open(self, path: str) -> None:
        """Open a page, such as ``#/experiments/1/runs``, as on a first visit."""
        # To a browser, all of MLflow is one page: without another in between it would not be loaded again.
        self.driver.get("about:blank")
        self.driver.get(f"{self.uri}/{path}")

    def ask(self, script: str, *arguments: Any) -> Any:
        """Return the value of a script on the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, until: Callable[[], Found], what: str) -> Found:
        """Return the first true answer; fail with what the page shows instead.

        Args:
            until: looks at the page. Elements that go while it does so count as not yet.
            what: what is waited for, in words.
        """

        def look(_: Any) -> Found | None:
            try:
                return until()
            except NOT_YET:
                return None

        try:
            return WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.1).until(look)
        except TimeoutException:
            raise AssertionError(
                f"{self.driver.current_url}: no {what} in {PATIENCE_S:.0f} s:\n{self.text()}"
            ) from None

    def text(self) -> str:
        """Return what a reader sees of the page."""
        try:
            return self.ask("return document.body ? document.body.innerText : ''")
        except WebDriverException as error:
            return f"(the page cannot be read: {error.msg})"

    def wait_for_text(self, *texts: str) -> str:
        """Wait until the page shows all of these; return all that it shows."""

        def shown() -> str | None:
            found = self.text()
            return found if all(text in found for text in texts) else None

        return self.wait(shown, f"text {' and '.join(texts)}")

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element that a CSS selector finds and whose text begins so, once it is there."""
        script = """
            const found = [...document.querySelectorAll(arguments[0])]
                .find(item => item.innerText.trim().startsWith(arguments[1]));
            if (found) found.scrollIntoView({block: 'center'});
            return found;
        """

        def clicked() -> bool:
            found = self.ask(script, selector, text)
            if found is not None:
                found.click()
            return found is not None

        self.wait(clicked, f"{selector} {text}")

    def hide(self, rules: str) -> None:
        """Add rules of CSS to the page."""
        self.ask("document.head.appendChild(document.createElement('style')).textContent = arguments[0]", rules)

    def save(self, path: Path, *, left_px: float = 0) -> None:
        """Save what the window shows, right of ``left_px``, as PNG."""
        width_px, height_px = self.ask("return [window.innerWidth, window.innerHeight]")
        part = {"x": left_px, "y": 0, "width": width_px - left_px, "height": height_px, "scale": 1}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": part})
        path.write_bytes(base64.b64decode(picture["data"]))
