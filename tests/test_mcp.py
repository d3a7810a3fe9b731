"""The MCP server, asked by the SDK's own client: over stdio as a process, and in this process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from annoris.assistant import guess
from annoris.assistant.mcp import make_server
from annoris.bootstrap import open_archive
from annoris.settings import load
from tests.support.githttp import commit
from tests.support.machine import Machine

T = TypeVar("T")
Machines = Callable[..., Machine]
Work = Callable[[Client], Awaitable[T]]
TEXT = "# Webhook retries\n\n**Status:** open\n\n## Next steps\n\ntry again [verified: by test]\n"


class Asked:
    """A server on a machine, and what a client asks of it."""

    def __init__(self, here: Machine) -> None:
        self.here = here
        self._server = make_server(lambda: closing(open_archive(load(environ=here.environment))))

    def ask(self, work: Work[T], mode: str = "2026-07-28") -> T:
        async def run() -> T:
            async with Client(self._server, mode=mode) as client:
                return await work(client)

        return anyio.run(run)

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.ask(lambda client: client.call_tool(tool, arguments))
        assert not result.is_error, result.content
        return dict(result.structured_content or {})

    def failed(self, work: Work[Any]) -> str:
        """What a request that is no tool's is refused with: the client's mistake, by its code."""

        async def caught(client: Client) -> str:
            with pytest.raises(MCPError) as raised:
                await work(client)
            assert raised.value.code == INVALID_PARAMS
            return raised.value.message

        return self.ask(caught)

    def refused(self, tool: str, **arguments: Any) -> str:
        result = self.ask(lambda client: client.call_tool(tool, arguments))
        assert result.is_error
        return str(result.content[0].text)  # type: ignore[union-attr]


@pytest.fixture
def here(machine: Machines, remote: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = machine(remote=remote, master_fresh_seconds="0.001")
    monkeypatch.chdir(made.desk)
    return Asked(made)


# --- as a process --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_client_saves_and_loads_over_stdio(
    mode: str, machine: Machines, remote: Path, tmp_path: Path
) -> None:
    """With the handshake of 2025-11-25 and without one; every byte on stdout is protocol."""
    here = machine(remote=remote)
    server = StdioServerParameters(
        command="annoris", args=["mcp", "--client", "codex"], env=here.environment, cwd=here.desk
    )

    async def run() -> tuple[str, dict[str, Any]]:
        with open(tmp_path / "err", "w", encoding="utf-8") as err:
            async with Client(stdio_client(server, err), mode=mode) as client:
                await client.call_tool("session_save", {"markdown": TEXT, "name": "retries"})
                loaded = await client.call_tool("session_load", {})
                return client.protocol_version, loaded.structured_content or {}

    version, loaded = anyio.run(run)
    assert version == ("2025-11-25" if mode == "legacy" else mode)
    assert loaded["text"].endswith(TEXT)
    assert machine("other", remote=remote).load("retries").endswith(TEXT.encode())
    assert "mcp answered" in _doctor(here)
    assert (tmp_path / "err").read_text() == ""


def _doctor(here: Machine) -> str:
    assert here.run("install", "codex").code == 0
    return here.run("doctor").err


def test_without_the_extra_it_says_what_to_install(machine: Machines) -> None:
    here = machine()
    here.write("mcp/__init__.py", "raise ModuleNotFoundError(name='mcp')")
    ran = here.run("mcp", env={"PYTHONPATH": str(here.desk)})
    assert ran.code == 2
    assert "annoris[assistant]" in ran.err
    assert ran.out == b""


# --- what it offers ------------------------------------------------------------------------------


def test_few_tools_each_annotated_and_with_a_structure(here: Asked) -> None:
    tools = here.ask(lambda client: client.list_tools()).tools
    hints = {tool.name: tool.annotations and tool.annotations.read_only_hint for tool in tools}
    assert hints == {
        "session_save": False, "session_load": True, "session_list": True, "session_search": True,
        "session_verify": True,
    }  # fmt: skip
    for tool in tools:
        assert tool.output_schema
        assert tool.description
        assert "\n  " not in tool.description
        assert all("description" in about for about in tool.input_schema["properties"].values())


def test_a_save_answers_the_receipt(here: Asked) -> None:
    saved = here.call("session_save", markdown=TEXT, name="retries", project="shop", priority="1")
    assert saved["state"] == "master"
    assert saved["title"] == "Webhook retries"
    assert (
        saved["revision"]
        == here.here.run("list", "-p", "shop", "--json").json["sessions"][0]["oid"]
    )
    again = here.call("session_save", markdown=TEXT, name="retries", project="shop", priority=1)
    assert again["state"] == "unchanged"


def test_a_save_that_can_only_wait_says_so(machine: Machines) -> None:
    asked = Asked(machine(remote="http://127.0.0.1:9/none.git", master_push_seconds="1"))
    saved = asked.call("session_save", markdown=TEXT)
    assert saved["state"] == "queued"
    assert "not on master yet" in saved["message"]
    assert asked.call("session_list", project="all")["sessions"][0]["waiting"]


def test_a_structural_problem_is_a_warning_with_its_line(here: Asked) -> None:
    saved = here.call("session_save", markdown="# T\n\ntext\n\n```\nnever closed\n")
    assert saved["warnings"] == ["line 5: the code fence opened here is never closed"]


@pytest.mark.parametrize(
    ("markdown", "why"),
    [
        ("", "empty"),
        ("---\nname: [\n---\n# T\n", "markdown:3: the front matter"),
        ("# T\n\ntoken " + "ghp_" + "a1B2" * 9 + "\n", "markdown:3: looks like a credential"),
        ("# T\n\0", "NUL"),
    ],
)
def test_a_refusal_says_where_and_what_to_do(markdown: str, why: str, here: Asked) -> None:
    said = here.refused("session_save", markdown=markdown)
    assert why in said
    assert "\n" in said, "and what to do"
    assert here.call("session_list", project="all")["sessions"] == []


def test_case_22_every_byte_goes_in_and_comes_out(here: Asked) -> None:
    """CRLF, a BOM, no final newline, every script, a merge marker."""
    body = "\ufeff# T\r\n\r\n<<<<<<< a\nünï \U0001f600 日本\u2028\ttab  \r\nno end"
    here.call("session_save", markdown=body, name="bytes")
    assert here.here.load("bytes").endswith(b"---\n" + body.encode())
    assert here.call("session_load", selector="bytes")["text"].endswith("---\n" + body)


# --- revisions -----------------------------------------------------------------------------------


def test_an_expected_revision_that_is_not_the_newest_saves_nothing(here: Asked) -> None:
    first = here.call("session_save", markdown="# T\n\none\n", name="t")["revision"]
    second = here.call("session_save", markdown="# T\n\ntwo\n", name="t", expected_revision=first)
    assert second["state"] == "master"
    said = here.refused("session_save", markdown="# T\n\n3\n", name="t", expected_revision=first)
    assert second["revision"] in said
    assert "session_load" in said
    assert b"two" in here.here.load("t")
    assert "needs a session" in here.refused(
        "session_save", markdown="# New\n\nx\n", expected_revision=first
    )


def test_an_edit_of_an_older_text_becomes_a_copy(here: Asked) -> None:
    here.call("session_save", markdown="# T\n\none\n", name="t")
    loaded = here.call("session_load", selector="t")["text"]
    here.call("session_save", markdown=loaded.replace("one", "two"))
    late = here.call("session_save", markdown=loaded.replace("one", "late"))
    assert late["state"] == "conflict"
    assert "both texts are kept" in late["message"]


# --- what models guess ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selector",
    [
        None, "", "latest", "Newest", "null", "retries", "retries.md", "shop/retries",
        "shop/retries.md", "Webhook retries", "webhook RETRIES", "'retries'", "session://retries",
    ],
)  # fmt: skip
def test_a_selector_is_taken_as_it_is_meant(selector: str | None, here: Asked) -> None:
    here.call("session_save", markdown=TEXT, name="retries", project="shop")
    found = here.call("session_load", selector=selector, project="shop", section=None)
    assert found["session"]["name"] == "retries"


@pytest.mark.parametrize("most", ["200", 200, 200.0, "200.0", None, "null", 5])
def test_a_number_is_taken_as_it_is_meant(most: object, here: Asked) -> None:
    here.call("session_save", markdown="# T\n\n" + "word " * 400, name="long")
    found = here.call("session_load", selector="long", max_chars=most)
    assert found["characters"] > 2000
    limit = {None: 10_000, "null": 10_000, 5: 100}.get(most, 200)  # type: ignore[call-overload]
    assert len(found["text"]) <= limit


def test_a_name_may_carry_its_project_and_a_suffix(here: Asked) -> None:
    saved = here.call("session_save", markdown=TEXT, name="shop/retries.md")
    assert (saved["project"], saved["name"]) == ("shop", "retries")


def test_what_is_not_there_names_what_is(here: Asked) -> None:
    here.call("session_save", markdown=TEXT, name="retries")
    said = here.refused("session_load", selector="retrys")
    assert "did you mean retries" in said
    assert "session_list" in said
    headings = here.refused("session_load", selector="retries", section="Nowhere")
    assert "Next steps" in headings


def test_guesses_that_mean_nothing_stay_what_they_are() -> None:
    assert guess.text([1]) == [1]
    assert guess.text(True) == "true"
    assert guess.number(1, 9, 5)("many") == "many"
    assert guess.number(1, 9, 5)(float("nan")) == 5
    assert guess.number(1, 9, 5)([1]) == [1]
    assert guess.titled("?", [("id", "!", "")]) == ""


# --- reading -------------------------------------------------------------------------------------


def test_a_load_tells_drift_and_claims(here: Asked) -> None:
    from tests.test_workspace import commit as advance  # noqa: PLC0415
    from tests.test_workspace import git  # noqa: PLC0415

    git(here.here.desk, "init", "-q", "-b", "main")
    git(here.here.desk, "remote", "add", "origin", "https://example.org/me/shop.git")
    advance(here.here.desk)
    here.call("session_save", markdown=TEXT)
    advance(here.here.desk)
    found = here.call("session_load")
    assert found["drift"] == ["1 new commit"]
    assert (found["verified"], found["unverified"]) == (1, 0)
    assert found["session"]["project"] == "shop"


def test_search_and_list(here: Asked) -> None:
    here.call("session_save", markdown=TEXT, name="retries", project="shop", status="open")
    here.call("session_save", markdown="# Other\n\nthing\n", project="else")
    (hit,) = here.call("session_search", query="again")["hits"]
    assert hit["session"]["name"] == "retries"
    assert "try again" in hit["snippet"]
    assert len(here.call("session_list", project="all")["sessions"]) == 2
    assert len(here.call("session_list", project="shop", limit="1", since="1d")["sessions"]) == 1
    assert "nothing to search for" in here.refused("session_search", query="?!")


def test_a_verify_tells_what_is_wrong_and_changes_nothing(here: Asked, remote: Path) -> None:
    """At most fifty findings, all of them counted; a look at the documents only when asked for."""
    here.call("session_save", markdown=TEXT, name="retries")
    sound = here.call("session_verify", thorough=None)
    assert (sound["sound"], sound["findings"], sound["sessions"]) == (True, [], 1)
    commit(remote, {f"sessions/broken/{n:02}.md": b"# T\n\n\xff\n" for n in range(60)})
    quick = here.call("session_verify")
    assert (quick["sound"], quick["quick"], quick["sessions"]) == (True, True, 61)
    found = here.call("session_verify", thorough="true")
    assert (found["sound"], found["quick"], found["count"]) == (False, False, 60)
    assert found["kinds"] == {"document-unreadable": 60}
    assert len(found["findings"]) == 50
    assert found["findings"][0]["where"] == "master"
    assert found["findings"][0]["mend"]
    assert here.call("session_verify", thorough="yes")["count"] == 60


def test_a_verify_says_which_tier_it_could_not_ask(machine: Machines) -> None:
    asked = Asked(machine(remote="http://127.0.0.1:9/none.git", master_push_seconds="1"))
    found = asked.call("session_verify")
    assert (found["sound"], found["count"]) == (False, 0)
    assert found["unchecked"][0].startswith("master: ")


def test_the_resource_is_the_document(here: Asked) -> None:
    id = here.call("session_save", markdown=TEXT, name="retries")["id"]
    read = here.ask(lambda client: client.read_resource(f"session://{id}"))
    assert read.contents[0].text.encode() == here.here.load(id)  # type: ignore[union-attr]
    said = here.failed(lambda client: client.read_resource("session://nothing"))
    assert "no session" in said


def test_the_prompt_brings_a_session_as_fenced_data(here: Asked) -> None:
    here.call("session_save", markdown=TEXT + "\n````\nx\n````\n", name="retries")
    found = here.ask(lambda client: client.get_prompt("continue_session", {"selector": "retries"}))
    text = found.messages[0].content.text  # type: ignore[union-attr]
    assert "\n`````markdown\n---\nid: " in text
    nothing = {"selector": "nothing"}
    said = here.failed(lambda client: client.get_prompt("continue_session", nothing))
    assert "no session" in said
    said = here.failed(lambda client: client.get_prompt("nothing"))
    assert said == "no prompt 'nothing'; there is continue_session"


def test_requests_at_once_do_not_meet(here: Asked) -> None:
    """Each has an archive of its own: SQLite's connections belong to one thread."""

    async def work(client: Client) -> int:
        async def save(number: int) -> None:
            result = await client.call_tool(
                "session_save", {"markdown": f"# N {number}\n\ntext\n", "name": f"n{number}"}
            )
            assert not result.is_error, result.content

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(save, number)
        listed = await client.call_tool("session_list", {})
        return len((listed.structured_content or {})["sessions"])

    assert here.ask(work) == 6
