"""A real Chromium. Without one, or without playwright, these tests are skipped and say why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")


@dataclass
class Watched:
    """A page with everything that went wrong or went out on it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def axe(self, *, contrast: bool = True) -> list[str]:
        """Accessibility findings of weight: rule and where. `contrast`, of every text, takes most of the time."""
        from axe_playwright_python.sync_playwright import Axe

        # Our policy admits no other script, and axe is not ours: it goes in through the debugger.
        options = {"rules": {"color-contrast": {"enabled": contrast}}, "resultTypes": ["violations"]}
        results = Axe().run(self.page, options=options).response["violations"]
        serious = [found for found in results if found["impact"] in ("serious", "critical")]
        return [f"{found['id']}: {node['html'][:120]}" for found in serious for node in found["nodes"]]

    def scrolls_sideways(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@pytest.fixture(scope="module")  # while playwright runs, nothing else in this process can run an event loop
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a Chromium, e.g. apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Watched]]:
    with ExitStack() as stack:

        def open_(url: str, *, width: int = 1280, scheme: str = "light", touch: bool = False) -> Watched:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=touch, bypass_csp=False
            )
            stack.callback(context.close)
            watched = Watched(context.new_page())
            watched.page.on(
                "console", lambda m: watched.errors.append(m.text) if m.type in ("error", "warning") else None
            )
            watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
            watched.page.on("request", lambda request: watched.requests.append(request.url))
            watched.page.on("dialog", lambda dialog: (watched.errors.append("a dialog"), dialog.dismiss()))
            watched.page.goto(url)
            return watched

        yield open_
