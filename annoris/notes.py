"""What was loaded and saved here, for documents that don't carry the newest etag themselves.

A document says which revision it was made from by the etag in its front matter. That is not
enough for a bare body, for a text that was edited by hand on master (its etag is untrue), and
for a file that is saved twice (it still carries the etag that it was loaded with). Then a note
stands in: one small file for each session or file, with a line for each revision that was loaded
since the last save. Without notes a save is careful, not wrong: it makes a conflict copy.
"""

from __future__ import annotations

import contextlib
import os
import time

from annoris.dataclass import dataclass

_MOST = 8  # revisions of one session


@dataclass(frozen=True, slots=True)
class Noted:
    """A revision by its etag as ``written`` and the ``true`` one; ``oid``: of its blob."""

    written: str
    true: str
    oid: str = ""


class Notes:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def keep(self, key: str, noted: Noted, *, alone: bool = False) -> None:
        """Note a revision, ``alone`` instead of all before. A disk that refuses is no error."""
        if not key:
            return
        path = os.path.join(self._folder, key)
        with contextlib.suppress(OSError):
            try:
                _write(path, noted)
            except FileNotFoundError:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                _write(path, noted)
            except FileExistsError:
                before = self.find(key)
                if before[-1:] == [noted] and not (alone and before[1:]):
                    os.utime(path)  # it is in use
                    return
                kept = [] if alone else [one for one in before if one != noted][1 - _MOST :]
                temporary = os.path.join(self._folder, f".{os.urandom(6).hex()}")
                _write(temporary, *kept, noted)
                os.replace(temporary, path)

    def forget(self, key: str) -> None:
        """Take back what was noted, if anything was."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, key))

    def prune(self, seconds: float) -> None:
        """Take back what nobody has noted for so long, and what killed processes left."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.stat().st_mtime < time.time() - seconds:
                    self.forget(entry.name)

    def find(self, key: str) -> list[Noted]:
        """The revisions that were noted, the newest last."""
        if not key:
            return []
        try:
            with open(os.path.join(self._folder, key), encoding="ascii") as file:
                lines = [line.rstrip("\n").split(" ") for line in file]
                return [Noted("" if line[0] == "-" else line[0], *line[1:]) for line in lines]
        except (OSError, ValueError, TypeError):
            return []


def _write(path: str, *noted: Noted) -> None:
    """Make a file, by one call: it is there whole, or empty, which is no note."""
    text = "".join(f"{one.written or '-'} {one.true} {one.oid}\n" for one in noted)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.write(handle, text.encode("ascii"))
    finally:
        os.close(handle)


def file_key(file: str) -> str:
    """The key of a file by its absolute path; none for what was piped in."""
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(os.fsencode(file)).hexdigest() if file else ""
