"""The outbox: what is durable on this machine and not yet on master.

One file per command, fsynced together with its folder before anything else happens, so that
no moment exists in which an answered save is only in memory. A file holds one or more drafts:

    annoris-outbox 1
    <sha256 of the header and the data> <header bytes> <data bytes>
    <header: JSON>
    <data>
    …
    end

File names sort in the order of saving, by a counter and not by the clock. ``aside/`` keeps
drafts that the server refused, with the reason; ``done/`` holds answers for a process whose
drafts another one pushed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from annoris.errors import NotFound, StorageError
from annoris.model import Draft, Problem, Receipt

_MAGIC = b"annoris-outbox 1\n"
_END = b"end\n"
_LEFTOVER_SECONDS = 3600.0


class Outbox:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._aside = os.path.join(folder, "aside")
        self._done = os.path.join(folder, "done")
        self._damaged = os.path.join(folder, "damaged")

    def batches(self) -> list[str]:
        """Names of the commands that wait for master, oldest first."""
        return _names(self._folder)

    def waiting(self) -> set[str]:
        """Keys of all drafts that are only here, set aside or not."""
        drafts = [*self.read()[0], *(draft for draft, _ in self.aside())]
        return {draft.key for draft in drafts}

    def add(self, drafts: Iterable[Draft]) -> list[Draft]:
        """Keep the drafts of one command; they are on disk when this returns.

        Raises StorageError, with nothing kept, when the disk is full or read-only.
        """
        waiting = self.batches()
        number = int(waiting[-1].split("-")[0]) + 1 if waiting else 1
        batch = f"{number:012d}-{os.urandom(8).hex()}"
        kept = [
            replace(draft, batch=batch, key=f"{batch}.{index}")
            for index, draft in enumerate(drafts)
        ]
        self._write(self._path(batch), kept)
        return kept

    def read(self) -> tuple[list[Draft], list[str]]:
        """Every draft that waits, in order, and the files with damaged ones in them."""
        drafts: list[Draft] = []
        damaged = []
        for name in self.batches():
            path = self._path(name)
            try:
                drafts += _drafts(_bytes(path))
            except FileNotFoundError:  # another process was faster
                continue
            except _Damaged as error:
                drafts += error.whole
                damaged.append(path)
        return drafts, damaged

    def find(self, key: str) -> Draft:
        """The draft of that key. Raises NotFound when it has left the outbox."""
        batch = key.rpartition(".")[0]
        for path in (self._path(batch), os.path.join(self._aside, f"{key}.drafts")):
            try:
                drafts = _drafts(_bytes(path))
            except FileNotFoundError:
                continue
            except _Damaged as error:
                drafts = error.whole
            for draft in drafts:
                if draft.key == key:
                    return draft
        raise NotFound(f"the outbox holds no draft {key}")

    def remove(self, drafts: Iterable[Draft]) -> None:
        """Forget drafts that are on master; the others of the same command stay."""
        leaving: dict[str, set[str]] = {}
        for draft in drafts:
            leaving.setdefault(draft.batch, set()).add(draft.key)
        for batch, keys in leaving.items():
            path = self._path(batch)
            try:
                stay = [draft for draft in _drafts(_bytes(path)) if draft.key not in keys]
            except FileNotFoundError:
                continue
            except _Damaged:  # what is damaged stays for a person to look at
                continue
            if stay:
                self._write(path, stay)
            else:
                os.unlink(path)

    def set_aside(self, draft: Draft, reason: str) -> None:
        """Keep a refused draft out of the way of the others, with the server's reason."""
        self._write(os.path.join(self._aside, f"{draft.key}.drafts"), [draft], reason)
        self.remove([draft])

    def aside(self) -> list[tuple[Draft, str]]:
        """Refused drafts with the reasons, oldest first."""
        found = []
        for name in _names(self._aside):
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
                for header, data in _records(_bytes(os.path.join(self._aside, f"{name}.drafts"))):
                    found.append((_draft(header, data), str(header.get("reason", ""))))
        return found

    def damaged(self) -> list[str]:
        """Files that hold a draft which can't be read, those that were put away included."""
        found = [os.path.join(self._damaged, f"{name}.drafts") for name in _names(self._damaged)]
        for folder in (self._folder, self._aside):
            for name in _names(folder):
                path = os.path.join(folder, f"{name}.drafts")
                with contextlib.suppress(FileNotFoundError):
                    try:
                        _drafts(_bytes(path))
                    except _Damaged:
                        found.append(path)
        return sorted(found)

    def put_away(self, path: str) -> str:
        """Move a damaged file to where it is in nobody's way; answers its new path."""
        _make_folder(self._damaged)
        target = os.path.join(self._damaged, os.path.basename(path))
        os.replace(path, target)
        for folder in (self._damaged, os.path.dirname(path)):
            _sync_folder(folder)
        return target

    def retry(self, draft: Draft) -> None:
        """Put a draft that was set aside back into the queue, as a command of its own."""
        self.add([draft])
        self.drop(draft)

    def drop(self, draft: Draft) -> None:
        """Forget a draft for good, wherever it is."""
        try:
            os.unlink(os.path.join(self._aside, f"{draft.key}.drafts"))
        except FileNotFoundError:
            self.remove([draft])

    def answer(self, key: str, receipt: Receipt) -> None:
        """Leave the receipt for the process that made the draft. Before ``remove``, always."""
        import json  # noqa: PLC0415

        os.makedirs(self._done, mode=0o700, exist_ok=True)
        temporary = os.path.join(self._done, f".tmp-{os.urandom(8).hex()}")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(receipt), file)
        os.replace(temporary, os.path.join(self._done, f"{key}.json"))

    def answered(self, key: str) -> Receipt | None:
        """Take the receipt that another process left, if there is one."""
        import json  # noqa: PLC0415

        path = os.path.join(self._done, f"{key}.json")
        try:
            with open(path, encoding="utf-8") as file:
                raw: dict[str, Any] = json.load(file)
            os.unlink(path)
        except (FileNotFoundError, ValueError):
            return None
        raw["problems"] = tuple(Problem(**problem) for problem in raw["problems"])
        return Receipt(**raw)

    def tidy(self) -> None:
        """Remove what killed processes left: half-written files and answers nobody fetched."""
        for folder in (self._folder, self._aside, self._done):
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                passing = entry.name.startswith(".tmp-") or folder == self._done
                with contextlib.suppress(FileNotFoundError):  # its writer is done with it
                    if passing and time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS:
                        os.unlink(entry.path)

    def _path(self, batch: str) -> str:
        return os.path.join(self._folder, f"{batch}.drafts")

    def _write(self, path: str, drafts: list[Draft], reason: str = "") -> None:
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f".tmp-{os.urandom(8).hex()}")
        try:
            _make_folder(folder)
            with open(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(_MAGIC)
                for draft in drafts:
                    file.writelines(_record(draft, reason))
                file.write(_END)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise StorageError(
                f"the outbox can't be written: {folder}: {error.strerror}",
                hint="free some space, or set ANNORIS_DATA_DIR to a folder that can be written",
            ) from error


class _Damaged(Exception):
    def __init__(self, whole: list[Draft]) -> None:
        super().__init__("damaged")
        self.whole = whole


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.removesuffix(".drafts") for name in names if name.endswith(".drafts"))


def _make_folder(folder: str) -> None:
    """Make a folder as durable as what will be put into it, all the way up."""
    if os.path.isdir(folder):
        return
    os.makedirs(folder, mode=0o700, exist_ok=True)
    while folder != (above := os.path.dirname(folder)):
        folder = above
        with contextlib.suppress(OSError):  # one that others own may not be opened
            _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _record(draft: Draft, reason: str) -> Iterator[bytes]:
    import json  # noqa: PLC0415

    fields = asdict(draft)
    data: bytes = fields.pop("data")
    if reason:
        fields["reason"] = reason
    header = json.dumps(fields).encode()  # ASCII: the path on master need not be UTF-8
    digest = _digest(header + data)
    yield f"{digest} {len(header)} {len(data)}\n".encode()
    yield header + b"\n"
    yield data + b"\n"


def _digest(data: bytes) -> str:
    import hashlib  # noqa: PLC0415 - most commands need none

    return hashlib.sha256(data).hexdigest()


def _drafts(content: bytes) -> list[Draft]:
    found: list[Draft] = []
    try:
        for header, data in _records(content):
            found.append(_draft(header, data))
    except (ValueError, TypeError, RecursionError) as error:
        raise _Damaged(found) from error
    return found


def _draft(header: dict[str, Any], data: bytes) -> Draft:
    return Draft(data=data, **{key: value for key, value in header.items() if key != "reason"})


def _records(content: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Header and data of each draft. Raises ValueError at the first damaged one."""
    import json  # noqa: PLC0415

    if not content.startswith(_MAGIC):
        raise ValueError("not an outbox file")
    position, end = len(_MAGIC), len(content) - len(_END)
    while position != end or not content.endswith(_END):
        line_end = content.index(b"\n", position)
        digest, header_size, data_size = content[position:line_end].split(b" ")
        header_end = line_end + 1 + int(header_size)
        data_end = header_end + 1 + int(data_size)
        header = content[line_end + 1 : header_end]
        data = content[header_end + 1 : data_end]
        if _digest(header + data).encode() != digest:
            raise ValueError("checksum differs")
        yield json.loads(header), data
        position = data_end + 1
