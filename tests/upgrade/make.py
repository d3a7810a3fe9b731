"""Makes the stored state of a machine of an earlier release: what a person's upgrade finds.

    python -m tests.upgrade.make CHECKOUT NAME

runs the annoris of ``CHECKOUT`` (a work tree of an earlier commit) against a real remote,
PostgreSQL and Valkey, and writes ``tests/upgrade/NAME.tar.gz``:

``home/``         the person's home: configuration, key, clone, outbox, catalog, notes
``remote.git/``   master
``hot.sql``       the schema of the hot cache as pg_dump writes it
``emergency.json``  what Redis held, as DUMP gives it, base64
``expected.json``  by id the documents on master, and the bodies that waited
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import redis

from tests.support.githttp import GitServer
from tests.support.servers import Postgres, Valkey

HERE = Path(__file__).parent
REMOTE = "https://git.example/harbour/sessions.git"  # where insteadOf leads is the test's affair
REFUSED = b"push me not"

_DOCUMENTS = {
    "plan.md": b"# Plan\n\nFirst the quay, then the crane.\n",
    "notes.md": "# Заметки\n\nПроверить насос, ёмкость и шланг.\n".encode(),
    "windows.md": b"# Windows\r\n\r\nEvery line ends in two bytes.\r\n",
    "front.md": b"---\ntags: [crane, 'quay: 2']\nname: front\n---\n# Front matter\n\n---\n\nno end",
    "gone.md": b"# Gone\n\nThis one is deleted again.\n",
}


class Old:
    """The earlier annoris on its machine."""

    def __init__(self, checkout: Path, home: Path, **env: str) -> None:
        self.checkout, self.home, self.desk = checkout, home, home / "desk"
        self.desk.mkdir(parents=True)
        self.env = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(checkout),
            "GIT_CONFIG_NOSYSTEM": "1",
            "ANNORIS_MASTER_FRESH_SECONDS": "0.001",
            **env,
        }

    def __call__(self, *words: str, code: int = 0) -> Any:
        out = self.plain(*words, "--json", code=code)
        return json.loads(out) if out else {}

    def plain(self, *words: str, code: int = 0) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "annoris.cli", *words],
            cwd=self.desk, env=self.env, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode != code:
            raise SystemExit(f"{words}: {done.returncode}, {done.stderr.decode()}{done.stdout!r}")
        return done.stdout

    def write(self, name: str, data: bytes) -> str:
        (self.desk / name).write_bytes(data)
        return name


def main(checkout: Path, name: str) -> None:
    with (
        tempfile.TemporaryDirectory() as there,
        GitServer(Path(there) / "server") as server,
        Postgres(Path(there) / "postgres") as postgres,
        Valkey(Path(there) / "valkey") as valkey,
    ):
        hot = postgres.create_database("old")
        home = Path(there) / "home"
        annoris = Old(
            checkout, home, ANNORIS_HOT_URL=hot, ANNORIS_EMERGENCY_URL=valkey.url,
            ANNORIS_HOT_SECONDS="20",
        )  # fmt: skip
        expected = _live(annoris, server, postgres)
        kept = {
            "hot.sql": _pg_dump(postgres, hot),
            "emergency.json": _redis_dump(valkey),
            "expected.json": json.dumps(expected, indent=1, ensure_ascii=False).encode(),
        }
        server.allow_all()
        (server.repo / "hooks" / "pre-receive").unlink()
        (home / ".gitconfig").unlink()
        with tarfile.open(HERE / f"{name}.tar.gz", "w:gz", compresslevel=9) as tar:
            tar.add(home, "home", filter=_worth)
            tar.add(server.repo, "remote.git", filter=_worth)
            for member, data in kept.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def _live(annoris: Old, server: GitServer, postgres: Postgres) -> dict[str, Any]:
    """A few days of work, all told; answers what an upgrade must find."""
    settings = annoris.home / ".config" / "annoris"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text(
        f'project = "harbour"\n\n[master]\nremote = "{REMOTE}"\nauthor = "Ada <ada@example.org>"\n'
        "\n[hot]\nretention_days = 400\n\n[save]\nrequired_sections = []\n"
    )
    _lead(annoris, server.url)
    for name, data in _DOCUMENTS.items():
        annoris("save", annoris.write(name, data), "--name", name.removesuffix(".md"))
    annoris("save", annoris.write("other.md", b"# Other\n"), "--project", "crane")
    edited = _DOCUMENTS["plan.md"] + b"\nThen the road.\n"
    annoris("save", annoris.write("plan.md", edited), "--name", "plan")
    annoris("delete", "gone")
    annoris("load", "notes")
    annoris("sync")
    if (annoris.checkout / "annoris" / "dumps.py").exists():
        annoris("dump")
    postgres.stop()
    annoris("save", annoris.write("emergency.md", b"# While PostgreSQL was down\n"))
    master = {
        row["id"]: annoris.plain("load", row["id"]).decode()
        for row in annoris("list", "--all")["sessions"]
    }
    server.refuse_content(REFUSED)
    annoris("save", annoris.write("aside.md", b"# Aside\n\n" + REFUSED + b"\n"), code=10)
    _lead(annoris, "http://127.0.0.1:9/sessions.git")
    waiting = {
        receipt["id"]: data.decode()
        for data in (b"# Waiting\n", "# Ждёт\n".encode())
        for receipt in annoris("save", annoris.write("waits.md", data), code=75)["receipts"]
    }
    again = edited + b"\nAnd the wall.\n"
    receipt = annoris("save", annoris.write("plan.md", again), "--name", "plan", code=75)
    waiting[receipt["receipts"][0]["id"]] = again.decode()
    (annoris.desk / "waits.md").unlink()
    return {"master": master, "waiting": waiting}


def _worth(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if entry.name.endswith(".sample") else entry


def _lead(annoris: Old, where: str) -> None:
    config = annoris.home / ".gitconfig"
    config.write_text(f'[url "{where}"]\n\tinsteadOf = {REMOTE}\n')


def _pg_dump(postgres: Postgres, url: str) -> bytes:
    postgres.start()
    program = str(Path(postgres.program).with_name("pg_dump"))
    command = [program, "--no-owner", "--no-privileges", "--schema=annoris", "--inserts", url]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def _redis_dump(valkey: Valkey) -> bytes:
    with redis.Redis.from_url(valkey.url) as client:
        found = {key: client.dump(key) for key in client.keys()}  # noqa: SIM118
    coded = {key.decode(): base64.b64encode(value).decode() for key, value in found.items()}
    return json.dumps(coded, indent=1).encode()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
