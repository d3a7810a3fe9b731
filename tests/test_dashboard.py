"""The dashboard without a browser: who sees it, what it tells, and that nothing in it runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from annoris.model import Project, Run, TierStanding
from annoris.server import dashboard, overview, tokens
from annoris.server.app import create_app
from annoris.server.pages import POLICY, ago, marked, money
from annoris.server.reading import MOST, html, read
from annoris.server.sampling import Sample
from annoris.settings import load
from tests.support.githttp import bare
from tests.support.machine import Machine

HOSTILE = """# A <script>alert("title")</script> & "more" <b onclick=alert(1)>

**Status:** <svg/onload=alert(2)>

<script>alert(3)</script><img src=x onerror=alert(4)><svg><script>alert(5)</script></svg>

[one](javascript:alert(6)) <a href="jaVa&#115;cript:alert(7)">two</a> [three](data:text/html,x)

<iframe src="https://evil.example/"></iframe><style>body{display:none}</style>

<form action="/sync" method="post"><button>Win</button></form>

<div hx-get="/sync" hx-trigger="load" data-hx-get="/sync" id="live" style="position:fixed">x</div>

![pixel](https://evil.example/p.png) <img src="//evil.example/q.png"> <base href="//evil.example">

<math><mtext><table><mglyph><style><img src=x onerror=alert(8)></style></mglyph></table></mtext>

[good](https://example.com/page)
"""


class _Tags(HTMLParser):
    """Every element of a page, as (name, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))


class World:
    """A server in this process, with tokens of each scope and a client for each."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.archive = machine.archive()
        self.tokens: dict[str, str] = {
            scope: tokens.new(self.archive, scope)[0] for scope in tokens.SCOPES
        }
        self.hostile = machine.save(HOSTILE.encode(), project='<i>"shop"</i>')[0].id
        self.app = create_app(load(environ=machine.environment))
        self.client = TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)

    def as_(self, scope: str) -> TestClient:
        """A browser that is logged in with a token of that scope, or with none."""
        cookies = {"annoris": self.tokens[scope]} if scope else {}
        return TestClient(
            self.app, base_url="http://127.0.0.1", cookies=cookies, follow_redirects=False
        )

    def form(self, scope: str) -> str:
        """The word that this visitor's forms carry."""
        return _word(self.as_(scope).get("/projects").text)

    def pages(self) -> list[str]:
        """The address of each page that there is."""
        paths = [route.path for route in dashboard.router.routes if "GET" in route.methods]  # type: ignore[attr-defined]
        assert "/sessions/{selector}/diff" in paths
        return [path.replace("{selector}", self.hostile) for path in paths]


def _word(page: str) -> str:
    found = re.search(r'name="form" value="([0-9a-f]{64})"', page)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("dashboard")
    settings = {
        "master_fresh_seconds": "0.001", "server_rate": "100000", "server_token_seconds": "0.001",
    }  # fmt: skip
    made = World(Machine(folder / "server", str(bare(folder / "remote.git")), settings))
    with made.client:
        yield made
    made.archive.close()


def test_case_28_no_page_without_a_token(world: World) -> None:
    """Nobody and a token that is none are led to the login, and see nothing on the way."""
    unknown = {"annoris": "annoris_" + "x" * 43}
    for cookies in ({}, unknown):
        stranger = TestClient(
            world.app, base_url="http://127.0.0.1", cookies=cookies, follow_redirects=False
        )
        for path in world.pages():
            answer = stranger.get(path)
            assert (answer.status_code, answer.headers["location"][:10]) == (303, "/login?to=")
            assert world.hostile not in answer.text
        for path in ("/sync", "/projects", "/logout"):
            assert stranger.post(path, content="form=x").status_code in (303, 403)
        live = stranger.get("/parts/overview", headers={"HX-Request": "true"})
        assert (live.status_code, live.headers["hx-refresh"], live.text) == (401, "true", "")
        linked = stranger.get("/runs?kind=sync", headers={"Sec-Fetch-Site": "cross-site"})
        assert (linked.status_code, 'url=/runs?kind=sync"' in linked.text) == (401, True)
    assert world.as_("admin").get("/api/v1/sessions").status_code == 401  # the API takes no cookie


def test_case_28_every_page_lets_nothing_inline_run(world: World) -> None:
    """The policy is on each; no script, style or handler stands in it, whatever titles say."""
    assert "unsafe" not in POLICY
    admin = world.as_("admin")
    for path in [*world.pages(), "/login", "/sessions/none", f"/sessions/{world.hostile}?rev=zz"]:
        answer = admin.get(path)
        if path.endswith("/file"):
            assert answer.headers["content-disposition"].startswith("attachment")
            continue
        assert answer.status_code in (200, 204, 404), path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        for tag, attributes in _Tags(answer.text).found:
            assert tag not in ("style", "iframe", "object", "base"), path
            assert tag != "script" or attributes["src"].startswith("/static/"), path
            assert not any(key.startswith("on") or key == "style" for key in attributes), path
            for key in ("href", "src", "action", "hx-get"):
                value = attributes.get(key, "/")
                assert value.startswith(("/", "#", "https://")), (path, value)
                assert tag not in ("img", "script", "link") or value.startswith("/"), (path, value)


def test_case_28_markdown_is_inert() -> None:
    """Of hostile text nothing is left that runs, fetches, sends or dresses up as ours."""
    clean = html(HOSTILE)
    found = _Tags(clean).found
    names = {tag for tag, _ in found}
    assert not names & {"script", "svg", "style", "iframe", "form", "button", "base", "img", "math"}
    keys = {key for _, attributes in found for key in attributes}
    assert keys <= {"href", "rel", "title", "tabindex", "align", "alt"}
    links = [attributes for tag, attributes in found if tag == "a"]
    targets = [link["href"] for link in links if "href" in link]
    assert targets == ["https://evil.example/p.png", "https://example.com/page"]
    assert all("noopener" in link["rel"] for link in links)
    picture = "data:image/png;base64,iVBORw0KGgo="
    assert f'<img src="{picture}" alt="dot">' in html(f"![dot]({picture})")
    assert "<img" not in html("![x](data:image/svg+xml;base64,PHN2Zz4=)")


def test_markdown_is_shown_as_people_mean_it() -> None:
    """Tables, tasks, status lines and folds; what is too long to parse is not parsed."""
    clean = html("# T\n\n**Status:** a\n**Next:** b\n\n- [x] did\n- [ ] do\n\n|a|\n|-:|\n|1|\n")
    assert "<strong>Status:</strong> a<br>" in clean
    assert "☑ did" in clean
    assert "☐ do" in clean
    assert '<td align="right">1</td>' in clean
    assert "<details>" in html("<details><summary>s</summary>\n\ntext\n\n</details>")
    shown = read(b"---\nproject: x\n---\n# One\n")
    assert (shown.front, shown.titled) == ("---\nproject: x\n---\n", True)
    long = read(b"# T\n" + b"x" * MOST)
    assert (long.html, long.titled) == (None, False)


def test_case_28_forms_come_from_our_pages_and_ask_for_a_scope(world: World) -> None:
    """Wrong word, another's word, another site, too small a scope: 403 and nothing is changed."""
    change = {"project": "till", "target_revenue": "1200.50"}
    attempts: list[tuple[str, dict[str, str], dict[str, str]]] = [
        ("write", {}, {}),
        ("write", {"form": "0" * 64}, {}),
        ("write", {"form": world.form("admin")}, {}),
        ("write", {"form": world.form("write")}, {"Sec-Fetch-Site": "cross-site"}),
        ("read", {"form": world.form("write")}, {}),
    ]
    for scope, word, headers in attempts:
        answer = world.as_(scope).post("/projects", data={**change, **word}, headers=headers)
        assert answer.status_code == 403, (scope, word, headers)
        assert answer.headers["content-security-policy"] == POLICY
    assert "till" not in [project.name for project in world.archive.projects()]
    assert 'action="/projects"' not in world.as_("read").get("/projects").text
    big = world.as_("write").post("/projects", data={"project": "x" * 20_000})
    assert big.status_code == 413

    word = {"form": world.form("write")}
    done = world.as_("write").post("/projects", data={**change, **word})
    assert (done.status_code, done.headers["location"]) == (303, "/projects?said=project")
    assert world.archive.project("till").target_revenue == "1200.50"
    wrong = world.as_("write").post("/projects", data={**change, **word, "target_revenue": "x"})
    assert (wrong.status_code, "&#39;x&#39; is not a number" in wrong.text) == (422, True)

    assert world.as_("write").post("/sync", data=word).status_code == 403
    before = len(world.archive.runs.recent(50, "sync"))
    asked = world.as_("admin").post("/sync", data={"form": world.form("admin")})
    assert asked.headers["location"] == "/?said=sync"
    assert "Sync now" not in world.as_("write").get("/").text
    end = time.monotonic() + 60
    while len(world.archive.runs.recent(50, "sync")) == before:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "path",
    [
        "/sessions/..%2f..%2fetc%2fpasswd", "/sessions/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/sessions/.annoris%2ftokens.toml/raw", "/sessions/tokens.toml/file",
        "/sessions/abc%00/raw", "/static/..%2fpages.py", "/static/%2e%2e/%2e%2e/errors.py",
        "/sessions/" + "a" * 5000, "/sessions/%ff%fe/history",
    ],
)  # fmt: skip
def test_case_28_an_id_is_no_path(world: World, path: str) -> None:
    answer = world.as_("admin").get(path)
    assert answer.status_code == 404
    assert "sha256" not in answer.text
    assert "import" not in answer.text


def test_case_28_the_cookie_is_kept_from_scripts_and_other_sites(world: World) -> None:
    """Wrong tokens get none; where one goes after the login is always here; logging out ends it."""
    client = world.as_("")
    refused = client.post("/login", data={"token": "annoris_" + "y" * 43})
    assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
    assert "not known" in refused.text
    assert client.post("/login", content=b"\xff=%", headers={"Content-Length": "3"}).is_error
    foreign = client.post(
        "/login", data={"token": world.tokens["read"]}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert (foreign.status_code, "set-cookie" in foreign.headers) == (403, False)
    for to, lands in (
        ("/runs?kind=sync", "/runs?kind=sync"), ("//evil.example", "/"), ("/\\evil.example", "/"),
        ("https://evil.example/", "/"), ("javascript:alert(1)", "/"), ("/a\r\nx: y", "/"),
    ):  # fmt: skip
        let_in = world.as_("").post("/login", data={"token": world.tokens["read"], "to": to})
        assert (let_in.status_code, let_in.headers["location"]) == (303, lands)
    cookie = let_in.headers["set-cookie"].lower()
    for word in ("httponly", "samesite=strict", "path=/"):
        assert word in cookie
    assert "secure" not in cookie
    tls = {"X-Forwarded-Proto": "https"}
    safe = world.as_("").post("/login", data={"token": world.tokens["read"]}, headers=tls)
    assert "secure" in safe.headers["set-cookie"].lower()

    reader = world.as_("read")
    assert reader.post("/logout").status_code == 403
    assert reader.post("/logout", content=iter([b"form=x"])).status_code == 413  # no length
    out = reader.post("/logout", data={"form": world.form("read")})
    assert (out.headers["location"], "max-age=0" in out.headers["set-cookie"].lower()) == (
        "/login", True,
    )  # fmt: skip


def test_a_revoked_token_is_out(world: World) -> None:
    text, token = tokens.new(world.archive, "read")
    client = world.as_("")
    client.cookies.set("annoris", text)
    assert client.get("/runs").status_code == 200
    tokens.revoke(world.archive, token.id)
    seen = [client.get("/runs").status_code for _ in range(20)]
    assert seen[-1] == 303


def test_sessions_are_listed_searched_and_paged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, newest first; a search marks what fits; the live list says 204 until news come."""
    monkeypatch.setattr(dashboard, "_PAGE", 2)
    made = world.machine.save(
        *[f"# List {n}\n\n**Status:** {'done' if n else 'open'}\n\nword{n} zeisig\n".encode()
          for n in range(5)], project="listed",
    )  # fmt: skip
    client, seen, path = world.as_("read"), [], "/sessions?project=listed"
    while path:
        page = client.get(path).text
        seen += re.findall(r'id="s-([0-9a-f-]{36})"', page)
        more = re.search(r'href="(/sessions\?[^"]*saved=[^"]*)"', page)
        path = more[1].replace("&amp;", "&") if more else ""
    assert sorted(seen) == sorted(receipt.id for receipt in made)
    monkeypatch.undo()

    found = client.get("/sessions?q=word3", headers={"HX-Request": "true", "HX-Target": "results"})
    assert "<html" not in found.text
    assert "<mark>word3</mark>" in found.text
    assert "<mark>zeisig</mark>" in client.get("/sessions?q=zeisig&status=OPEN").text
    assert client.get("/sessions?q=zeisig&status=done").text.count("data-row") == 4
    assert client.get("/sessions?project=listed&status=open").text.count("data-row") == 1
    assert "Nothing fits" in client.get("/sessions?q=nowhere").text
    assert client.get("/sessions?q=%2B%2B").status_code == 200

    live = re.search(r'hx-get="(/parts/sessions\?[^"]*)"', client.get("/sessions").text)
    assert live
    again = live[1].replace("&amp;", "&")
    assert client.get(again).status_code == 204
    world.machine.save(b"# News\n\ntext\n", project="listed")
    assert "News" in client.get(again).text


def test_a_session_is_read_in_every_revision(world: World) -> None:
    """Rendered, raw, its bytes, its history, what changed; and a line once there is a newer one."""
    first = b"# Read me\n\n**Next:** deploy\n\nold words\n"
    id = world.machine.save(first, project="read")[0].id
    client, here = world.as_("read"), f"/sessions/{id}"
    oid = str(world.archive.find(id).oid)
    assert client.get(f"/parts{here}?oid={oid}").status_code == 204
    loaded = world.archive.load(id).data
    world.machine.save(loaded.replace(b"old words", b"new <words>"))
    assert "newer revision" in client.get(f"/parts{here}?oid={oid}").text

    assert "new &lt;words&gt;" not in client.get(here).text  # it is HTML there, and cleaned away
    assert "new &lt;words&gt;" in client.get(f"{here}/raw").text
    assert client.get(f"/sessions/{id[-8:]}/raw").status_code == 200
    older = client.get(f"{here}?rev={oid}").text
    assert "older revision" in older
    assert "old words" in older
    assert client.get(f"{here}/file?rev={oid}").content == loaded
    assert client.get(f"{here}/file").content == world.archive.load(id).data
    assert client.get(f"{here}/history").text.count("data-row") == 2
    changed = client.get(f"{here}/diff").text
    assert '<span class="removed" dir="auto">-old words</span>' in changed
    assert '<span class="added" dir="auto">+new &lt;words&gt;</span>' in changed
    world.archive.delete(id, "")
    assert "removed from master" in client.get(f"/parts{here}?oid={oid}").text
    assert client.get(here).status_code == 404


def test_the_overview_tells_what_is_so(world: World) -> None:
    """Tiers, outbox, revenue, last runs and what needs a person, each with its command."""
    world.archive.set_project("earned", {"target_revenue": "12000", "current_revenue": "8450.5"})
    world.archive.record(
        Run("verify", "findings", "2026-11-24T10:00:00Z", "2026-11-24T10:00:05Z",
            details={"hot-stale": 2, "dump-old": 1})
    )  # fmt: skip
    world.archive.record(
        Run("drill", "failed", "2026-11-24T11:00:00Z", details={"error": "<b>no</b>"})
    )
    client = world.as_("read")
    for path in ("/", "/parts/overview?seen=x"):
        page = client.get(path).text
        for words in ("Master", "Clone", "8\u202f450.50 of 12\u202f000", "70.4 %", "2 × hot-stale",
                      "annoris verify --repair", "1 × dump-old", "The last drill failed",
                      "annoris dump --drill", "There is no hot cache here"):  # fmt: skip
            assert words in page, words
    assert "&lt;b&gt;no&lt;/b&gt;" in client.get("/findings").text
    runs = client.get("/runs?kind=verify").text
    assert "findings" in runs
    assert "annoris dump --drill" not in runs
    assert "Nothing waits" in client.get("/outbox").text


def test_what_waits_for_master_is_shown_and_read(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Master is away: the pages answer, and the text in the outbox can be read."""
    here = machine("server", remote)
    here.save(b"# Known\n\ntext\n")
    app = create_app(load(environ=here.environment))
    remote.rename(remote.with_name("away.git"))
    receipt = here.save(b"# Waits here\n\nurgent\n")[0]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert "Waits here" in client.get("/outbox").text
        page = client.get("/").text
        assert re.search(r"<b>1</b> <a href=\"/outbox\">waiting", page)
        assert "down" in page
        read_ = client.get(f"/sessions/{receipt.id}").text
        assert "not on master yet" in read_
        assert "urgent" in read_
        assert "no revisions yet" in client.get(f"/sessions/{receipt.id}/history").text
        assert client.get(f"/sessions/{receipt.id}/diff").status_code == 200


def test_a_bug_is_a_page_to_a_browser_and_a_problem_to_a_program(
    machine: Callable[..., Machine],
) -> None:
    app = create_app(load(environ=machine("server").environment))
    kinds = {"text/html,*/*": "text/html", "application/json": "application/problem+json"}
    with TestClient(app, raise_server_exceptions=False) as client:
        app.state.guard = None
        for accept, kind in kinds.items():
            answer = client.get("/api/v1/sessions", headers={"Accept": accept})
            assert answer.status_code == 500
            assert answer.headers["content-type"].startswith(kind)
            assert "this is a bug (AttributeError)" in answer.text


def test_case_28_on_loopback_without_tokens_only_this_machine_looks(
    machine: Callable[..., Machine],
) -> None:
    """No login then, and nothing for other hosts, sites or forms; empty pages say what is next."""
    app = create_app(load(environ=machine("server").environment))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        pages = {path: client.get(path) for path in ("/", "/sessions", "/projects", "/runs",
                                                     "/runs?kind=drill", "/findings")}  # fmt: skip
        assert {answer.status_code for answer in pages.values()} == {200}
        for path, command in (
            ("/", "annoris save session.md"), ("/", "annoris sync"), ("/", "annoris verify"),
            ("/sessions", "annoris save session.md"), ("/projects", "annoris projects set"),
            ("/runs", "annoris sync"), ("/runs?kind=drill", "annoris dump --drill"),
            ("/findings", "annoris verify"),
        ):  # fmt: skip
            assert command in pages[path].text, path
        assert "Log out" not in pages["/"].text
        for name, value in (
            ("Host", "evil.example"), ("Sec-Fetch-Site", "cross-site"),
            ("Origin", "http://evil.example"), ("X-Forwarded-For", "1.2.3.4"),
        ):  # fmt: skip
            assert client.get("/sessions", headers={name: value}).status_code == 403
        assert client.post("/projects", data={"project": "x", "status": "y"}).status_code == 403
        word = _word(pages["/"].text)
        made = client.post("/projects", data={"project": "x", "status": "y", "form": word})
        assert made.status_code == 303
        entered = client.post("/login", data={"token": "всё равно"})
        assert (entered.status_code, "set-cookie" in entered.headers) == (303, False)


# --- pure --------------------------------------------------------------------------------------


def _sample(at: float, milliseconds: float | None) -> Sample:
    return Sample(
        at, (TierStanding("hot", up=milliseconds is not None, milliseconds=milliseconds),)
    )


def _sync(minute: int, **details: Any) -> Run:
    return Run("sync", "ok", f"2026-11-24T10:{minute:02}:00Z", details=details)


def test_a_tier_shows_its_answers_or_after_a_restart_its_syncs() -> None:
    """One measurement is no line yet; the log's milliseconds stand in, if they are any."""
    runs = [_sync(9 - n, tiers={"hot": {"milliseconds": 10 + n}}) for n in range(5)]
    odd = [_sync(30, tiers=7), _sync(31, tiers={"hot": {"milliseconds": "x"}}), _sync(32)]
    [card] = overview.cards([_sample(0, 3.0)], [*odd, *runs])
    assert card.told == "last 5 syncs: 10 ms to 14 ms"
    assert card.chart
    [card] = overview.cards([_sample(0, 3.0), _sample(60, None), _sample(120, 5.0)], runs)
    assert card.told == "last 2 min: 3.0 ms to 5.0 ms"
    assert card.chart.count("<path") == 2  # the gap between them
    assert overview.cards([], runs) == []
    assert overview.cards([_sample(0, None)], [])[0].chart == ""


def test_values_are_written_for_people() -> None:
    assert money("8450.50") == "8\u202f450.50"
    assert money("1200000.00") == "1\u202f200\u202f000"
    assert marked("a \x02<b>\x03 c") == "a <mark>&lt;b&gt;</mark> c"
    assert ago("<x>") == "&lt;x&gt;"
    assert ago("") == "never"
    assert 'title="2026-11-24 09:00:00 UTC"' in ago("2026-11-24T10:00:00+01:00")
    assert overview.earning(Project("x", target_revenue="10")).chart == ""
    assert overview.took(Run("x", "ok", "2026-11-24T10:00:00Z", "2026-11-24T10:00:02Z")) == 2000
    assert overview.took(Run("x", "ok", "soon")) is None
