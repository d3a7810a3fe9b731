"""The dashboard in a real browser: headless Chromium against a running server.

Chromium is the one named by CHROMIUM, else one on PATH (``make browser`` installs it on Debian
and its kin). Nothing is asked of any host but the server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    expect,
    sync_playwright,
)

from annoris.model import Run
from annoris.server import tokens
from tests.support.githttp import bare
from tests.support.machine import Machine
from tests.support.service import Service

AXE = Path(__file__).parent / "vendor" / "axe" / "axe.min.js"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium: make browser, or set CHROMIUM to one"
)

RICH = """# Webhook retries

**Status:** in progress
**Next:** deploy

## Where it stands

The queue stalls, see [the log](https://example.com/log). `code`

- [x] reproduce
- [ ] deploy

| what | why |
|---|--:|
| lock | one at a time |

```python
print("a line that is far too long for a telephone " * 3, "and for a tablet as well, without doubt")
```

> Nothing is lost.
"""
HOSTILE = """# Hostile <img src=x onerror=alert(1)>

<script>alert(2)</script>

<svg onload=alert(3)><script>alert(4)</script></svg>

[one](javascript:alert(5)) <a href="javascript:alert(6)">two</a> ![p](https://evil.example/p.png)

<img src="https://evil.example/q.png"><iframe src="https://evil.example/f"></iframe>

<form action="https://evil.example/"><button>send</button></form>

<div hx-get="https://evil.example/x" hx-trigger="load">x</div>
"""
IN = "<img src=https://evil.example/x onerror=alert(9)><script>alert(8)<" + "/script>"
TITLES = {
    "rich": RICH,
    "hostile": HOSTILE,
    "arabic": "# إصلاح الدفع في المتجر الإلكتروني\n\nاختبار `deploy.log` اليوم.\n",
    "long": f"# {'Averylongwordwithoutspaces' * 8} and more\n\n{'x' * 400}\n\n    {'y' * 400}\n",
}


@dataclass
class World:
    """A running server, what is on it, and a browser."""

    service: Service
    other: Machine
    token: str
    ids: dict[str, str]
    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def pages(self) -> list[str]:
        rich = f"/sessions/{self.ids['rich']}"
        return [
            "/", "/sessions?q=queue", "/projects", "/runs", "/findings", "/outbox",
            "/sessions/none", rich, f"{rich}/raw", f"{rich}/history", f"{rich}/diff",
        ]  # fmt: skip

    def open(self, **options: Any) -> Page:
        """A page of a browser that knows nothing of the others."""
        context = self.browser.new_context(base_url=self.service.url, **options)
        context.set_default_timeout(60_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)
        page.on("console", self._console)
        return page

    def _dialog(self, dialog: Dialog) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.service.url, "data:")):
            self.wrong.append(f"request: {request.url}")

    def _console(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.wrong.append(message.text)

    def logged_in(self, **options: Any) -> Page:
        page = self.open(**options)
        page.context.add_cookies(
            [{"name": "annoris", "value": self.token, "url": self.service.url}]
        )
        return page


def _filled(machine: Machine) -> tuple[str, dict[str, str]]:
    """A token, and the sessions of a machine by their names."""
    archive = machine.archive()
    token, _ = tokens.new(archive, "admin", "tests")
    saved = machine.save(*[text.encode() for text in TITLES.values()], project="shop")
    ids = {name: receipt.id for name, receipt in zip(TITLES, saved, strict=True)}
    machine.save(archive.load(ids["rich"]).data.replace(b"stalls", b"never stalls"))
    archive.set_project("shop", {"target_revenue": "12000", "current_revenue": "8450.50"})
    for minute, status in enumerate(("ok", "failed", "partial", "ok")):
        moment = f"2026-11-24T10:0{minute}:00Z"
        details: dict[str, object] = {"milliseconds": {"all": 900}, "error": "master was away"}
        archive.record(Run("sync", status, moment, moment, "cron", "laptop", details))
    archive.record(Run("verify", "findings", "2026-11-24T10:05:00Z", details={"catalog-stale": 1}))
    archive.close()
    return token, ids


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("browser")
    remote = str(bare(folder / "remote.git"))
    settings = {
        "master_fresh_seconds": "0.001", "server_rate": "100000", "server_sample_seconds": "6",
    }  # fmt: skip
    token, ids = _filled(Machine(folder / "first", remote, {}))
    with (
        Service(Machine(folder / "server", remote, settings)) as service,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        expect.set_options(timeout=60_000)
        yield World(service, Machine(folder / "other", remote, {}), token, ids, browser)
        browser.close()


@pytest.fixture(autouse=True)
def sound(world: World) -> Iterator[None]:
    """After no test: an error of a script, a dialog, a breach of the policy, a foreign request."""
    yield
    contexts, world.contexts = world.contexts, []
    for context in contexts:
        context.close()
    wrong, world.wrong = world.wrong, []
    assert wrong == []


def test_one_logs_in_and_reads_by_the_keys(world: World) -> None:
    """A wrong token is told; the right one leads where one wanted to go, and no script sees it."""
    page = world.open()
    page.goto("/sessions")
    page.fill("#token", "annoris_" + "x" * 43)
    page.press("#token", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("not known")
    page.fill("#token", world.token)
    page.press("#token", "Enter")
    page.wait_for_url("**/sessions")
    assert "annoris" not in page.evaluate("document.cookie")

    page.press("body", "?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("retries")
    expect(page.locator("[data-row]")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("[data-row]")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/sessions/{world.ids['rich']}")
    expect(page.locator(".document h1")).to_have_text("Webhook retries")
    expect(page.locator(".document")).to_contain_text("☑ reproduce")
    page.get_by_role("link", name="Changes", exact=True).click()
    expect(page.locator(".diff .added")).to_contain_text(["never stalls"])
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.wait_for_url(f"{world.service.url}/")
    expect(page.locator(".tier")).to_have_count(2)
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#token")).to_be_visible()
    page.goto("/runs")
    expect(page.locator("#token")).to_be_visible()


def test_a_search_is_answered_as_one_types(world: World) -> None:
    """The list follows the words without a new page, and the address with it."""
    page = world.logged_in()
    page.goto("/sessions")
    page.evaluate("window.same = true")
    page.locator("#search").press_sequentially("deploy.log")
    expect(page.locator("[data-row]")).to_have_count(1)
    expect(page.locator(".snippet mark").first).to_be_visible()
    assert page.url.endswith("/sessions?q=deploy.log&project=&status=")
    assert page.evaluate("window.same")
    page.reload()
    expect(page.locator("[data-row]")).to_have_count(1)
    page.press("#search", "Escape")  # leaves the words
    page.select_option("#project", "shop")
    page.wait_for_url("**/sessions?q=deploy.log&project=shop&status=")
    page.press("#search", "ArrowDown")
    expect(page.locator("[data-row]")).to_be_focused()
    page.fill("#search", "nothing has this")
    expect(page.locator("#results")).to_contain_text("Nothing fits")


def test_a_push_shows_up_by_itself(world: World) -> None:
    """In the list, with the focus where it was; on the open session as a line that says so."""
    listed, reading = world.logged_in(), world.logged_in()
    listed.goto("/sessions")
    listed.evaluate("window.same = true")
    listed.keyboard.press("j")
    focused = listed.evaluate("document.activeElement.id")
    assert focused.startswith("s-")
    reading.goto(f"/sessions/{world.ids['arabic']}")
    text = world.other.load(world.ids["arabic"])
    world.other.save(text + b"\nmore\n")
    world.other.save(b"# Fresh from another machine\n\ntext\n", project="other")
    expect(listed.locator("#results")).to_contain_text("Fresh from another machine")
    assert listed.evaluate("[window.same, document.activeElement.id]") == [True, focused]
    expect(reading.locator("#newer")).to_contain_text("newer revision")


def test_light_and_dark_follow_the_system_until_one_chooses(world: World) -> None:
    """A choice survives a new page."""
    page = world.logged_in(color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    page.goto("/outbox")
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    page.keyboard.press("t")
    assert page.evaluate(ground) == dark
    page.goto("/findings")
    assert page.evaluate(ground) == dark


def test_case_28_hostile_markdown_does_nothing(world: World) -> None:
    """Nothing runs and nothing is fetched, after a second look and a click too."""
    page = world.logged_in()
    page.goto(f"/sessions/{world.ids['hostile']}")
    article = page.locator(".document")
    expect(article).to_contain_text("one")
    article.get_by_text("two").click()
    article.get_by_text("one").click()
    for name in ("/raw", "/history", "/diff"):
        page.goto(f"/sessions/{world.ids['hostile']}{name}")
    page.goto("/sessions?q=hostile")
    expect(page.locator("[data-row]")).to_have_count(1)
    page.evaluate("htmx.trigger(document.body, 'tick')")
    page.wait_for_load_state("networkidle")
    # The policy is what holds if a script got in all the same.
    page.evaluate(f"document.body.append(document.createRange().createContextualFragment(`{IN}`))")
    page.wait_for_load_state("networkidle")
    held, world.wrong = world.wrong, []
    assert sum("Content Security Policy" in told for told in held) >= 3
    assert not [told for told in held if told.startswith(("dialog", "script"))]


def test_every_page_is_clean_to_axe(world: World) -> None:
    """In both themes."""
    page = world.open(reduced_motion="reduce")
    page.goto("/login")
    found = _axe(page, "/login")
    page.context.add_cookies([{"name": "annoris", "value": world.token, "url": world.service.url}])
    for path in world.pages:
        page.goto(path)
        found += _axe(page, path)
    assert found == []


def _axe(page: Page, path: str) -> list[str]:
    """What axe-core says of a page: every rule in the light, contrasts in the dark."""
    page.evaluate(AXE.read_text())
    ran: list[Any] = page.evaluate(
        """async () => {
            const light = await axe.run({resultTypes: ["violations"]});
            document.documentElement.dataset.theme = "dark";
            const dark = await axe.run({runOnly: ["color-contrast"], resultTypes: ["violations"]});
            return [...light.violations, ...dark.violations];
        }"""
    )
    return [f"{path}: {one['id']}: {one['nodes'][0]['html'][:200]}" for one in ran]


def test_every_page_fits_a_telephone(world: World) -> None:
    """Nothing scrolls sideways at 360 pixels, whatever a document or its title is."""
    page = world.logged_in(viewport={"width": 360, "height": 740})
    too_wide = []
    for path in [*world.pages, "/sessions", *(f"/sessions/{id}" for id in world.ids.values())]:
        page.goto(path)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            too_wide.append(path)
    assert too_wide == []
