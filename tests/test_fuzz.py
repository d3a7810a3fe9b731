"""Whatever comes in, a parser answers or says what is wrong; it never breaks."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annoris import gitcmd
from annoris import settings as configuration
from annoris.emergency import _cached
from annoris.errors import AnnorisError, ConfigError, StorageError
from annoris.follow import project_file
from annoris.layout import scope_in
from annoris.outbox import Outbox
from annoris.server import tokens
from annoris.server.problems import Problem
from annoris.server.webhooks import meaning
from tests.support.fuzz import examples

some = settings(max_examples=examples(60), deadline=None)

DEEP = [b"x = " + b"[" * 20_000, b'{"ref":' + b"[" * 100_000, b"x = " + b"{a=" * 20_000]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    ["[master]", "remote", "=", '"x"', "1", "[[token]]", "\n", "[", "]", "{", "}", "sha256", "id",
     "name", "scope", "true", "1e999", "-inf", "2026-11-24", "'''", "\\u0000", "was", "version",
     "target_revenue", "ANNORIS", "#", "§", "\x00"]
)  # fmt: skip
TOML = st.binary(max_size=200) | st.lists(WORDS, max_size=30).map(
    lambda words: " ".join(words).encode()
)


@some
@given(TOML)
def test_a_configuration_is_read_or_refused(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(text)
        with contextlib.suppress(ConfigError):
            configuration.load(str(path), environ={"HOME": folder})


@some
@given(st.dictionaries(st.sampled_from([
    "ANNORIS_PROJECT", "ANNORIS_MASTER_REMOTE", "ANNORIS_MASTER_INCLUDE", "ANNORIS_HOT_SECONDS",
    "ANNORIS_SAVE_MAX_BYTES", "ANNORIS_ENCRYPTION_SCOPE", "ANNORIS_ALERTS_QUIET", "REDIS_URL",
    "ANNORIS_SAVE_STRICT", "PORT",
]), st.text(st.characters(blacklist_characters="\0"), max_size=30)))  # fmt: skip
def test_an_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        configuration.load(environ={"HOME": "/nowhere", **environ})


@some
@given(TOML)
def test_files_of_projects_tokens_and_the_layout_are_read_or_refused(text: bytes) -> None:
    project_file("projects/x.toml", text)
    for parse in (tokens._parsed, scope_in):
        with contextlib.suppress(ConfigError):
            parse(text)


@some
@given(
    st.sampled_from(["push", "ping", "", "issues"]),
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"ref": value, "deleted": value}).encode())
    | st.binary(max_size=60).map(lambda data: b"payload=" + data),
)
def test_a_delivery_means_something_or_is_refused(event: str, raw: bytes) -> None:
    with contextlib.suppress(Problem):
        assert meaning(event, raw, "main") in {"pong", "sync", "ignored"}


SAID = st.lists(
    st.sampled_from([
        "fatal: ", "remote: ", "error: ", "GH013", "GH001", "path: a.md:3", "File x is 120.00 MB",
        "! [rejected]", "(fetch first)", "hook declined", "Authentication failed", "not found",
        "No space left on device", "\n", "couldn't find remote ref main", "\x1b[K",
    ]) | st.text(max_size=12),
    max_size=12,
)  # fmt: skip


@some
@given(SAID, SAID, st.integers(-1, 255))
def test_whatever_git_says_is_one_error_of_ours(out: list[str], err: list[str], code: int) -> None:
    result = gitcmd.Result(code, "".join(out).encode(), "".join(err))
    error = gitcmd.refusal(result, "https://x/y.git", "main")
    assert isinstance(error, AnnorisError)
    assert error.message


@some
@given(
    st.binary(max_size=20),
    JSON.map(lambda value: json.dumps(value).encode()) | st.binary(),
    st.binary(max_size=50),
)
def test_a_value_of_redis_is_read_or_said_to_be_damaged(
    position: bytes, meta: bytes, content: bytes
) -> None:
    with contextlib.suppress(StorageError):
        _cached("id", [position, meta, content])


@some
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode() + b"\n"))
def test_a_file_of_the_outbox_is_read_or_said_to_be_damaged(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "000000000001-00000000.drafts"
        path.write_bytes(data)
        drafts, damaged = Outbox(folder).read()
        assert drafts == [] or damaged == []
        assert damaged in ([], [str(path)])


@pytest.mark.parametrize("text", DEEP, ids=["array", "JSON", "table"])
def test_what_is_nested_beyond_measure_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text)
    project_file("projects/x.toml", text)
    with contextlib.suppress(Problem):
        meaning("push", text, "main")
    with pytest.raises(StorageError):
        _cached("id", [b"1", text, b""])
    reads: list[Any] = [
        lambda: configuration.load(str(path), environ={"HOME": "/nowhere"}),
        lambda: tokens._parsed(text),
    ]
    for read in reads:
        with pytest.raises(ConfigError):
            read()
