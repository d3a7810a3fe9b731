"""The only wiring: settings to an archive."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from annoris.archive import Archive
from annoris.breaker import Breaker
from annoris.catalog import Catalog
from annoris.errors import UsageError
from annoris.master import Master
from annoris.model import Deadline, SetUp
from annoris.outbox import Outbox
from annoris.settings import MasterSettings, Settings, check_remote, write


def open_archive(settings: Settings) -> Archive:
    """An archive over this machine's data folder. Nothing is asked of the network yet."""
    return Archive(
        settings=settings,
        master=Master(settings.at("clone.git"), settings.master),
        catalog=Catalog(settings.at("catalog.sqlite")),
        outbox=Outbox(settings.at("outbox")),
        breaker=Breaker(settings.at("breaker.json"), changed=partial(_note_tier, settings)),
    )


def _note_tier(settings: Settings, tier: str, why: str) -> None:
    """Keep for the next sync that a tier went down, or came back; nothing is sent now."""
    if settings.alerts.urls:
        from annoris.alerts import Alerts  # noqa: PLC0415
        from annoris.events import of_tier  # noqa: PLC0415

        Alerts(settings).note([of_tier(tier, why)])


def set_up(
    settings: Settings,
    path: str,
    *,
    remote: str = "",
    branch: str = "",
    include: tuple[str, ...] = (),
    move: bool = False,
) -> SetUp:
    """Make the data folder, and put master at ``remote`` with all that is here.

    The configuration at ``path`` is written last, when everything before it worked.
    """
    from annoris.join import join  # noqa: PLC0415

    old = settings.master
    check_remote(remote)
    remote = _absolute(remote)
    if remote and old.remote not in ("", remote) and not move:
        raise UsageError(
            f"this machine already saves to {old.remote}",
            hint=f"to take everything along: annoris init --remote {remote} --move",
        )
    new = replace(
        old,
        remote=remote or old.remote,
        include=include or old.include,
        branch=branch or old.branch,
    )
    deadline = Deadline(old.push_seconds * 5)
    others = brought = 0
    previous = open_archive(settings)
    previous.master.create()
    if new.remote:
        if remote:
            probe = Master(settings.at("clone.git"), new)
            new = replace(new, branch=_branch(branch, new, *probe.branches(deadline)))
        archive = open_archive(replace(settings, master=new))
        brought = join(archive.follower, previous.master.tip(), deadline)
        archive.flush()
        tip = archive.master.tip()
        others = len(archive.master.documents(tip)) - len(archive.master.tree(tip)) if tip else 0
    else:
        archive = open_archive(replace(settings, master=new))
    archive.follower.refresh()
    changed = {
        key: getattr(new, key)
        for key in ("remote", "branch", "include")
        if getattr(new, key) != getattr(old, key)
    }
    if changed:
        write(path, {"master": changed})
    return SetUp(
        master=new.remote or archive.master.folder,
        branch=new.branch,
        sessions=archive.catalog.count(),
        brought=brought,
        others=others,
        config=path,
    )


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
