"""How the tiers are, as status measures it and doctor judges it; real servers, each made wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
import redis

from annoris import condition
from annoris.emergency import Emergency
from annoris.envelope import new_key
from annoris.hot import Hot
from tests.support.machine import Machine, Ran
from tests.support.servers import Postgres, Valkey
from tests.support.tiers import Tiers, forget_failures
from tests.test_hot import role_url

Machines = Callable[..., Machine]
BODY = b"# Notes\n\nWhere the work stands.\n"


def tiers_of(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return {tier["tier"]: tier for tier in ran.json["status"]["tiers"]}


def findings(ran: Ran) -> dict[str, str]:
    """What doctor found of the caches, with its remedy; the server of the tests is no tidy one."""
    untidy = ("maxmemory is 0", "noeviction")
    return {
        found["what"]: found["mend"]
        for found in ran.json["findings"]
        if not any(word in found["what"] for word in untidy)
    }


# --- status --------------------------------------------------------------------------------------


def test_status_says_of_each_tier_how_it_is(make: Machines, tiers: Tiers) -> None:
    """Answers, sessions, the newest one, what is behind, the key that is in use."""
    here = make()
    here.save(BODY)
    here.sync()
    here.save(b"# Second\n\nmore\n")
    said = here.run("status", "--json")
    found = tiers_of(said)
    assert list(found) == ["hot", "emergency", "master", "clone"]
    assert all(tier["up"] and tier["milliseconds"] > 0 for tier in found.values())
    for tier in ("hot", "clone"):
        assert (found[tier]["sessions"], found[tier]["newest"]) == (2, "Second")
        assert found[tier]["saved"]
        assert found[tier]["behind"] == 0
    assert found["emergency"]["sessions"] == 0
    assert found["hot"]["key"] == said.json["status"]["key"] != ""


def test_status_says_how_far_behind_a_tier_is(make: Machines, tiers: Tiers) -> None:
    here = make()
    here.save(BODY)
    here.sync()
    tiers.set(hot=False)
    for number in range(3):
        here.save(b"# Dark %d\n" % number)
    assert tiers_of(here.run("status", "--json"))["emergency"]["newest"] == "Dark 2"
    tiers.set()
    forget_failures(here)
    found = tiers_of(here.run("status", "--json"))
    assert found["hot"]["behind"] == 3
    here.sync()
    assert tiers_of(here.run("status", "--json"))["hot"]["behind"] == 0


@pytest.mark.parametrize("tier", ["hot", "emergency"])
def test_status_says_since_when_a_tier_is_down_and_until_when_it_is_left_alone(
    make: Machines, tiers: Tiers, tier: str
) -> None:
    """The others are as they were; the second status does not even connect."""
    here = make()
    here.save(BODY)
    tiers.set(**{tier: False})
    found = tiers_of(here.run("status", "--json"))
    assert [name for name, state in found.items() if not state["up"]] == [tier]
    down = found[tier]
    assert "refused" in down["why"]
    assert down["failures"] == 1
    assert down["since"] < down["until"]
    proxy = getattr(tiers, tier)
    before = proxy.connections
    again = here.run("status")
    assert proxy.connections == before
    assert f"{tier}\tno" in again.text
    assert "left alone for" in again.text


def test_status_of_a_machine_without_master_and_caches_is_short(machine: Machines) -> None:
    here = machine()
    empty = here.run("status", "--json")
    assert [tier["tier"] for tier in empty.json["status"]["tiers"]] == ["clone"]
    here.save(BODY)
    found = tiers_of(here.run("status", "--json"))["clone"]
    assert (found["up"], found["sessions"], found["behind"]) == (True, 1, 0)


def test_status_with_a_master_that_is_away_goes_on(make: Machines, tiers: Tiers) -> None:
    here = make()
    here.save(BODY)
    tiers.set(master=False)
    found = tiers_of(here.run("status", "--json"))
    assert [name for name, state in found.items() if not state["up"]] == ["master"]
    assert found["master"]["why"]
    assert found["clone"]["behind"] is None


@pytest.mark.parametrize("tier", ["hot", "emergency"])
def test_status_waits_for_a_black_hole_no_longer_than_a_load(
    make: Machines, tiers: Tiers, tier: str
) -> None:
    """It is cut, told, and left alone from then on."""
    here = make(hot_seconds="2", hot_load_seconds="1")
    here.save(BODY)
    getattr(tiers, tier).mode = "blackhole"
    with closing(here.archive()) as archive:
        (standing,) = [one for one in condition.tiers(archive) if one.tier == tier]
        assert not standing.up
        assert "in time" in standing.why
        assert standing.until


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_finds_nothing_where_all_is_well(make: Machines, valkey: Valkey) -> None:
    here = make()
    here.save(BODY)
    here.sync()
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "volatile-ttl")
        try:
            checked = here.run("doctor")
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")
    assert (checked.code, checked.text) == (0, "")
    assert "all is well" in checked.err


def test_doctor_finds_a_redis_that_is_left_to_its_defaults(make: Machines) -> None:
    checked = make().run("doctor", "--json")
    assert checked.code == 9
    mends = {found["what"]: found["mend"] for found in checked.json["findings"]}
    assert any("maxmemory is 0" in what for what in mends)
    assert any("noeviction" in what for what in mends)
    assert any("maxmemory-policy volatile-ttl" in mend for mend in mends.values())


def wrong_urls(postgres: Postgres, valkey: Valkey, tiers: Tiers) -> dict[str, tuple[str, str, str]]:
    """Which setting, its value, and a word of the remedy, by a word of the finding."""
    at = f"127.0.0.1:{postgres.port}"
    return {
        "Connection refused": ("HOT_URL", "postgresql://postgres@127.0.0.1:1/x", "pg_isready"),
        'role "stranger"': ("HOT_URL", f"postgresql://stranger@{at}/postgres", "user"),
        'database "nosuch"': ("HOT_URL", f"postgresql://postgres@{at}/nosuch", "createdb"),
        "hot cache can't be read": ("HOT_URL", "postgresql://u:a@b@c/x", "%40"),
        "Error 111": ("EMERGENCY_URL", "redis://127.0.0.1:1", "redis-cli"),
        "username-password": (
            "EMERGENCY_URL", f"redis://:no@127.0.0.1:{valkey.port}", "password",
        ),
        "emergency cache can't be read": ("EMERGENCY_URL", "http://x", "redis://"),
    }  # fmt: skip


def test_doctor_finds_each_wrong_url_and_a_save_goes_on_all_the_same(
    make: Machines, tiers: Tiers, postgres: Postgres, valkey: Valkey
) -> None:
    """And a save with it answers 0: a cache never fails one."""
    for word, (name, url, remedy) in wrong_urls(postgres, valkey, tiers).items():
        here = make(word.split()[0].strip('"'))
        here.environment[f"ANNORIS_{name}"] = url
        checked = here.run("doctor", "--json")
        assert checked.code == 9
        ((what, mend),) = findings(checked).items()
        assert word in what
        assert remedy in mend
        saved = here.run("save", "-", stdin=BODY)
        assert saved.code == 0, saved.err


def test_doctor_names_the_grant_that_is_missing(
    make: Machines, tiers: Tiers, postgres: Postgres
) -> None:
    """For reading, and for writing where reading works; nothing is written by asking."""
    here = make()
    here.save(BODY)
    here.sync()
    poor = role_url(postgres, tiers.direct, "reader")
    here.environment["ANNORIS_HOT_URL"] = poor
    ((what, mend),) = findings(here.run("doctor", "--json")).items()
    assert "permission denied" in what
    assert "GRANT USAGE, CREATE ON SCHEMA" in mend
    with psycopg.connect(tiers.direct, autocommit=True) as db:
        db.execute("GRANT USAGE ON SCHEMA annoris TO reader")
        db.execute("GRANT SELECT ON ALL TABLES IN SCHEMA annoris TO reader")
    ((what, mend),) = findings(here.run("doctor", "--json")).items()
    assert "permission denied" in what
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in mend


@pytest.mark.parametrize(
    ("change", "said", "mend"),
    [
        ("UPDATE annoris.state SET version = 99", "newer Annoris", "upgrade"),
        ("UPDATE annoris.state SET version = -1", "older Annoris", "annoris sync"),
        ("DROP SCHEMA annoris CASCADE", "no tables yet", "annoris sync"),
        (
            r"UPDATE annoris.state SET master = E'git@example.org:other/place.git\nmain'",
            "another master: git@example.org:other/place.git",
            "ANNORIS_HOT_SCHEMA",
        ),
    ],
)
def test_doctor_finds_tables_that_are_not_for_this_annoris(
    make: Machines, tiers: Tiers, change: str, said: str, mend: str
) -> None:
    here = make()
    here.save(BODY)
    here.sync()
    with psycopg.connect(tiers.direct, autocommit=True) as db:
        db.execute(change)
    found = findings(here.run("doctor", "--json"))
    assert len(found) == 1
    assert said in next(iter(found))
    assert mend in next(iter(found.values()))


def test_doctor_finds_a_hot_cache_that_has_not_followed_for_long(
    make: Machines, tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make()
    here.save(BODY)
    here.sync()
    tiers.set(hot=False)
    for number in range(3):
        here.save(b"# Dark %d\n" % number)
    tiers.set()
    monkeypatch.setattr(condition, "_FAR_BEHIND", 2)
    with closing(here.archive()) as archive:
        (found,) = [one for one in condition.ailments(archive) if "behind" in one.what]
    assert "3 commits behind" in found.what
    assert found.mend == "annoris sync"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("git@github.com:me/notes.git", "https://github.com/me/notes", True),
        ("ssh://git@github.com:22/me/notes.git", "git@github.com:me/notes", True),
        ("https://github.com/me/notes/", "https://me@github.com/Me/Notes.git", True),
        ("git@github.com:me/notes.git", "git@github.com:me/other.git", False),
        ("git@github.com:me/notes.git", "git@gitlab.com:me/notes.git", False),
        ("/srv/notes.git", "/srv/other.git", False),
        ("/srv/notes.git", "/srv/notes", True),
    ],
)
def test_one_repository_may_be_written_in_several_ways(one: str, other: str, same: bool) -> None:
    found = [condition._repository(f"{remote}\nmain\n**/*.md") for remote in (one, other)]
    assert (found[0] == found[1]) is same
    assert condition._repository(f"{one}\nmain") != condition._repository(f"{one}\nother")


def test_doctor_finds_what_is_wrong_with_the_key(make: Machines, tiers: Tiers) -> None:
    """A wrong one, one that others may read, and none where the hot cache has seen one."""
    here = make()
    here.save(BODY)
    key = here.environment["ANNORIS_KEY"]
    here.environment["ANNORIS_KEY"] = new_key().text()
    ((what, mend),) = findings(here.run("doctor", "--json")).items()
    assert "is sealed with key" in what
    assert "annoris key import" in mend
    del here.environment["ANNORIS_KEY"]
    ((what, mend),) = findings(here.run("doctor", "--json")).items()
    assert "here is no key" in what
    assert "annoris key import" in mend
    file = here.data / "key"
    file.write_text(f"{key}\n")
    file.chmod(0o640)
    ((what, mend),) = findings(here.run("doctor", "--json")).items()
    assert "others than its owner" in what
    assert f"chmod 600 {file}" in mend
    file.chmod(0o600)
    assert findings(here.run("doctor", "--json")) == {}


def test_a_machine_that_has_no_key_yet_is_well(make: Machines) -> None:
    """It makes one at the first need."""
    here = make()
    del here.environment["ANNORIS_KEY"]
    with closing(here.archive()) as archive:
        assert not [one for one in condition.ailments(archive) if "key" in one.what]


@pytest.mark.parametrize("kind", [Hot, Emergency])
def test_doctor_finds_a_clock_that_is_far_off(
    make: Machines, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both servers live on this machine: without the change nothing is found."""
    here = make()
    here.save(BODY)
    here.sync()
    with closing(here.archive()) as archive:
        assert not [one for one in condition.ailments(archive) if "clock" in one.what]
        true = kind.clock  # type: ignore[attr-defined]
        monkeypatch.setattr(kind, "clock", lambda self: true(self) - 3600)
        (found,) = [one for one in condition.ailments(archive) if "clock" in one.what]
    assert "differ by 3600 s" in found.what or "differ by 3599 s" in found.what


def test_doctor_lets_a_tier_that_works_again_be_used_at_once(make: Machines, tiers: Tiers) -> None:
    here = make()
    here.save(BODY)
    tiers.set(hot=False, emergency=False)
    here.run("load")
    tiers.set()
    assert here.run("load", "--json").json["tier"] == "clone"
    here.run("doctor")
    assert here.run("load", "--json").json["tier"] == "hot"


def test_doctor_ends_by_the_limits_of_the_tiers(make: Machines, tiers: Tiers) -> None:
    """Both black holes: each is told, neither is waited for beyond its limit."""
    here = make(hot_seconds="1", hot_load_seconds="0.5")
    here.save(BODY)
    tiers.hot.mode = tiers.emergency.mode = "blackhole"
    started = time.monotonic()
    checked = here.run("doctor", "--json", timeout=60)
    assert time.monotonic() - started < 30
    found = findings(checked)
    assert len(found) == 2
    assert all("in time" in what for what in found)
