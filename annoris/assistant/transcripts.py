"""What a client recorded of a conversation, as items in order: said, called, answered, left out.

Pure: a reader takes one record after the other and holds what it needs to know of those before.
The formats are nobody's promise, so a reader takes what it knows, names what it does not, and
raises nothing, whatever a record holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["said", "call", "result", "note", "fact", "left"]


class Item(NamedTuple):
    """One thing in a conversation.

    ``name`` is who said it, which tool was called, which fact it is (title, likely-title, id,
    cwd, branch, remote, at), or what was left out.
    """

    kind: Kind
    name: str = ""
    text: str = ""
    at: str = ""  # as the client wrote it


Record = Mapping[str, Any]


class Reader(Protocol):
    """Turns the records of one conversation into items."""

    def read(self, record: Record) -> Iterator[Item]: ...


SUMMARY = "Summary at compaction"

# Records of Claude Code that say nothing of the conversation itself.
_CLAUDE_KEPT_OUT = frozenset(
    (
        "agent-color", "agent-name", "agent-setting", "attribution-snapshot",
        "content-replacement", "file-history-snapshot", "last-prompt", "marble-origami-commit",
        "marble-origami-snapshot", "mode", "permission-mode", "pr-link", "progress",
        "queue-operation", "speculation-accept", "tag", "task-summary", "worktree-state",
    )
)  # fmt: skip
_CLAUDE_TITLES = {"custom-title": "customTitle", "ai-title": "aiTitle", "summary": "summary"}
_CLAUDE_MACHINERY = r"\s*<(?:command-|local-command-|bash-|task-notification)"
_TAG = r"</?[a-z][a-z-]*>"


class ClaudeCode:
    """``~/.claude/projects/*/*.jsonl``; sub-agents' files go through the same reader."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._tools: dict[str, str] = {}

    def read(self, record: Record) -> Iterator[Item]:
        uuid, at = _text(record.get("uuid")), _text(record.get("timestamp"))
        if uuid and uuid in self._seen:
            yield Item("left", "repeated record")
            return
        self._seen.add(uuid)
        yield from _facts(
            at=at, id=record.get("sessionId"), cwd=record.get("cwd"), branch=record.get("gitBranch")
        )
        kind = _text(record.get("type"))
        if kind in ("user", "assistant"):
            yield from self._message(record, kind, at)
        elif kind in _CLAUDE_TITLES:
            yield self._title(record, kind)
        elif kind == "system":
            yield from _claude_event(record, at)
        elif kind == "attachment":
            yield from _claude_attachment(record.get("attachment"), at)
        else:
            yield Item("left", kind if kind in _CLAUDE_KEPT_OUT else _unknown("record", kind))

    def _title(self, record: Record, kind: str) -> Item:
        leaf = _text(record.get("leafUuid"))
        if leaf and leaf not in self._seen:
            return Item("left", "summary of another conversation")
        name = "title" if kind == "custom-title" else "likely-title"
        return Item("fact", name, _text(record.get(_CLAUDE_TITLES[kind])))

    def _message(self, record: Record, kind: str, at: str) -> Iterator[Item]:
        message = record.get("message")
        content = message.get("content") if isinstance(message, Mapping) else message
        who = {"user": "User", "assistant": "Assistant"}[kind]
        if record.get("isSidechain"):
            who = {"User": "Task of a sub-agent", "Assistant": "Sub-agent"}[who]
        elif record.get("isCompactSummary"):
            who = SUMMARY
        for block in _blocks(content):
            for item in self._block(block, who, at):
                if item.kind == "said" and record.get("isMeta"):
                    yield Item("left", "message of the client's own")
                else:
                    yield item

    def _block(self, block: Record, who: str, at: str) -> Iterator[Item]:
        kind = _text(block.get("type"))
        if kind == "text":
            text = _text(block.get("text"))
            if who == "User" and re.match(_CLAUDE_MACHINERY, text):
                yield Item("note", "", re.sub(_TAG, " ", text), at)
            else:
                yield Item("said", who, text, at)
        elif kind in ("thinking", "redacted_thinking"):
            yield Item("left", "thinking")
        elif kind.endswith("tool_use"):
            name = _text(block.get("name"))
            self._tools[_text(block.get("id"))] = name
            yield Item("call", name, _arguments(block.get("input")), at)
        elif kind.endswith("tool_result"):
            name = self._tools.pop(_text(block.get("tool_use_id")), "")
            failed = "failed: " if block.get("is_error") else ""
            yield Item("result", name, failed + _output(block.get("content")), at)
        elif kind in ("image", "document"):
            yield Item("note", "", f"[{kind}]", at)
        else:
            yield Item("left", _unknown("content", kind))


def _claude_event(record: Record, at: str) -> Iterator[Item]:
    kind, about = _text(record.get("subtype")), record.get("compactMetadata")
    if kind == "compact_boundary":
        known = about if isinstance(about, Mapping) else {}
        facts = [_text(known.get("trigger"))]
        facts += [f"{known['preTokens']} tokens before"] if known.get("preTokens") else []
        told = ", ".join(filter(None, facts))
        yield Item("note", "", f"The context was compacted here{told and f' ({told})'}", at)
    elif kind == "local_command":
        yield Item("note", "", re.sub(_TAG, " ", _text(record.get("content"))), at)
    else:
        yield Item("left", f"system record {kind}".strip())


def _claude_attachment(attachment: object, at: str) -> Iterator[Item]:
    known = attachment if isinstance(attachment, Mapping) else {}
    kind = _text(known.get("type"))
    if kind != "queued_command":
        yield Item("left", f"attachment {kind}".strip())
        return
    for block in _blocks(known.get("prompt")):
        if text := _text(block.get("text")):
            yield Item("said", "User", text, at)


_CODEX_CONTEXT = (
    r"\s*(?:<(?:environment_context|user_instructions|permissions|turn_aborted|INSTRUCTIONS|skill"
    r"|collaboration_mode|subagent_notification|user_shell_command)|# AGENTS\.md instructions)"
)
_CODEX_KEPT_OUT = ("ghost_snapshot", "compaction", "compaction_summary", "context_compaction")


class Codex:
    """``~/.codex/sessions/**/rollout-*.jsonl``, of today and of before the records were wrapped."""

    def __init__(self) -> None:
        self._tools: dict[str, str] = {}
        self._named = False

    def read(self, record: Record) -> Iterator[Item]:
        at, kind = _text(record.get("timestamp")), _text(record.get("type"))
        payload = record.get("payload")
        yield from _facts(at=at)
        if not isinstance(payload, Mapping):
            payload, kind = record, "response_item" if kind else "session_meta"
        if kind == "session_meta":
            yield from self._about(payload)
        elif kind == "response_item":
            yield from self._item(payload, at)
        elif kind == "compacted":
            yield Item("said", SUMMARY, _text(payload.get("message")), at)
        elif kind == "turn_context":
            yield from _facts(cwd=payload.get("cwd"))
        elif kind == "event_msg":  # what happened; what was said is there as items too
            yield Item("left", f"event {_text(payload.get('type'))}".strip())
        else:
            yield Item("left", _unknown("record", kind))

    def _about(self, payload: Record) -> Iterator[Item]:
        if "id" not in payload or self._named:  # a fork repeats where it comes from
            yield Item("left", "state of the client")
            return
        self._named = True
        git = payload.get("git")
        known = git if isinstance(git, Mapping) else {}
        yield from _facts(
            id=payload["id"],
            cwd=payload.get("cwd"),
            branch=known.get("branch"),
            remote=known.get("repository_url"),
        )

    def _item(self, item: Record, at: str) -> Iterator[Item]:
        kind = _text(item.get("type"))
        if kind == "message":
            yield from _codex_message(item, at)
        elif kind == "reasoning":
            yield Item("left", "thinking")
        elif kind.endswith("_output"):
            name = self._tools.pop(_text(item.get("call_id")), "")
            yield Item("result", name, _output(item.get("output")), at)
        elif kind.endswith("_call"):
            name = _text(item.get("name")) or kind.removesuffix("_call").replace("_", " ")
            self._tools[_text(item.get("call_id"))] = name
            wanted = (item.get(key) for key in ("arguments", "input", "action"))
            yield Item("call", name, _arguments(next(filter(None, wanted), "")), at)
        else:
            yield Item("left", kind if kind in _CODEX_KEPT_OUT else _unknown("item", kind))


def _codex_message(item: Record, at: str) -> Iterator[Item]:
    role = _text(item.get("role"))
    who = {"user": "User", "assistant": "Assistant"}.get(role)
    for block in _blocks(item.get("content")):
        text = _text(block.get("text"))
        if who is None:
            yield Item("left", f"message of the role {role}".rstrip())
        elif who == "User" and re.match(_CODEX_CONTEXT, text):
            yield Item("left", "message of the client's own")
        elif text:
            yield Item("said", who, text, at)
        elif "image" in _text(block.get("type")):
            yield Item("note", "", "[image]", at)
        else:
            yield Item("left", _unknown("content", _text(block.get("type"))))


class ChatGPT:
    """One conversation of an export: a tree of messages, of which the current branch is read."""

    def read(self, record: Record) -> Iterator[Item]:
        yield from _facts(
            id=record.get("conversation_id") or record.get("id"), title=record.get("title")
        )
        mapping = record.get("mapping")
        nodes = {key: node for key, node in _pairs(mapping) if isinstance(node, Mapping)}
        branch = _branch(nodes, _text(record.get("current_node")))
        for key in branch:
            message = nodes[key].get("message")
            if isinstance(message, Mapping):
                yield from _chatgpt_message(message)
        others = nodes.keys() - set(branch)
        for key in others:
            if isinstance(nodes[key].get("message"), Mapping):
                yield Item("left", "message on another branch")


def _branch(nodes: Mapping[str, Record], leaf: str) -> list[str]:
    """The keys from the root to the leaf; where that is unknown, to the newest message."""
    if leaf not in nodes:
        leaf = max(nodes, key=lambda key: _created(nodes[key]), default="")
    found: dict[str, None] = {}
    while leaf in nodes and leaf not in found:
        found[leaf] = None
        leaf = _text(nodes[leaf].get("parent"))
    return list(found)[::-1]


def _created(node: Record) -> float:
    message = node.get("message")
    when = message.get("create_time") if isinstance(message, Mapping) else None
    return float(when) if isinstance(when, (int, float)) else 0.0


def _chatgpt_message(message: Record) -> Iterator[Item]:
    at = _iso(_created({"message": message}))
    yield from _facts(at=at)
    author, about = message.get("author"), message.get("metadata")
    known = author if isinstance(author, Mapping) else {}
    role, name = _text(known.get("role")), _text(known.get("name"))
    if isinstance(about, Mapping) and about.get("is_visually_hidden_from_conversation"):
        yield Item("left", "message of the client's own")
        return
    for kind, text in _chatgpt_parts(message.get("content")):
        if kind == "left":
            yield Item("left", text)
        elif not text.strip():
            continue
        elif kind == "note":
            yield Item("note", "", text, at)
        elif role == "tool":
            yield Item("result", name, text, at)
        elif role == "assistant" and (to := _text(message.get("recipient"))) not in ("", "all"):
            yield Item("call", to, text, at)
        elif role in ("user", "assistant"):
            yield Item("said", role.title(), text, at)
        else:
            yield Item("left", f"message of the role {role}".rstrip())


_CHATGPT_KEPT_OUT = {
    "thoughts": "thinking", "reasoning_recap": "thinking",
    "user_editable_context": "context of the client", "model_editable_context":
    "context of the client",
}  # fmt: skip


def _chatgpt_parts(content: object) -> Iterator[tuple[str, str]]:
    """(what it is: text, note or left; the text) for each part of a message."""
    known = content if isinstance(content, Mapping) else {}
    kind = _text(known.get("content_type"))
    if kind in _CHATGPT_KEPT_OUT:
        yield "left", _CHATGPT_KEPT_OUT[kind]
        return
    parts = known.get("parts")
    texts = parts if isinstance(parts, list) else [known.get("text") or known.get("result")]
    for part in texts:
        if isinstance(part, Mapping):
            text = _text(part.get("text"))
            what = _text(part.get("content_type")).removesuffix("_asset_pointer") or "attachment"
            yield ("text", text) if text else ("note", f"[{what}]")
        elif isinstance(part, str):
            yield "text", part
        elif part is not None or not isinstance(parts, list):
            yield "left", _unknown("content", kind)


# What all of them have in common.


def _facts(**facts: object) -> Iterator[Item]:
    for name, value in facts.items():
        if isinstance(value, str) and value.strip():
            yield Item("fact", name, value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _pairs(value: object) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _unknown(what: str, kind: str) -> str:
    return f"unknown {what} {kind!r}" if kind else f"{what} without a type"


def _blocks(content: object) -> Iterator[Record]:
    """The blocks of a message, whose content may be a text, too."""
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, str):
            yield {"type": "text", "text": block}
        elif isinstance(block, Mapping):
            yield block
        elif block is not None:
            yield {}


_TELLING = ("command", "cmd", "file_path", "path", "pattern", "query", "url", "prompt", "skill")


def _arguments(value: object) -> str:
    """What a tool was called with: what tells most, else all of it."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _text(value)
    if isinstance(value, Mapping):
        for key in _TELLING:
            found = value.get(key)
            if isinstance(found, list) and all(isinstance(word, str) for word in found):
                found = " ".join(found)
            if isinstance(found, str) and found:
                return found
    return value if isinstance(value, str) else _plain(value)


def _output(value: object) -> str:
    """What a tool answered, as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_output(part) for part in value)
    if isinstance(value, Mapping):
        for key in ("text", "content", "output"):
            if isinstance(value.get(key), (str, list)):
                return _output(value[key])
        kind = _text(value.get("type"))
        return f"[{kind}]" if kind in ("image", "input_image") else _plain(value)
    return _plain(value)


def _plain(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _iso(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""
