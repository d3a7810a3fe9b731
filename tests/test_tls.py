"""Both caches through TLS: the right authority is believed, another one is refused and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from annoris.envelope import new_key
from tests.support.machine import Machine
from tests.support.servers import Valkey
from tests.support.tls import TlsProxy, authority

BODY = b"# Through TLS\n\nSealed twice.\n"


@dataclass
class Secure:
    """URLs of both caches behind TLS, less the file of the authority, and such files."""

    hot: str
    emergency: str
    right: Path
    wrong: Path
    proxies: tuple[TlsProxy, TlsProxy]


@pytest.fixture
def secure(tmp_path: Path, hot_url: str, valkey: Valkey) -> Iterator[Secure]:
    mine, other = authority(tmp_path / "mine"), authority(tmp_path / "other")
    parts = urlsplit(hot_url)
    with ExitStack() as stack:
        one = stack.enter_context(TlsProxy(("127.0.0.1", parts.port or 0), mine, postgres=True))
        two = stack.enter_context(TlsProxy(("127.0.0.1", valkey.port), mine, postgres=False))
        hot = f"postgresql://postgres@127.0.0.1:{one.port}{parts.path}?sslmode=verify-full&sslrootcert="
        emergency = f"{valkey.url_at(two.port).replace('redis:', 'rediss:')}?ssl_ca_certs="
        yield Secure(hot, emergency, mine.certificate, other.certificate, (one, two))


@pytest.fixture
def secured(machine: Callable[..., Machine], secure: Secure) -> Callable[..., Machine]:
    def made(name: str, hot: Path | None = None, emergency: Path | None = None) -> Machine:
        settings = {"hot_seconds": "20", "hot_load_seconds": "20"}
        if hot:
            settings["hot_url"] = secure.hot + quote(str(hot))
        if emergency:
            settings["emergency_url"] = secure.emergency + quote(str(emergency))
        here = machine(name, **settings)
        here.environment["ANNORIS_KEY"] = new_key().text()
        return here

    return made


def test_the_right_authority_is_believed(secured: Callable[..., Machine], secure: Secure) -> None:
    """verify-full for PostgreSQL, rediss:// with ssl_ca_certs for Redis."""
    here = secured("hot", hot=secure.right)
    assert here.run("save", "-", "--json", stdin=BODY).json["receipts"][0]["cached"] == "hot"
    assert here.run("load", "--from", "hot", "--json").json["text"].encode().endswith(BODY)
    there = secured("emergency", emergency=secure.right)
    saved = there.run("save", "-", "--json", stdin=BODY)
    assert saved.json["receipts"][0]["cached"] == "emergency"
    loaded = there.run("load", "--from", "emergency", "--json")
    assert loaded.json["text"].encode().endswith(BODY)
    assert all(proxy.handshakes for proxy in secure.proxies)


def test_another_authority_is_refused_and_named(
    secured: Callable[..., Machine], secure: Secure
) -> None:
    """The save goes on without the cache, says why, and doctor says what to do."""
    for name, files, option in (
        ("hot", {"hot": secure.wrong}, "sslrootcert"),
        ("emergency", {"emergency": secure.wrong}, "ssl_ca_certs"),
    ):
        here = secured(name, **files)
        saved = here.run("save", "-", stdin=BODY)
        assert saved.code == 0
        assert "certificate verify failed" in saved.err
        checked = here.run("doctor")
        assert checked.code == 9
        assert "certificate verify failed" in checked.err
        assert option in checked.err
    assert not any(proxy.handshakes for proxy in secure.proxies)


def test_a_server_without_tls_is_not_talked_to_in_the_clear(
    secured: Callable[..., Machine], secure: Secure, hot_url: str
) -> None:
    """verify-full at a server that offers none ends before anything is said."""
    here = secured("hot")
    here.environment["ANNORIS_HOT_URL"] = (
        f"{hot_url}?sslmode=verify-full&sslrootcert={quote(str(secure.right))}"
    )
    saved = here.run("save", "-", stdin=BODY)
    assert saved.code == 0
    assert "does not support SSL" in saved.err
