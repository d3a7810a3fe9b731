"""The global invariant I0: what must hold at the end of every test that saved something."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from annoris import document, upkeep
from tests.support.githttp import files
from tests.support.machine import Machine


def holds(
    machines: Sequence[Machine],
    remote_repo: Path | None,
    bodies: Mapping[str, bytes],
    *,
    anywhere: Iterable[bytes] = (),
    exactly: bool = False,
) -> dict[str, bytes]:
    """Sync every machine and check that nothing is lost, doubled, left over or broken.

    Answers what every machine now loads: body by id.

    ``bodies``: by id, what each session's load must answer below the front matter.
    ``anywhere``: bodies that must be found in some session (the losing texts of conflicts).
    ``exactly``: there are no sessions but those of ``bodies``. ``remote_repo`` is None when
    the only machine is its own master.
    """
    for machine in machines:
        _sync(machine)
    for machine in machines:
        _sync(machine)  # the first machine now sees what the last one brought
    found = [_sessions(machine) for machine in machines]
    for machine, sessions in zip(machines, found, strict=True):
        name = machine.folder.name
        assert sessions.keys() == found[0].keys(), f"{name} lists other sessions"
        assert not exactly or sessions.keys() == bodies.keys(), f"{name} lists others or not all"
        for id, body in bodies.items():
            assert sessions.get(id) == body, f"{name}: {id} is not what was saved"
        missing = set(anywhere) - set(sessions.values())
        assert not missing, f"{name} lost {len(missing)} texts"
        _clean(machine)
    if remote_repo:
        _sound(remote_repo)
        _one_id_each(remote_repo)
    return found[0]


def _sync(machine: Machine) -> None:
    archive = machine.archive()
    try:
        report = upkeep.sync(archive)
    finally:
        archive.close()
    assert report.queued == 0, f"{machine.folder.name} still queues {report.queued}"


def _sessions(machine: Machine) -> dict[str, bytes]:
    """Every session that a machine lists, loaded: id → body."""
    archive = machine.archive()
    try:
        rows, stale = archive.sessions(everything=True, limit=None)
        assert not stale
        assert len({row.id for row in rows}) == len(rows)
        loaded = {row.id: archive.load(row.id).data for row in rows}
    finally:
        archive.close()
    return {id: document.split(data)[1] for id, data in loaded.items()}


def _clean(machine: Machine) -> None:
    """Nothing waits, nothing is half written, no lock of a killed git is left."""
    clone, outbox = machine.data / "clone.git", machine.data / "outbox"
    waiting = [path.name for path in outbox.glob("*.drafts")] if outbox.exists() else []
    assert not waiting, f"{machine.folder.name}: the outbox is not empty"
    locks = list(clone.rglob("*.lock"))
    assert not locks, f"{machine.folder.name}: locks are left: {locks}"
    _sound(clone)


def _one_id_each(repo: Path) -> None:
    """No two files on master carry the same id: a copy is a session of its own."""
    metas = [document.inspect(data) for path, data in files(repo).items() if path.endswith(".md")]
    ids = [meta.id for meta in metas if meta.id]
    assert len(set(ids)) == len(ids), f"files share an id: {sorted(ids)}"


def _sound(repo: Path) -> None:
    done = subprocess.run(
        ["git", f"--git-dir={repo}", "fsck", "--full", "--no-dangling", "--no-progress"],
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(repo), "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr.decode()
