"""What was loaded and saved here, for documents that don't carry the newest etag themselves.

A document says which revision it was made from by the etag in its front matter. That is not
enough for a bare body, for a text that was edited by hand on master (its etag is untrue), and
for a file that is saved twice (it still carries the etag that it was loaded with). Then a note
stands in: one small file for each session or file, the etag as written and the true one.
Without notes a save is careful, not wrong: it makes a conflict copy.
"""

from __future__ import annotations

import contextlib
import os
import time


class Notes:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def keep(self, key: str, written: str, true: str) -> None:
        """Note that what carries ``written`` is ``true``. A disk that refuses is no error."""
        if not key:
            return
        if self.find(key) == (written, true):
            with contextlib.suppress(OSError):
                os.utime(os.path.join(self._folder, key))  # it is in use
            return
        temporary = os.path.join(self._folder, f".{os.urandom(6).hex()}")
        with contextlib.suppress(OSError):
            if not os.path.isdir(self._folder):
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with open(temporary, "w", encoding="ascii") as file:
                file.write(f"{written or '-'} {true}")
            os.replace(temporary, os.path.join(self._folder, key))

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

    def find(self, key: str) -> tuple[str, str] | None:
        """The etag as written and the true one, if anything was noted."""
        if not key:
            return None
        try:
            with open(os.path.join(self._folder, key), encoding="ascii") as file:
                written, true = file.read().split(" ")
        except (OSError, ValueError):
            return None
        return ("" if written == "-" else written), true


def file_key(file: str) -> str:
    """The key of a file by its absolute path; none for what was piped in."""
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(os.fsencode(file)).hexdigest() if file else ""
