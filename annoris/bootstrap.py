"""The only wiring: settings to an archive."""

from __future__ import annotations

import os
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from annoris.archive import Archive
from annoris.breaker import Breaker
from annoris.catalog import Catalog
from annoris.errors import KeyProblem, RemoteUnreachable, UsageError
from annoris.layout import Layout, Plain, Sealed
from annoris.master import Master
from annoris.model import Deadline, SetUp
from annoris.outbox import Outbox
from annoris.settings import (
    EncryptionSettings,
    MasterSettings,
    Settings,
    check_remote,
    check_scope,
    write,
)

if TYPE_CHECKING:
    from annoris.envelope import KeyRing
    from annoris.join import Joined
    from annoris.keys import Rotation


def open_archive(settings: Settings, *, here: bool = True) -> Archive:
    """An archive over this machine's data folder. Nothing is asked of the network yet.

    ``here``: the folder that one stands in may name the project.
    """
    return Archive(
        settings=settings,
        master=Master(settings.at("clone.git"), settings.master, layout_of(settings)),
        catalog=Catalog(settings.at("catalog.sqlite"), text=settings.catalog.text),
        outbox=Outbox(settings.at("outbox")),
        breaker=Breaker(settings.at("breaker.json"), changed=partial(_note_tier, settings)),
        here=here,
    )


def _note_tier(settings: Settings, tier: str, why: str) -> None:
    """Keep for the next sync that a tier went down, or came back; nothing is sent now."""
    if settings.alerts.urls:
        from annoris.alerts import Alerts  # noqa: PLC0415
        from annoris.events import of_tier  # noqa: PLC0415

        Alerts(settings).note([of_tier(tier, why)])


def layout_of(settings: Settings, scope: str = "") -> Layout:
    """How files lie on master by the settings, or with another encryption.scope."""
    kind = Sealed if (scope or settings.encryption.scope) == "everything" else Plain

    def keys(first: bool) -> KeyRing:
        from annoris import envelope  # noqa: PLC0415

        path = settings.at("key")
        if settings.key or os.path.lexists(path):
            return envelope.load_ring(path, settings.key)
        if first:
            os.makedirs(settings.data_dir, mode=0o700, exist_ok=True)
            return envelope.new_key_file(path)
        raise KeyProblem(
            f"master is sealed, and there is no key here: {path} does not exist",
            hint="on a machine that has it: annoris key export; here: annoris key import, "
            "or set ANNORIS_KEY",
        )

    return kind(settings.master.include, keys)


def rotate(settings: Settings) -> Rotation:
    """Seal everything under a new key: master, where it is sealed, and the hot cache.

    Raises as ``keys.rotate``, Unavailable when master does not answer, and Locked while another
    rotation is under way on this machine.
    """
    from annoris import keys, lock  # noqa: PLC0415

    busy = "another rotation is running on this machine"
    with lock.hold(settings.at("rotate.lock"), Deadline(0.3), busy):
        if settings.encryption.scope != "everything":
            return keys.rotate(settings)
        return _rotate_all(settings)


def _rotate_all(settings: Settings) -> Rotation:
    from annoris import convert, envelope, keys  # noqa: PLC0415

    with closing(open_archive(settings)) as archive:
        archive.look(fresh=True)
        archive.must_fit()
        layout = archive.master.layout
        used = layout.key_id if isinstance(layout, Sealed) else ""
        ring = envelope.load_ring(settings.at("key"), settings.key)
        deadline = Deadline(settings.master.push_seconds * 5)
        return keys.rotate(
            settings,
            behind=used not in ("", ring.current.id),
            reseal=lambda: convert.reseal(archive.follower, deadline),
        )


def set_up(
    settings: Settings,
    path: str,
    *,
    remote: str = "",
    branch: str = "",
    include: tuple[str, ...] = (),
    move: bool = False,
    scope: str = "",
    convert: bool = False,
) -> SetUp:
    """Make the data folder, and put master at ``remote`` with all that is here.

    ``scope``: the encryption.scope of this machine from now on; ``convert`` gives master the
    form that belongs to it, where it has the other one. The configuration at ``path`` is
    written last, when everything before it worked. Raises ScopeMismatch when this machine and
    master do not fit and ``convert`` is not set.
    """
    scope = scope or settings.encryption.scope
    check_scope(scope)
    check_remote(remote)
    deadline = Deadline(settings.master.push_seconds * 5)
    new = _new_master(settings, _absolute(remote), branch, include, move=move)
    with closing(open_archive(settings)) as previous:
        previous.master.create()
        before = previous.master.tip()
    if remote:
        probe = Master(settings.at("clone.git"), new)
        try:
            found = probe.branches(deadline)
        except RemoteUnreachable as error:
            told = f"{error.message}; nothing was changed"
            raise RemoteUnreachable(told, hint="check the address, then run it again") from error
        new = replace(new, branch=_branch(branch, new, *found))
    target = replace(settings, master=new, encryption=EncryptionSettings(scope))
    with closing(open_archive(target)) as archive:
        joined = _bring(archive, before, deadline, convert=convert)
        archive.follower.refresh()
        _write_down(path, settings, target)
        return _done(archive, joined, path)


def _new_master(
    settings: Settings, remote: str, branch: str, include: tuple[str, ...], *, move: bool
) -> MasterSettings:
    """Where master will be: as asked for, else as it was."""
    old = settings.master
    if remote and old.remote not in ("", remote) and not move:
        raise UsageError(
            f"this machine already saves to {old.remote}",
            hint=f"to take everything along: annoris init --remote {remote} --move",
        )
    return replace(
        old,
        remote=remote or old.remote,
        include=include or old.include,
        branch=branch or old.branch,
    )


def _done(archive: Archive, joined: Joined, path: str) -> SetUp:
    from annoris.sync import unreadable  # noqa: PLC0415

    master, scope = archive.master, archive.settings.encryption.scope
    markdown = master.tree(master.tip(), lambda name: name.endswith(".md"))
    adoptable = master.remote and scope == "caches"
    return SetUp(
        master=master.remote or master.folder,
        branch=master.branch,
        sessions=archive.catalog.count(),
        brought=joined.brought,
        others=sum(not master.included(name) for name in markdown) if adoptable else 0,
        config=path,
        scope=scope,
        converted=joined.converted,
        history=joined.history,
        problems=tuple(unreadable(archive)),
    )


def _bring(archive: Archive, here: str, deadline: Deadline, *, convert: bool) -> Joined:
    """Make the archive's master the one of this machine, with all that is ``here``."""
    from annoris import convert as form  # noqa: PLC0415
    from annoris.join import Joined, join  # noqa: PLC0415

    master, settings = archive.master, archive.settings
    other = layout_of(settings, "caches" if master.layout.sealed else "everything")
    reading = form.reading(archive.follower, settings.master, other)
    joined = Joined()
    with reading if convert else nullcontext() as old:
        own = master.embedded or master.claimed()
        converted = bool(own and old and form.here(archive.follower, old, deadline))
        if master.remote:
            joined = join(archive.follower, here, deadline, old=old)
    if master.remote:
        archive.flush()
    elif master.layout.sealed:
        with master.lock(deadline):
            if not master.tip():  # a beginning, so that there is a key to be kept
                master.push(master.commit("", []), "", deadline)
    return replace(joined, converted=converted or joined.converted)


def _write_down(path: str, old: Settings, new: Settings) -> None:
    """Write into config.toml what set-up changed."""
    changes: dict[str, dict[str, object]] = {}
    for section, keys in (("master", ("remote", "branch", "include")), ("encryption", ("scope",))):
        before, after = getattr(old, section), getattr(new, section)
        for key in keys:
            if getattr(before, key) != getattr(after, key):
                changes.setdefault(section, {})[key] = getattr(after, key)
    if changes:
        write(path, changes)


def _absolute(remote: str) -> str:
    """A remote that means the same from every folder."""
    is_path = "://" not in remote and (":" not in remote or os.path.exists(remote))
    return os.path.abspath(os.path.expanduser(remote)) if remote and is_path else remote


def _branch(asked: str, new: MasterSettings, tips: dict[str, str], default: str) -> str:
    """The branch to use: the one asked for, else the remote's own."""
    if asked and tips and asked not in tips:
        raise UsageError(
            f"{new.remote} has no branch {asked}; it has {', '.join(sorted(tips)[:5])}",
            hint="name one of them, or make the branch there first",
        )
    return asked or (default if default in tips else new.branch)
