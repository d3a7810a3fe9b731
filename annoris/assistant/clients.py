"""The clients of assistants: which files each has, and what Annoris puts into them.

Places and forms are those that the clients document, as of November 2026.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from annoris.assistant.edit import Path
from annoris.dataclass import dataclass

Format = Literal["json", "jsonc", "toml", "whole"]

# What each hook may take, in seconds. They answer in a fraction of one, but for the start,
# which asks master; the end of a session has 1.5 s in all, where nothing more is asked for.
_CLAUDE_HOOKS = {
    "SessionStart": ("session-start", 10),
    "Stop": ("stop", 5),
    "PreCompact": ("pre-compact", 5),
    "PostCompact": ("post-compact", 5),
    "SessionEnd": ("session-end", 5),
}
_CODEX_HOOKS = {key: _CLAUDE_HOOKS[key] for key in _CLAUDE_HOOKS if key != "SessionEnd"}


@dataclass(frozen=True, slots=True)
class Entry:
    """What is put at ``path``; a path that ends with "" is a list, to which it is added."""

    path: Path
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a client: entries in it, or for ``whole`` the text that it is."""

    file: str
    format: Format
    entries: tuple[Entry, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    parts: tuple[Part, ...]
    then: str  # what a person does next


def client(name: str, command: Sequence[str], env: Mapping[str, str], system: str) -> Client:
    """A client by its name. ``command`` starts annoris; ``system`` is as sys.platform says.

    Raises KeyError for a name that is none.
    """
    home = os.path.expanduser(env.get("HOME") or "~")
    config = env.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    if system == "darwin":
        config = os.path.join(home, "Library", "Application Support")
    return _CLIENTS[name](list(command), env, home, config)


def _claude_code(command: list[str], env: Mapping[str, str], home: str, _: str) -> Client:
    folder = env.get("CLAUDE_CONFIG_DIR") or os.path.join(home, ".claude")
    state = folder if env.get("CLAUDE_CONFIG_DIR") else home
    server = {"type": "stdio", **_server("claude-code", command)}
    return Client(
        "claude-code",
        (
            Part(
                os.path.join(state, ".claude.json"), "json", (Entry(("mcpServers", NAME), server),)
            ),
            Part(
                os.path.join(folder, "settings.json"),
                "json",
                _hooks("claude-code", command, _CLAUDE_HOOKS),
            ),
            _skill(folder),
        ),
        "start a new session in Claude Code",
    )


def _codex(command: list[str], env: Mapping[str, str], home: str, _: str) -> Client:
    folder = env.get("CODEX_HOME") or os.path.join(home, ".codex")
    server = Entry(("mcp_servers", NAME), _server("codex", command))
    return Client(
        "codex",
        (
            Part(os.path.join(folder, "config.toml"), "toml", (server,)),
            Part(
                os.path.join(folder, "hooks.json"), "json", _hooks("codex", command, _CODEX_HOOKS)
            ),
            _skill(os.path.join(home, ".agents")),
        ),
        "start Codex and trust the hooks there: /hooks",
    )


def _cursor(command: list[str], _: Mapping[str, str], home: str, __: str) -> Client:
    folder = os.path.join(home, ".cursor")
    server = Entry(("mcpServers", NAME), _server("cursor", command))
    return Client(
        "cursor",
        (Part(os.path.join(folder, "mcp.json"), "jsonc", (server,)), _skill(folder)),
        "restart Cursor",
    )


def _claude_desktop(command: list[str], _: Mapping[str, str], __: str, config: str) -> Client:
    file = os.path.join(config, "Claude", "claude_desktop_config.json")
    server = Entry(("mcpServers", NAME), _server("claude-desktop", command))
    return Client("claude-desktop", (Part(file, "json", (server,)),), "restart Claude Desktop")


def _vscode(command: list[str], _: Mapping[str, str], home: str, config: str) -> Client:
    file = os.path.join(config, "Code", "User", "mcp.json")
    server = Entry(("servers", NAME), {"type": "stdio", **_server("vscode", command)})
    return Client(
        "vscode",
        (Part(file, "jsonc", (server,)), _skill(os.path.join(home, ".copilot"))),
        "start the server in VS Code: MCP: List Servers",
    )


NAME = "annoris"
_CLIENTS = {
    "claude-code": _claude_code,
    "codex": _codex,
    "cursor": _cursor,
    "claude-desktop": _claude_desktop,
    "vscode": _vscode,
}
NAMES = tuple(_CLIENTS)


def _server(name: str, command: list[str]) -> dict[str, Any]:
    return {"command": command[0], "args": [*command[1:], "mcp", "--client", name]}


def _hooks(
    name: str, command: list[str], hooks: Mapping[str, tuple[str, int]]
) -> tuple[Entry, ...]:
    return tuple(
        Entry(
            ("hooks", event, ""),
            {
                "hooks": [
                    {
                        "type": "command",
                        "command": shlex.join([*command, "hook", ours, "--client", name]),
                        "timeout": seconds,
                    }
                ]
            },
        )
        for event, (ours, seconds) in hooks.items()
    )


def _skill(folder: str) -> Part:
    return Part(os.path.join(folder, "skills", NAME, "SKILL.md"), "whole", text=SKILL)


SKILL = """\
---
name: annoris
description: Save and restore the state of work between conversations. Use when the user asks to \
save a session, continue earlier work, or look up what was decided, and before a context runs out.
---

# Annoris: the state of work, kept on the user's own git repository

A *session* is one Markdown document that says where a piece of work stands. The tools of the MCP
server `annoris` save and load sessions; without them the same is `annoris save FILE`,
`annoris load`, `annoris list`, `annoris search WORDS` in a shell.

## Continuing

- `session_load` without arguments brings the newest session of the project of this folder.
- Read what it says about drift: commits since, files that are gone or changed. What it says of
  files may no longer hold; look before relying on it.
- A session whose status is `captured` was recorded by a hook; nobody checked it.

## Saving

- Write the whole document, so that somebody who knows nothing of this conversation can go on.
- Begin with `# Title` and a line `**Status:** …`; then what was done, what was decided and why,
  what is open, and the next step. Name files by path and commits by hash.
- Mark a statement that you checked `[verified: how]`, one that you did not `[unverified]`.
- Leave out tokens, passwords and keys: a document with one is refused.
- To go on in a session that was loaded, give `session_save` the same `name`, or keep the front
  matter, and pass the `revision` as `expected_revision`.
- The answer says what happened. `master`: it is on the user's repository. `queued`: safe on this
  machine, not there yet. `conflict`: somebody saved meanwhile, and both texts are kept. An error:
  nothing was saved; it names the line and what to do.
"""
