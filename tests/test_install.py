"""Installers: only our entries come and go; the files stay their owner's, byte for byte."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annoris.assistant import edit
from annoris.assistant.clients import NAMES, client
from annoris.assistant.install import Record, carry_out, installed, plan
from annoris.errors import StorageError, UsageError
from tests.support.machine import Machine

COMMAND = ["/opt/annoris/bin/annoris"]

CLAUDE_STATE = """\
{
  "numStartups": 41,
  "mcpServers": {},
  "projects": {
    "/home/me/shop": {
      "allowedTools": []
    }
  },
  "oauthAccount": {"emailAddress": "me@example.org"}
}"""
CLAUDE_SETTINGS = """\
{
    "permissions": {"allow": ["Bash(ls:*)"]},
    "hooks": {
        "Stop": [
            {"matcher": "", "hooks": [{"type": "command", "command": "say done"}]}
        ],
        "PreToolUse": []
    }
}
"""
CODEX = """\
# my Codex
model = "o-large"   # the big one

[mcp_servers.files]
command = "npx"
args = ["-y", "files"]

[mcp_servers.files.env]
KEY = '''
[mcp_servers.annoris]
not a table'''

[profiles.fast]
model = "o-small"
"""
VSCODE = """\
// mine
{
\t"inputs": [], // nothing asked
\t"servers": {
\t\t"files": {
\t\t\t"type": "stdio", "command": "files", // here
\t\t}, // the last
\t\t/* end */
\t},
}
"""
FILES = {
    "claude-code": {".claude.json": CLAUDE_STATE, ".claude/settings.json": CLAUDE_SETTINGS},
    "codex": {".codex/config.toml": CODEX, ".codex/hooks.json": CLAUDE_SETTINGS},
    "cursor": {".cursor/mcp.json": '{"mcpServers":{"files":{"command":"files"}}}'},
    "claude-desktop": {".config/Claude/claude_desktop_config.json": '{\r\n  "a": 1\r\n}\r\n'},
    "vscode": {".config/Code/User/mcp.json": VSCODE},
}
MAIN = {name: next(iter(files)) for name, files in FILES.items()}


class Home:
    """A home folder with clients in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    def run(self, name: str, *, remove: bool = False, command: list[str] | None = None) -> bool:
        """Install or uninstall; whether anything changed."""
        found = client(name, command or COMMAND, {"HOME": str(self.folder)}, "linux")
        record = Record(str(self.folder / "data" / "installed.json"))
        steps = plan(found, record, remove=remove)
        carry_out(found, steps, record)
        return any(step.changes for step in steps)

    def installed(self, name: str) -> set[bool]:
        found = client(name, COMMAND, {"HOME": str(self.folder)}, "linux")
        return {installed(part, name) for part in found.parts}

    def tree(self) -> dict[str, bytes | None]:
        """Everything but our own record, folders too."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in self.folder.rglob("*")
            if "data" not in path.parts
        }


@pytest.fixture
def home(no_home: Path) -> Home:
    return Home(no_home)


@pytest.fixture(params=NAMES)
def furnished(request: pytest.FixtureRequest, home: Home) -> tuple[Home, str]:
    for name, text in FILES[request.param].items():
        home.write(name, text)
    return home, request.param


# --- in and out ----------------------------------------------------------------------------------


def test_install_twice_changes_once_and_uninstall_brings_back_every_byte(
    furnished: tuple[Home, str],
) -> None:
    home, name = furnished
    before = home.tree()
    assert home.run(name)
    assert home.installed(name) == {True}
    after = home.tree()
    assert not home.run(name)
    assert home.tree() == after
    assert home.run(name, remove=True)
    assert home.tree() == before
    assert not home.run(name, remove=True)


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_was_nothing_remains(name: str, home: Home) -> None:
    before = home.tree()
    assert home.run(name)
    assert home.installed(name) == {True}
    assert home.run(name, remove=True)
    assert home.tree() == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "\n", "{}", "{ }", "{\n}\n", '{"mcpServers": {}}'])
def test_an_empty_file_is_as_empty_afterwards(name: str, text: str, home: Home) -> None:
    home.write(MAIN[name], "" if name == "codex" else text)
    before = home.tree()
    assert home.run(name)
    assert home.installed(name) == {True}
    assert home.run(name, remove=True)
    assert home.tree() == before


def test_only_lines_are_added(furnished: tuple[Home, str]) -> None:
    """Keys, comments, order and indentation of others stay, but for a comma."""
    home, name = furnished
    before = home.tree()
    home.run(name)
    for file, text in home.tree().items():
        old = before.get(file)
        if not old or text is None or name == "cursor":  # which is one line
            continue
        rest = iter(text.decode().replace("{}", "{").split("\n"))
        for line in old.decode().replace("{}", "{").split("\n"):
            assert any(new.startswith(line.rstrip("\r,")) for new in rest), line


def test_what_a_client_wrote_since_stays_and_ours_goes(furnished: tuple[Home, str]) -> None:
    """A client that writes its file anew keeps our entry, and uninstall still finds it."""
    home, name = furnished
    home.run(name)
    path = home.folder / MAIN[name]
    if name == "codex":
        path.write_text("new = true\n" + path.read_text())
    else:
        value = edit.read_json(path.read_text(), comments=True)
        path.write_text(json.dumps({"new": True, **value}, indent=2))
    assert not home.run(name), "it is all there"
    assert home.run(name, remove=True)
    text = path.read_text()
    assert "annoris" not in text.replace("[mcp_servers.annoris]\nnot a table", "")
    assert "new" in text
    assert ("files" in text) == ("files" in FILES[name][MAIN[name]])
    if name == "claude-code":
        assert json.loads(text) == {"new": True, **json.loads(CLAUDE_STATE)}
    if name == "claude-desktop":
        assert json.loads(text) == {"new": True, "a": 1}


def test_an_outdated_entry_is_brought_up_to_date(furnished: tuple[Home, str]) -> None:
    """Another place of annoris; what a person added to the entry stays, and all of it goes."""
    home, name = furnished
    before = home.tree()
    home.run(name, command=["/old/annoris"])
    assert home.run(name)
    assert "/old/annoris" not in str(home.tree())
    assert home.installed(name) == {True}
    home.run(name, remove=True)
    assert home.tree() == before


def test_what_a_person_added_to_our_entry_stays_on_an_update(home: Home) -> None:
    home.run("cursor", command=["/old/annoris"])
    path = home.folder / ".cursor" / "mcp.json"
    value = json.loads(path.read_text())
    value["mcpServers"]["annoris"]["env"] = {"ANNORIS_PROJECT": "shop"}
    path.write_text(json.dumps(value))
    home.run("cursor")
    entry = json.loads(path.read_text())["mcpServers"]["annoris"]
    assert entry["env"] == {"ANNORIS_PROJECT": "shop"}
    assert entry["command"] == COMMAND[0]
    home.run("cursor", remove=True)
    assert not path.exists()


def test_codex_reads_what_was_written(home: Home) -> None:
    home.write(".codex/config.toml", CODEX)
    home.run("codex")
    servers = tomllib.loads((home.folder / ".codex/config.toml").read_text())["mcp_servers"]
    assert servers["annoris"] == {"command": COMMAND[0], "args": ["mcp", "--client", "codex"]}
    assert servers["files"]["env"]["KEY"] == "[mcp_servers.annoris]\nnot a table"


def test_every_hook_has_a_time_limit(home: Home) -> None:
    home.run("claude-code")
    hooks = json.loads((home.folder / ".claude/settings.json").read_text())["hooks"]
    assert set(hooks) == {"SessionStart", "Stop", "PreCompact", "PostCompact", "SessionEnd"}
    for (group,) in hooks.values():
        (entry,) = group["hooks"]
        assert 0 < entry["timeout"] <= 10
        assert entry["command"].startswith(f"{COMMAND[0]} hook ")


# --- refusals ------------------------------------------------------------------------------------


_WRONG = {
    "claude-code": (
        '{"a": 1', '{"a": 1,}', "[]", '{"a" 1}', '{"mcpServers": []}', "not json", '{"a": 1} // c',
        '{"mcpServers": {"annoris": {"command": "my own"}}}', "\ufeff[", "[" * 5000,
    ),
    "vscode": ('{"a": 1', '{"servers": 3}', '{"servers": {"annoris": "mine"}}', '{"a": 1} /* c'),
    "codex": ("x = ", "[mcp_servers", 'mcp_servers = { a = { command = "x" } }\n'),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in _WRONG.items() for text in texts]
)
def test_a_file_that_is_not_what_it_should_be_is_refused_untouched(
    name: str, text: str, home: Home
) -> None:
    home.write(MAIN[name], text)
    before = home.tree()
    with pytest.raises(UsageError, match="nothing was changed"):
        home.run(name)
    assert home.tree() == before


def test_a_skill_that_somebody_wrote_is_refused_and_one_that_was_changed_stays(home: Home) -> None:
    home.write(".cursor/skills/annoris/SKILL.md", "mine\n")
    with pytest.raises(UsageError, match="did not write"):
        home.run("cursor")
    (home.folder / ".cursor/skills/annoris/SKILL.md").unlink()
    home.run("cursor")
    home.write(".cursor/skills/annoris/SKILL.md", "ours, made mine\n")
    home.run("cursor", remove=True)
    assert (home.folder / ".cursor/skills/annoris/SKILL.md").read_text() == "ours, made mine\n"
    assert not (home.folder / ".cursor/mcp.json").exists()


def test_a_read_only_file_is_a_clear_error(home: Home) -> None:
    home.write(".claude.json", "{}")
    home.write(".claude/settings.json", "{}").chmod(0o444)
    before = home.tree()
    with pytest.raises(StorageError, match=r"settings\.json: is read-only; nothing was changed"):
        home.run("claude-code")
    assert home.tree() == before


def test_a_file_that_is_not_text_is_a_clear_error(home: Home) -> None:
    path = home.write(".cursor/mcp.json", "")
    path.write_bytes(b"{\xff}")
    with pytest.raises(UsageError, match="not UTF-8"):
        home.run("cursor")
    assert path.read_bytes() == b"{\xff}"


def test_a_link_stays_a_link_and_its_mode_stays(home: Home) -> None:
    real = home.write("dotfiles/mcp.json", "{}\n")
    real.chmod(0o640)
    (home.folder / ".cursor").mkdir()
    (home.folder / ".cursor/mcp.json").symlink_to(real)
    home.run("cursor")
    assert (home.folder / ".cursor/mcp.json").is_symlink()
    assert "annoris" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    home.run("cursor", remove=True)
    assert (home.folder / ".cursor/mcp.json").is_symlink()
    assert real.read_text() == "{}\n"


# --- as its user ---------------------------------------------------------------------------------


def test_dry_run_shows_the_diff_and_changes_nothing(machine: Callable[..., Machine]) -> None:
    here = machine()
    path = here.folder / ".claude.json"
    path.write_text(CLAUDE_STATE)
    shown = here.run("install", "claude-code", "--dry-run")
    assert shown.code == 0
    assert '+    "annoris": {' in shown.text
    assert "emailAddress" not in shown.text, "no more of the file than needed"
    assert path.read_text() == CLAUDE_STATE
    assert not (here.folder / ".claude").exists()


def test_install_doctor_uninstall(machine: Callable[..., Machine]) -> None:
    here = machine()
    done = here.run("install", "claude-code", "--json")
    assert [file["changed"] for file in done.json["files"]] == [True] * 3
    said = here.run("doctor")
    assert said.code == 0
    assert "claude-code is set up; it has not asked yet" in said.err
    settings = json.loads((here.folder / ".claude/settings.json").read_text())
    (group,) = settings["hooks"]["SessionStart"]
    command = group["hooks"][0]["command"].split()
    assert os.access(command[0], os.X_OK)
    assert here.run(*command[1:], stdin=b'{"session_id": "a"}').code == 0
    assert "hook answered " in here.run("doctor").err
    here.run(*command[1:], stdin=b"garbage")
    ill = here.run("doctor")
    assert ill.code == 9
    assert "the last hook failed" in ill.err
    (here.folder / ".claude/settings.json").write_text("{}")
    assert "does not start this annoris" in here.run("doctor").err
    assert here.run("uninstall", "claude-code").code == 0
    assert not (here.folder / ".claude.json").exists()


def test_an_unknown_client_names_the_known_ones(machine: Callable[..., Machine]) -> None:
    ran = machine().run("install", "emacs")
    assert ran.code == 2
    assert "claude-desktop" in ran.err


# --- the edits, by property ----------------------------------------------------------------------

_LEAVES = st.none() | st.booleans() | st.integers() | st.text()
_VALUES = (
    _LEAVES
    | st.lists(_LEAVES | st.lists(_LEAVES, max_size=2), max_size=3)
    | st.dictionaries(st.text(), _LEAVES, max_size=3)
)
_OBJECTS = st.dictionaries(st.text(min_size=1), _VALUES, max_size=4)
_INDENTS = st.sampled_from([None, 1, 2, 4, "\t"])


@given(_OBJECTS, _INDENTS, st.booleans(), _VALUES)
def test_a_key_that_is_put_is_there_and_can_be_taken_back(
    value: dict[str, Any], indent: Any, dos: bool, new: Any
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    text = text.replace("\n", "\r\n") if dos else text
    value.pop("servers", None)
    text = text if "servers" not in json.loads(text) else json.dumps(value, indent=indent)
    change = edit.put_json(text, ("servers", "ours"), new)
    after, undo = edit.applied(text, change)
    assert json.loads(after) == {**value, "servers": {"ours": new}}
    assert edit.applied(after, undo)[0] == text
    cut, _ = edit.applied(after, edit.drop_json(after, ("servers",)))
    assert json.loads(cut) == value


@given(st.lists(_VALUES, max_size=4), _INDENTS, st.data())
def test_an_item_that_is_dropped_takes_its_comma_along(
    items: list[Any], indent: Any, data: st.DataObject
) -> None:
    text = json.dumps({"list": items}, indent=indent)
    text, _ = edit.applied(text, edit.put_json(text, ("list", ""), {"mine": 1}))
    assert json.loads(text)["list"] == [*items, {"mine": 1}]
    index = data.draw(st.integers(0, len(items)))
    text, _ = edit.applied(text, edit.drop_json(text, ("list",), index))
    whole = [*items, {"mine": 1}]
    assert json.loads(text)["list"] == whole[:index] + whole[index + 1 :]


def test_comments_stay_where_they_are() -> None:
    """The golden form of a file with comments in every place."""
    after, undo = edit.applied(
        VSCODE, edit.put_json(VSCODE, ("servers", "ours"), {"a": 1}, comments=True)
    )
    added = '\n\t\t"ours": {\n\t\t\t"a": 1\n\t\t}'
    assert after == VSCODE.replace("// the last", f"// the last{added}")
    assert edit.applied(after, undo)[0] == VSCODE
    assert edit.applied(after, edit.drop_json(after, ("servers", "ours"), comments=True))[0] == (
        VSCODE.replace("}, // the last", "} // the last")
    )
