"""Settings: four sources, one order, and an error that names the place for everything wrong."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from annoris.errors import ConfigError
from annoris.settings import (
    AlertSettings,
    MasterSettings,
    SaveSettings,
    Settings,
    check_remote,
    default_path,
    load,
    write,
)

EXAMPLE = Path(__file__).parents[1] / "config.example.toml"
SECTIONS = {"master": MasterSettings, "save": SaveSettings, "alerts": AlertSettings}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_config_example_holds_every_key_with_its_default(tmp_path: Path) -> None:
    """The example is loaded as it is; what it says is what holds without it."""
    environ = {"HOME": str(tmp_path)}
    example, defaults = load(str(EXAMPLE), environ=environ), load(environ=environ)
    assert example.source == str(EXAMPLE)
    for name in ("project", "data_dir", *SECTIONS):
        assert getattr(example, name) == getattr(defaults, name)
    raw = tomllib.loads(EXAMPLE.read_text())
    assert raw.keys() == {item.name for item in fields(Settings)} - {"source"}
    for section, cls in SECTIONS.items():
        assert raw[section].keys() == {item.name for item in fields(cls)}


def test_each_source_wins_over_the_one_before(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = tmp_path / "desk"
    monkeypatch.chdir(desk)
    environ = {"HOME": str(tmp_path)}
    assert load(environ=environ).project == "default"
    config.write_text('project = "toml"\n')
    assert load(str(config), environ=environ).project == "toml"
    (desk / ".env").write_text("ANNORIS_PROJECT=dotenv\nOTHER=1\n")
    assert load(str(config), environ=environ).project == "dotenv"
    environ["ANNORIS_PROJECT"] = "environment"
    assert load(str(config), environ=environ).project == "environment"


def test_the_default_file_is_read_where_xdg_says(tmp_path: Path) -> None:
    for environ in ({"HOME": str(tmp_path)}, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}):
        path = Path(default_path(environ))
        path.parent.mkdir(parents=True)
        path.write_text('[master]\nbranch = "trunk"\n')
        found = load(environ={**environ, "ANNORIS_DATA_DIR": "/nowhere"})
        assert (found.master.branch, found.source) == ("trunk", str(path))


def test_a_file_named_by_the_environment_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(environ={"ANNORIS_CONFIG": str(tmp_path / "none.toml")})


def test_every_key_can_be_set_in_the_environment(tmp_path: Path) -> None:
    environ = {
        "HOME": str(tmp_path),
        "ANNORIS_DATA_DIR": "~/sessions",
        "ANNORIS_MASTER_REMOTE": "https://example.org/me/sessions.git",
        "ANNORIS_MASTER_BRANCH": "trunk",
        "ANNORIS_MASTER_INCLUDE": "**/*.md, notes/*.txt",
        "ANNORIS_MASTER_TOKEN": "t",
        "ANNORIS_MASTER_AUTHOR": "Ё <e@example.org>",
        "ANNORIS_MASTER_PUSH_SECONDS": "7",
        "ANNORIS_MASTER_FETCH_SECONDS": "8.5",
        "ANNORIS_MASTER_LOAD_SECONDS": "0.5",
        "ANNORIS_MASTER_FRESH_SECONDS": "1",
        "ANNORIS_SAVE_MAX_BYTES": "1000",
        "ANNORIS_SAVE_STRICT": "yes",
        "ANNORIS_SAVE_REQUIRED_SECTIONS": "Next,Status",
        "ANNORIS_SAVE_SCAN": "false",
        "ANNORIS_SAVE_ALLOW_SECRETS": "ab12",
    }
    assert load(environ=environ) == Settings(
        data_dir=os.path.join(os.environ["HOME"], "sessions"),
        master=MasterSettings(
            remote="https://example.org/me/sessions.git",
            branch="trunk",
            include=("**/*.md", "notes/*.txt"),
            token="t",
            author="Ё <e@example.org>",
            push_seconds=7.0,
            fetch_seconds=8.5,
            load_seconds=0.5,
            fresh_seconds=1.0,
        ),
        save=SaveSettings(1000, True, ("Next", "Status"), False, ("ab12",)),
    )


WRONG = {
    "unknown key": ('projct = "x"', r"projct: unknown key", "project"),
    "unknown key in a section": ("[save]\nmax_byte = 1", r"save\.max_byte: unknown", "max_bytes"),
    "unknown section": ('[mastr]\nremote = "x"', r"mastr: unknown key", ""),
    "a derived field": ('source = "x"', r"source: unknown key", ""),
    "text for a number": ('[save]\nmax_bytes = "9"', r"save\.max_bytes: must be a whole", ""),
    "a fraction for a whole": ("[save]\nmax_bytes = 9.5", r"must be a whole number", ""),
    "a truth for a number": ("[save]\nmax_bytes = true", r"must be a whole number", ""),
    "a number for a truth": ("[save]\nscan = 1", r"must be true or false", ""),
    "zero seconds": ("[master]\npush_seconds = 0", r"must be above zero", ""),
    "negative": ("[save]\nmax_bytes = -1", r"must be above zero", ""),
    "not a number": ("[master]\npush_seconds = nan", r"must be above zero", ""),
    "for ever": ("[master]\npush_seconds = inf", r"must be above zero", ""),
    "text for a list": ('[master]\ninclude = "*.md"', r"must be a list of texts", ""),
    "a list of numbers": ("[master]\ninclude = [1]", r"must be a list of texts", ""),
    "a value for a section": ("master = 1", r"\[master\] must be a table", ""),
    "no TOML": ("project = ", r"is not TOML", ""),
    "a key twice": ("project = 'a'\nproject = 'b'", r"is not TOML", ""),
    "a password in the URL": (
        '[master]\nremote = "https://me:x@example.org/r"',
        r"carries a credential",
        "ANNORIS_MASTER_TOKEN",
    ),
    "an option as the remote": ('[master]\nremote = "--upload-pack=x"', r"not a repository", ""),
    "a program as the remote": ('[master]\nremote = "ext::sh -c x"', r"remote", ""),
    "an unknown scheme": ('[master]\nremote = "ftp://example.org/r"', r"not supported", "ssh"),
    "an option as the branch": ('[master]\nbranch = "-f"', r"not a branch name", ""),
    "a refspec as the branch": ('[master]\nbranch = "a:b"', r"not a branch name", ""),
    "an empty branch": ('[master]\nbranch = ""', r"not a branch name", ""),
    "a branch with a line end": ('[master]\nbranch = "a\\nb"', r"not a branch name", ""),
    "a branch that git locks": ('[master]\nbranch = "a.lock"', r"not a branch name", ""),
    "a NUL in a path": ('data_dir = "a\\u0000b"', r"data_dir", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_the_place_and_what_is_expected(
    name: str, config: Path
) -> None:
    text, message, hint = WRONG[name]
    config.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load(str(config), environ={"HOME": "/nowhere"})
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("project = 'Ёж'\n".encode("cp1251"), r"is not UTF-8 \(byte 11\)"),
        ("project = 'x'\n".encode("utf-16"), r"is not UTF-8 \(byte 0\)"),
        (b"project = 'a\0b'\n", r"is not TOML"),
    ],
)
def test_a_file_in_another_encoding_is_refused(data: bytes, message: str, config: Path) -> None:
    config.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load(str(config), environ={"HOME": "/nowhere"})


def test_a_byte_order_mark_as_windows_editors_write_it_is_no_error(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbfproject = 'x'\n")
    assert load(str(config), environ={"HOME": "/nowhere"}).project == "x"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("ANNORIS_SAVE_MAX_BYTES", "many"),
        ("ANNORIS_SAVE_SCAN", "maybe"),
        ("ANNORIS_MASTER_PUSH_SECONDS", "1m"),
        ("ANNORIS_MASTER_PUSH_SECONDS", "-1"),
    ],
)
def test_a_wrong_value_in_the_environment_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load(environ={"HOME": "/nowhere", variable: text})


def test_a_folder_as_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load(str(tmp_path), environ={"HOME": "/nowhere"})


def test_a_dotenv_in_another_encoding_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("ANNORIS_PROJECT=Ёж\n".encode("cp1251"))
    with pytest.raises(ConfigError, match=r"\.env"):
        load(environ={"HOME": "/nowhere"})


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "git@github.com:me/sessions.git",
        "https://github.com/me/sessions",
        "ssh://git@example.org:2222/~me/sessions.git",
        "/srv/git/sessions with space.git",
        "file:///srv/git/sessions.git",
        "~/sessions.git",
    ],
)
def test_usual_remotes_are_accepted(remote: str) -> None:
    check_remote(remote)


def test_a_token_is_in_no_repr() -> None:
    settings = Settings(master=MasterSettings(token="very" + "secret"))
    assert "verysecret" not in repr(settings)


def test_write_keeps_every_other_line_and_the_file_is_private(config: Path) -> None:
    before = '# mine\nproject = "x"  # here\n\n[master]\n# the old one\nremote = "a"\n'
    config.write_text(before)
    write(str(config), {"master": {"remote": "b", "branch": "trunk"}, "save": {"strict": True}})
    after = config.read_text()
    assert after.startswith('# mine\nproject = "x"  # here\n\n[master]\n# the old one\n')
    found = load(str(config), environ={"HOME": "/nowhere"})
    assert (found.project, found.master.remote, found.master.branch) == ("x", "b", "trunk")
    assert found.save.strict
    assert config.stat().st_mode & 0o077 == 0
    assert [path.name for path in config.parent.glob("config*")] == ["config.toml"]


def test_write_makes_the_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    write(str(path), {"master": {"include": ("**/*.md",)}})
    assert load(str(path), environ={"HOME": "/nowhere"}).master.include == ("**/*.md",)
