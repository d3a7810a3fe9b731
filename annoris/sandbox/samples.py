"""What a new sandbox holds: projects with revenues, and sessions with a past."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files

from annoris.archive import Archive, iso
from annoris.bootstrap import open_archive
from annoris.intake import SaveOptions, Source
from annoris.model import Draft
from annoris.settings import load

PROJECTS = {
    "shop": {"status": "active", "priority": "high",
             "target_revenue": "50000", "current_revenue": "18250.50"},
    "library": {"status": "active", "priority": "low"},
    "mobile": {"status": "planned", "priority": "medium", "target_revenue": "12000"},
    "research": {"status": "paused", "target_revenue": "3000", "current_revenue": "3000"},
}  # fmt: skip
_DAY = 86400.0
_INTERVIEWS = 240


def seed(archive: Archive) -> None:
    """Save them all, each round of revisions in one push."""
    newest = time.time()
    samples = [*_samples(), ("research", "interviews", 1, _long())]
    for number in sorted({revision for _, _, revision, _ in samples}):
        drafts = []
        for age, (project, name, revision, text) in enumerate(samples):
            if revision == number:
                at = iso(newest - (4 - number) * 7 * _DAY - age * _DAY / 2)
                source = Source(f"{name}.md", text, at=at)
                drafts += archive.accept([source], SaveOptions(project, name))
        archive.deliver([one.item for one in drafts if isinstance(one.item, Draft)])
    for name, facts in PROJECTS.items():
        archive.set_project(name, facts)


def _samples() -> Iterator[tuple[str, str, int, bytes]]:
    """Project, name, number of the revision, text."""
    root = files("annoris.sandbox") / "samples"
    for project in PROJECTS:
        for file in sorted((root / project).iterdir(), key=lambda file: file.name):
            name, revision, _ = file.name.rsplit(".", 2)
            yield project, name, int(revision), file.read_bytes()


def _long() -> bytes:
    """A long document, as the notes of many conversations become."""
    head = "# Notes of all interviews\n\n**Status:** in progress\n**Next:** sort them by topic\n"
    return (head + "".join(map(_interview, range(1, _INTERVIEWS + 1)))).encode()


def _interview(number: int) -> str:
    return (
        f"\n## Interview {number}\n\nTeam {number % 17 + 1} works in {number % 5 + 1} places. "
        f"They lose about {number * 7 % 50} minutes a week to finding where they had stopped, "
        "most of it on Mondays.\n\n- [x] thanked\n- [ ] asked again in spring\n"
    )


if __name__ == "__main__":
    with closing(open_archive(load(sys.argv[1]), here=False)) as opened:
        seed(opened)
