"""Master: the git repository that always wins, through a bare clone of it. The only git.

No work tree, no index, no rebase state: a write is one ``git fast-import`` on the fetched tip
(flat in the number of sessions, one process for many documents) and one push whose lease names
that tip, so that the server compares and swaps. Without a remote the clone is itself master.

Every git process runs without a terminal, without prompts, with the user's hooks, signing and
line-end settings off, in a process group that is killed at the deadline. GitPython makes and
configures the clone and reads history; the paths that one save or load goes through spawn git
directly, because importing GitPython alone (0.1 s) would cost more than the whole load.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, Any

from annoris import gitcmd
from annoris.dataclass import dataclass
from annoris.errors import KeyProblem, Locked, NotFound, StorageError
from annoris.layout import FORMAT, Layout, Plain, Scope, is_sealed, scope_in
from annoris.model import Change, Deadline, Entry, Revision
from annoris.settings import MasterSettings

_LOCAL_SECONDS = 120.0
_PAUSE = 0.4  # at most, before the second try at a server that did not answer
_FETCHED = "refs/annoris/fetched"
_AHEAD = "refs/annoris/ahead"  # what sync looks at before it takes it
_NEXT = "refs/annoris/next"
_BEGIN = f"feature done\nreset {_NEXT}\n\n".encode()  # of a stream for fast-import
_GONE = "refs/annoris/gone"
_NAME = "annoris-master"  # of the remote, for git alone: nothing of it is written down
_TRAILER = "Annoris-Save"
_TRIES = 5
# One commit of ``log``: no name can hold a NUL, so none can pass for a header.
_REVISION = rb"\x01([0-9a-f]{40,64})\0(\d+)\0([^\0]*)\0([^\0]*)\0\0\n:\S+ \S+ \S+ ([0-9a-f]+) \w\0"
_COMMIT = "[0-9a-f]{40}(?:[0-9a-f]{24})?"


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit to make: whole files by path, in plain; None for a removal."""

    files: Mapping[str, bytes | None]
    message: str
    at: str
    batch: str = ""


class Master:
    """The clone in ``folder`` and the remote that it is a clone of."""

    def __init__(self, folder: str, settings: MasterSettings, layout: Layout | None = None) -> None:
        """``layout``: how files lie there; plain unless given."""
        gitcmd.scrub_environment()
        self.folder = folder
        self.remote = os.path.expanduser(settings.remote)
        self.branch = settings.branch
        self._settings = settings
        self._ref = f"refs/heads/{settings.branch}"
        self.layout = layout or Plain(settings.include)
        self._fits: str | None = None  # the commit that the layout was fitted to
        self._stored: dict[tuple[str, bytes], bytes] = {}  # sealed, and not committed yet
        self._step = ("", "")  # from which commit to which the last ``commit`` went …
        self._wrote: list[set[str]] = []  # … and which paths each one on the way touched

    @property
    def embedded(self) -> bool:
        """No remote: the clone is master."""
        return not self.remote

    @property
    def _log_of_branch(self) -> str:
        return os.path.join(self.folder, "logs", self._ref)

    @property
    def identity(self) -> str:
        """What a projection was made from; another value means that it must be made anew."""
        sealed = ("[sealed]",) if self.layout.sealed else ()
        return "\n".join((self.remote, self.branch, *self._settings.include, *sealed))

    @property
    def _owner(self) -> str:
        return f"{self.remote}\n{self.branch}\n"

    def included(self, path: str) -> bool:
        """Whether a file on master is a session."""
        return self.layout.included(path)

    # --- the clone ---------------------------------------------------------------------------

    def exists(self) -> bool:
        return os.path.exists(os.path.join(self.folder, "HEAD"))

    def create(self) -> None:
        """Make the bare clone, empty; harmless where it exists.

        It appears whole, under its name, whoever else makes it at the same moment.
        """
        mending = os.path.isdir(self.folder)  # one that lost its HEAD, if it isn't there now
        if self.exists():
            return
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import git  # noqa: PLC0415

        try:
            place = self.folder if mending else f"{self.folder}.{os.urandom(4).hex()}"
            os.makedirs(place, mode=0o700, exist_ok=True)
            branch = self.branch
            repo = git.Repo.init(place, bare=True, initial_branch=branch, env=gitcmd.hidden())
            with repo, repo.config_writer() as config:
                config.set_value("core", "logAllRefUpdates", "always")
                # What a force push removed stays recoverable for a year.
                config.set_value("gc", "reflogExpire", "365.days")
                config.set_value("gc", "reflogExpireUnreachable", "365.days")
            if not mending:
                self._install(place)
        except git.GitCommandNotFound as error:
            raise gitcmd.no_git() from error
        except (git.GitCommandError, OSError) as error:
            raise StorageError(
                f"the clone can't be made in {self.folder}: {gitcmd.last_line(str(error))}",
                hint="set ANNORIS_DATA_DIR to a folder that can be written",
            ) from error

    def _install(self, place: str) -> None:
        try:
            os.rename(place, self.folder)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            if not self.exists():  # else another process was faster
                raise

    def claim(self) -> None:
        """Note in the clone whose history it holds."""
        if not self.claimed():
            path = os.path.join(self.folder, "annoris-master")
            with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(self._owner)
            os.replace(f"{path}.new", path)

    def claimed(self) -> bool | None:
        """Whether the clone holds this master's history; None when nothing says so."""
        path = os.path.join(self.folder, "annoris-master")
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read() == self._owner
        except FileNotFoundError:
            return None

    def lock(self, deadline: Deadline) -> contextlib.AbstractContextManager[None]:
        """One writer of this clone at a time, across processes. Raises Locked at the deadline."""
        from annoris import lock  # noqa: PLC0415

        return lock.hold(
            f"{self.folder}.lock", deadline, "another annoris is writing on this machine"
        )

    def tip(self) -> str:
        """The newest commit of master that this machine knows; empty when there is none.

        Raises StorageError for a damaged ref, and where there is no remote for one that is gone
        while its log tells that it was there.
        """
        commit = self._read_ref(self._ref)
        if not commit and self.embedded and os.path.exists(self._log_of_branch):
            raise StorageError(f"the clone's branch {self.branch} is gone", hint=self.mend)
        return commit

    def fetched(self) -> str:
        """The commit that the last fetch found."""
        return self._read_ref(_FETCHED)

    def accept(self, commit: str) -> None:
        """Make ``commit`` the tip that this machine works from."""
        if commit:
            self._local("update-ref", self._ref, commit)
        elif tip := self.tip():
            # Its reflog goes with a ref that is deleted; what it held stays recoverable here.
            self._local("update-ref", _GONE, tip)
            self._local("update-ref", "-d", self._ref)

    # --- reading -----------------------------------------------------------------------------

    def tree(self, commit: str, wanted: Callable[[str], bool] | None = None) -> dict[str, str]:
        """Sessions of a commit, or other ``wanted`` files: path → blob id.

        Symlinks and submodules are not files.
        """
        if not commit:
            return {}
        lines = self._local("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0")
        return _blobs(lines, wanted or self.included)

    def diff(self, old: str, new: str, wanted: Callable[[str], bool] | None = None) -> list[Change]:
        """Sessions, or other ``wanted`` files, that differ between two commits.

        A rename is a removal and an addition.
        """
        if old == new:
            return []
        wanted = wanted or self.included
        output = self._local("diff-tree", "-r", "-z", "--no-renames", "--raw", old, new)
        parts = output.split(b"\0")
        changes = []
        for head, raw in zip(parts[::2], parts[1::2], strict=False):
            before, mode, _, oid, _ = head.decode().split(" ")
            if (path := gitcmd.text(raw)) and wanted(path):
                added = not before.startswith(":100")
                changes.append(Change(path, oid if mode.startswith("100") else "", added))
        return changes

    def blob(self, oid: str, path: str) -> bytes:
        """The bytes of one blob, which lies or lay at ``path``.

        Raises StorageError when the clone can't give them, KeyProblem when they don't open.
        """
        return self._opened(path, oid, self._local("cat-file", "blob", oid))

    def file(self, commit: str, path: str) -> bytes | None:
        """The bytes of any file of a commit, session or not; None when there is none."""
        question = f"{commit}:{path}\n".encode(errors="surrogateescape")
        header, _, rest = self._local("cat-file", "--batch", stdin=question).partition(b"\n")
        oid, kind, size = [b"", *header.split(b" ")][-3:]
        found = kind == b"blob" and size.isdigit()  # a missing path is quoted, and may end so
        return self._opened(path, oid.decode(), rest[:-1]) if found else None

    def holds(self, oid: str) -> bool:
        """Whether the clone has ever seen a blob."""
        if not (self.exists() and re.fullmatch("[0-9a-f]{40,64}", oid)):
            return False
        command = [*self._base(), "cat-file", "-e", oid]
        return gitcmd.run(command, Deadline(_LOCAL_SECONDS)).code == 0

    def blobs(
        self,
        entries: Iterable[Entry],
        *,
        bad: Callable[[Entry, KeyProblem], None] | None = None,
    ) -> Iterator[tuple[Entry, bytes]]:
        """Many files by one process; in the order asked while they are few.

        Above 2,000 the whole object store is streamed in its own order: a delta chain is
        then unpacked once and not once for each of its members. ``bad`` is told of each that
        does not open; without it, the first one is raised. Raises StorageError when the clone
        can't give them all, after those that it could before it came to the first damage.
        """
        wanted: dict[str, list[Entry]] = {}
        for entry in entries:
            wanted.setdefault(entry.oid, []).append(entry)
        with contextlib.closing(self._stored_blobs(wanted)) as found:
            for oid, data in found:
                for entry in wanted[oid]:
                    try:
                        opened = self._opened(entry.path, oid, data)
                    except KeyProblem as error:
                        if bad is None:
                            raise
                        bad(entry, error)
                    else:
                        yield entry, opened

    def _stored_blobs(self, oids: Iterable[str]) -> Generator[tuple[str, bytes], None, None]:
        """Blobs as they are stored, each once."""
        left = dict.fromkeys(oids)
        if not left:
            return
        import tempfile  # noqa: PLC0415

        with tempfile.TemporaryFile() as questions:
            questions.write("".join(f"{oid}\n" for oid in left).encode())
            questions.seek(0)
            arguments = ["--batch-all-objects", "--unordered"] if len(left) > 2000 else []
            with self._stream(
                "cat-file", "--batch", "--buffer", *arguments, stdin=questions
            ) as out:
                while header := out.readline():
                    fields = header.decode(errors="replace").split()
                    if fields[-1] == "missing":
                        break
                    data = out.read(int(fields[2]) + 1)
                    if fields[0] in left and len(data) == int(fields[2]) + 1:
                        del left[fields[0]]
                        yield fields[0], data[:-1]
        if left:
            raise StorageError(f"the clone can't give object {min(left)}", hint=self.mend)

    def log(self, path: str) -> list[Revision]:
        """Every revision of a path, newest first; one with an empty ``oid`` removed it."""
        if not self.tip():
            return []
        form = "--format=%x01%H%x00%ct%x00%an%x00%s%x00"
        output = self._history(
            "log",
            form,
            "--raw",
            "-z",
            "--no-abbrev",
            "--no-renames",
            self._ref,
            "--",
            f":(literal){path}",
        )
        found = []
        for commit, when, author, subject, blob in re.findall(_REVISION, output):
            found.append(
                Revision(
                    oid="" if set(blob) == {ord("0")} else blob.decode(),
                    commit=commit.decode(),
                    at=_iso(int(when)),
                    author=author.decode(errors="replace"),
                    message=subject.decode(errors="replace"),
                    path=path,
                )
            )
        return found

    def removed_with(self, commit: str) -> list[Entry]:
        """Files that a commit removed, for following a session that was moved."""
        output = self._local(
            "diff-tree",
            "-r",
            "-z",
            "--no-renames",
            "--diff-filter=D",
            "--raw",
            "--no-commit-id",
            commit,
        )
        parts = output.split(b"\0")
        return [
            Entry(gitcmd.text(raw), head.split(b" ")[2].decode())
            for head, raw in zip(parts[::2], parts[1::2], strict=False)
            if head.startswith(b":100")
        ]

    def saved_by(self, batch: str) -> tuple[str, list[str]]:
        """The commit of an outbox batch and the paths that it wrote; empty when it is not here."""
        if not self.tip():
            return "", []
        grep = f"--grep={_TRAILER}: {batch}"
        found = self._local("log", "-1", "--format=%H", "--fixed-strings", grep, self._ref)
        if not (commit := found.decode().strip()):
            return "", []
        names = ("-r", "-z", "--root", "--no-renames", "--name-only", "--no-commit-id")
        output = self._local("diff-tree", *names, commit)
        return commit, [path for raw in output.split(b"\0") if (path := gitcmd.text(raw))]

    def once(self, *pathspecs: str) -> list[str]:
        """Paths that fit a pathspec and were removed at some time."""
        if not self.tip():
            return []
        output = self._local(
            "log",
            "--diff-filter=D",
            "--name-only",
            "--format=",
            "-z",
            "--no-renames",
            self._ref,
            "--",
            *pathspecs,
        )
        return [path for raw in output.split(b"\0") if (path := gitcmd.text(raw))]

    def applied(self, batch: str, path: str) -> bool:
        """Whether a commit of that outbox batch already touched the path."""
        if not self.tip():
            return False
        found = self._local(
            "log",
            "-1",
            "--format=%H",
            "--fixed-strings",
            f"--grep={_TRAILER}: {batch}",
            self._ref,
            "--",
            f":(literal){path}",
        )
        return bool(found.strip())

    def changed_at(self, tip: str, since: str = "") -> Generator[tuple[str, str], None, None]:
        """Paths and when they changed before ``tip``, the last changes first."""
        if not tip:
            return
        span = f"{since}..{tip}" if since else tip
        with self._stream(
            "log",
            "--format=%x01%ct",
            "--name-only",
            "-z",
            "--no-renames",
            span,
        ) as out:
            when, first = 0, False
            for piece in _split(out, b"\0"):
                if header := re.fullmatch(rb"\x01(\d+)", piece):
                    when, first = int(header[1]), True
                    continue
                yield gitcmd.text(piece[1:] if first else piece), _iso(when)  # a newline ends it
                first = False

    def deliberate(self, old: str, new: str) -> set[str]:
        """Paths that Annoris itself removed between two commits, one built on the other.

        Without an ``old`` one: ever.
        """
        output = self._local(
            "log",
            "--format=",
            "--diff-filter=D",
            "--name-only",
            "-z",
            "--no-renames",
            f"--grep={_TRAILER}: ",
            f"{old}..{new}" if old else new,
        )
        return {path for raw in output.split(b"\0") if (path := gitcmd.text(raw))}

    # --- writing -----------------------------------------------------------------------------

    def commit(self, tip: str, commits: Iterable[Commit]) -> str:
        """Make commits on ``tip``; answers the last one. Nothing is pushed yet.

        Raises ScopeMismatch and KeyProblem as ``must_fit``, before anything is made.
        """
        if self.layout.sealed:
            self.must_fit(tip)
        stream = [_BEGIN]
        who = self._author()
        ready = list(commits)
        if not tip:
            ready.insert(0, Commit(self.layout.foundation(), "Begin a home for sessions", now()))
        for number, commit in enumerate(map(self._encoded, ready), 1):
            stream += _import(commit, number, who, tip if number == 1 else "")
        self._stored.clear()
        stream.append(f"get-mark :{len(ready)}\ndone\n".encode())
        output = self._local(
            "fast-import", "--quiet", "--force", "--depth=0", stdin=b"".join(stream)
        )
        made = output.split()[-1].decode()
        self._step, self._wrote = (tip, made), [set(commit.files) for commit in ready]
        return made

    def wrote(self, old: str, new: str) -> set[str] | None:
        """Paths that the last ``commit`` touched, if it went from ``old`` to ``new``."""
        return set().union(*self._wrote) if (old, new) == self._step else None

    def merge(self, first: str, second: str, files: Mapping[str, bytes]) -> str:
        """A commit with both histories: the tree of ``first`` plus ``files``."""
        commit = self._encoded(Commit(files, "Join the sessions of this machine", now()))
        parts = _import(commit, 1, self._author(), first, merge=second)
        stream = [_BEGIN, *parts, b"get-mark :1\ndone\n"]
        output = self._local("fast-import", "--quiet", "--force", stdin=b"".join(stream))
        return output.split()[-1].decode()

    def store(self, data: bytes) -> str:
        """Keep bytes as a blob of the clone, in no commit yet; answers its id."""
        return self._local("hash-object", "-w", "--stdin", stdin=data).decode().strip()

    def gather(self, files: Mapping[str, str], message: str) -> str:
        """A commit without parents, of blobs that are there already: path → blob id."""
        parts = _import(Commit({}, message, now()), 1, self._author(), "")
        stream = [
            _BEGIN,
            *parts,
            *(f"M 100644 {oid} ".encode() + _quoted(path) + b"\n" for path, oid in files.items()),
            b"get-mark :1\ndone\n",
        ]
        output = self._local("fast-import", "--quiet", "--force", stdin=b"".join(stream))
        return output.split()[-1].decode()

    def push(self, commit: str, tip: str, deadline: Deadline) -> None:
        """Make ``commit`` master's tip if it still is ``tip`` there, and ours after it.

        The lease makes the server compare and swap even against a history that was rewound.
        Raises LostRace, PolicyRefused, AuthRefused, RemoteRefused or RemoteUnreachable.
        """
        if self.remote:
            lease = f"--force-with-lease={self._ref}:{tip}"
            arguments = ["push", "--porcelain", "--no-verify", lease]
            if self.local_remote:  # fsync there too: its own configuration decides otherwise
                arguments.append("--receive-pack=git -c core.fsync=all receive-pack")
            self._network(*arguments, "--", _NAME, f"{commit}:{self._ref}", deadline=deadline)
        if self.embedded or self._read_ref(self._ref) != commit:  # git moves ours along
            self.accept(commit)

    def fetch(self, deadline: Deadline) -> str:
        """Ask master for its tip; empty when the branch isn't there. ``accept`` comes after."""
        if self.embedded:
            return self.tip()
        try:
            self._fetch(_FETCHED, deadline)
        except NotFound:
            if self.fetched():
                self._local("update-ref", "-d", _FETCHED)
            return ""
        return self.fetched()

    def _fetch(self, into: str, deadline: Deadline) -> None:
        refs = f"+{self._ref}:{into}"
        flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--", self.remote, refs)
        for _ in range(_TRIES):
            with contextlib.suppress(gitcmd.LostRace):  # another process wrote that ref meanwhile
                self._network("fetch", *flags, deadline=deadline)
                return
        raise Locked("other processes fetch into this clone", hint="try again in a moment")

    def peek(self, deadline: Deadline) -> str:
        """Master's tip, with all that leads to it; empty when the branch isn't there.

        Beside everything else, so that it needs no lock: nobody waits for a server that hangs.
        """
        if self.embedded:
            return self.tip()
        try:
            self._fetch(_AHEAD, deadline)
        except NotFound:
            return ""
        return self._read_ref(_AHEAD)

    def founded(self, commit: str) -> bool:
        """Whether the repository says that Annoris keeps sessions in it."""
        return bool(self._local("ls-tree", commit, "--", FORMAT))

    def count(self, commit: str, known: str = "", counted: int = 0) -> int:
        """How many commits led to ``commit``, itself included.

        Where that is ``counted`` for a commit from which a straight line leads to this one, only
        the line is walked. By another shape git's short cuts, which go by dates, could count wrong.
        """
        if known and (known, commit) == self._step:
            return counted + len(self._wrote)
        if known:
            with contextlib.suppress(StorageError):  # it may be gone
                span = f"{known}..{commit}"
                line = self._local("rev-list", "--parents", span).decode().splitlines()
                if (
                    line
                    and line[-1].endswith(f" {known}")
                    and {len(one.split()) for one in line} == {2}
                ):
                    return counted + len(line)
        return int(self._local("rev-list", "--count", commit))

    def descends(self, commit: str, ancestor: str) -> bool:
        """Whether ``commit`` is built on ``ancestor``."""
        command = [*self._base(), "merge-base", "--is-ancestor", ancestor, commit]
        return gitcmd.run(command, Deadline(_LOCAL_SECONDS)).code == 0

    def branches(self, deadline: Deadline) -> tuple[dict[str, str], str]:
        """Branches of the remote with their tips, and the name of its default branch."""
        output = self._network(
            "ls-remote", "--symref", "--", self.remote, "HEAD", "refs/heads/*", deadline=deadline
        ).decode(errors="replace")
        tips, default = {}, ""
        for line in output.splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: refs/heads/") and name == "HEAD":
                default = value.removeprefix("ref: refs/heads/")
            elif name.startswith("refs/heads/"):
                tips[name.removeprefix("refs/heads/")] = value
        return tips, default

    @property
    def local_remote(self) -> bool:
        """The remote is a folder of this machine."""
        return self.remote.startswith("file://") or (
            "://" not in self.remote and (":" not in self.remote or os.path.exists(self.remote))
        )

    def maintain(self) -> None:
        """Pack loose objects in the background once there are many; git decides and detaches."""
        sample = os.path.join(self.folder, "objects", "17")
        with contextlib.suppress(OSError):
            if len(os.listdir(sample)) < 27:  # of 256 folders: git's own threshold of 6,700
                return
            gitcmd.run(
                [*self._base(), "gc", "--auto", "--quiet"], Deadline(5), extra={"gc.auto": "6700"}
            )

    def forget(self, deadline: Deadline) -> None:
        """Let go of what the branch held before, for one whose past nobody needs, and pack."""
        if not self.embedded and self.fetched():
            self._local("update-ref", "-d", _FETCHED)
        # The clone of an embedded master holds other branches, whose past is wanted.
        refs = [ref for ref in (self._ref, _NEXT) if self._read_ref(ref)]
        which = refs if self.embedded else ["--all"]
        self._local("reflog", "expire", "--expire=now", "--expire-unreachable=now", *which)
        gitcmd.run([*self._base(), "gc", "--quiet"], deadline)

    def fresh(self, deadline: Deadline) -> Master:
        """Another clone of the same remote, beside this one."""
        made = Master(f"{self.folder}.{os.urandom(4).hex()}", self._settings, self.layout)
        made.create()
        made.accept(made.fetch(deadline))
        made.claim()
        return made

    def give_way(self, fresh: Master) -> str:
        """Take the clone ``fresh`` in place of this one; answers where this one is kept.

        The caller holds the lock. The old one may hold what a force push removed.
        """
        kept = f"{self.folder}.damaged-{now().replace(':', '')}"
        os.rename(self.folder, kept)
        try:
            os.rename(fresh.folder, self.folder)
        except OSError:  # a reader found none, and made an empty one
            shutil.rmtree(self.folder)
            os.rename(fresh.folder, self.folder)
        return kept

    def restore(self, oid: str, data: bytes) -> None:
        """Put the bytes of a blob back that is damaged here. The caller holds the lock."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, "objects", oid[:2], oid[2:]))
        self._local("hash-object", "-w", "--stdin", stdin=data)

    def recall(self) -> None:
        """Put the branch back to where its log says that it was. The caller holds the lock."""
        with open(self._log_of_branch, "rb") as file:
            lines = file.read().splitlines()
        commit = lines[-1].split(b" ")[1].decode(errors="replace") if lines else ""
        self._local("cat-file", "-e", f"{commit}^{{tree}}")
        # git reads a damaged ref before it writes one, and fails. A kill must not leave none.
        fresh, ref = os.path.join(self.folder, "annoris-ref"), os.path.join(self.folder, self._ref)
        with open(fresh, "w", encoding="ascii") as file:
            file.write(f"{commit}\n")
            file.flush()
            os.fsync(file.fileno())
        os.makedirs(os.path.dirname(ref), exist_ok=True)
        os.replace(fresh, ref)

    def check(self) -> str:
        """What ``git fsck`` holds against the clone; empty when it is sound."""
        result = gitcmd.run(
            [*self._base(), "fsck", "--no-dangling", "--no-progress"], Deadline(_LOCAL_SECONDS * 10)
        )
        return "" if result.code == 0 else result.text

    # --- the form of its files ---------------------------------------------------------------

    def must_fit(self, commit: str) -> None:
        """See to it that this machine may write on ``commit``, the tip of master or none yet.

        Raises ScopeMismatch when master has the other form, KeyProblem when it is sealed and
        no key here opens its proof.
        """
        if commit == self._fits:
            return
        self._stored.clear()
        if commit:
            self.layout.fit(self.file(commit, FORMAT), self.remote)
        else:
            self.layout.begin()
        self._fits = commit

    def rewrite(self, tip: str, files: Mapping[str, bytes | None], subject: str) -> str:
        """A commit on ``tip``, whatever its form or key, that gives master this layout."""
        foundation = self.layout.foundation()
        self._stored.clear()
        self._fits = tip
        return self.commit(tip, [Commit({**files, **foundation}, subject, now())])

    def scope(self, commit: str) -> Scope | None:
        """The form of a commit's files; None while it holds no session and says nothing."""
        found = scope_in(self.file(commit, FORMAT)) if commit else None
        plain = Plain(self._settings.include)
        return found or ("plain" if self.tree(commit, plain.included) else None)

    def ever_plain(self, commit: str) -> bool:
        """Whether anything in plain stands in the history of a commit."""
        places = self.layout.plain_places
        return bool(commit and self._local("log", "-1", "--format=%H", commit, "--", *places))

    def project_path(self, name: str, id: str = "") -> str:
        """Where the file of a new project goes; with ``id`` when that place is taken."""
        if self.layout.sealed:
            self.must_fit(self.tip())
        return self.layout.project_path(name, id)

    def oid(self, path: str, data: bytes) -> str:
        """The blob id that these bytes will have there: the next ``commit`` stores just this blob.

        To be asked after ``must_fit``.
        """
        return oid_of(self._store(path, data))

    def _store(self, path: str, data: bytes) -> bytes:
        """What is stored for a file. Sealing it again would make another blob."""
        if not is_sealed(path):
            return data
        if (path, data) not in self._stored:
            self._stored[path, data] = self.layout.encode(path, data)
        return self._stored[path, data]

    def _encoded(self, commit: Commit) -> Commit:
        files = {
            path: None if data is None else self._store(path, data)
            for path, data in commit.files.items()
        }
        return replace(commit, files=files)

    def _opened(self, path: str, oid: str, stored: bytes) -> bytes:
        """The plaintext of a blob that the clone gave, if it is the blob that was asked for."""
        if oid_of(stored) != oid:
            raise StorageError(f"the clone's copy of {path} is damaged", hint=self.mend)
        return self.layout.decode(path, stored)

    # --- running git -------------------------------------------------------------------------

    def _base(self) -> list[str]:
        return ["git", f"--git-dir={self.folder}"]

    def _read_ref(self, name: str) -> str:
        """A ref by its file: one process less in every command.

        Raises StorageError for one that names no commit: taken for none, all that it led to
        would look removed.
        """
        loose, packed = os.path.join(self.folder, name), os.path.join(self.folder, "packed-refs")
        with contextlib.suppress(OSError), open(loose, encoding="ascii", errors="replace") as file:
            commit = file.read().strip()
            if not re.fullmatch(_COMMIT, commit):
                raise StorageError(f"the clone's ref {loose} is damaged", hint=self.mend)
            return commit
        with contextlib.suppress(OSError), open(packed, encoding="utf-8") as file:
            for line in file:
                if line.rstrip("\n").endswith(f" {name}"):
                    return line.split(" ")[0]
        return ""

    def _local(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """A git command that touches the clone only."""
        deadline = Deadline(_LOCAL_SECONDS)
        for _ in range(3):
            result = gitcmd.run([*self._base(), *arguments], deadline, stdin)
            if result.code == 0:
                return result.output
            if not gitcmd.break_stale_lock(result.text, self.folder):
                break
        raise StorageError(
            f"git {arguments[0]} failed in {self.folder}: {gitcmd.last_line(result.text)}",
            hint=self.mend,
        )

    def _network(self, *arguments: str, deadline: Deadline) -> bytes:
        """A git command that talks to the remote; once more when that did not answer.

        A push whose acknowledgement was lost finds itself there at the next try.
        """
        from annoris.retry import patiently  # noqa: PLC0415

        return patiently(lambda: self._asked(*arguments, deadline=deadline), deadline, pause=_PAUSE)

    def _asked(self, *arguments: str, deadline: Deadline) -> bytes:
        command = [*self._base(), *arguments]
        for _ in range(3):
            result = gitcmd.run(command, deadline, extra=self._extra())
            if result.code == 0 and not re.search(rb"^!\t", result.output, re.MULTILINE):
                return result.output
            ours = (self.folder, self.remote) if self.local_remote else (self.folder,)
            if not gitcmd.break_stale_lock(result.text, *ours):
                break
        raise gitcmd.refusal(result, self.remote, self.branch)

    @contextlib.contextmanager
    def _stream(self, *arguments: str, stdin: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
        with gitcmd.process(
            [*self._base(), *arguments],
            gitcmd.environment(),
            stdin or gitcmd.NOTHING,
            gitcmd.NOTHING,
        ) as process:
            watch = threading.Timer(_LOCAL_SECONDS * 10, gitcmd.kill, (process,))
            watch.daemon = True
            watch.start()
            try:
                assert process.stdout is not None  # noqa: S101 - always a pipe
                yield process.stdout
            finally:
                watch.cancel()

    def _history(self, command: str, *arguments: str) -> bytes:
        """History through GitPython, which by itself strips the last newline and decodes."""
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import git  # noqa: PLC0415

        wrapper = git.Git(self.folder)
        try:
            answer: Any = wrapper.execute(
                [*self._base(), command, *arguments],
                as_process=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
                env=gitcmd.environment() | gitcmd.hidden(),
                kill_after_timeout=_LOCAL_SECONDS,
            )
        except git.GitCommandError as error:
            raise StorageError(
                f"git {command} failed: {gitcmd.last_line(str(error.stderr))}", hint=self.mend
            ) from error
        return bytes(answer)

    def _extra(self) -> dict[str, str]:
        """What only the network needs: credentials, how ssh behaves, and which branch follows."""
        extra = {
            f"remote.{_NAME}.url": self.remote,
            f"remote.{_NAME}.fetch": f"+{self._ref}:{self._ref}",
        }
        if self.remote.startswith(("http://", "https://")) and self._settings.token:
            import base64  # noqa: PLC0415

            login = base64.b64encode(f"x-access-token:{self._settings.token}".encode()).decode()
            extra[f"http.{self.remote}.extraHeader"] = f"Authorization: Basic {login}"
        if not self.local_remote and not self.remote.startswith("http"):
            ssh = os.environ.get("GIT_SSH_COMMAND") or self._configured("core.sshCommand") or "ssh"
            if "GIT_SSH" not in os.environ or "GIT_SSH_COMMAND" in os.environ:
                extra["core.sshCommand"] = f"{ssh} {gitcmd.SSH_OPTIONS}"
        return extra

    def _configured(self, key: str) -> str:
        result = gitcmd.run([*self._base(), "config", "--get", key], Deadline(5))
        return gitcmd.text(result.output).strip()

    def _author(self) -> str:
        """Name and mail for commits: as configured, as git knows the user, or our own."""
        if self._settings.author:
            return self._settings.author
        path = os.path.join(self.folder, "annoris-author")
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            return file.read()
        result = gitcmd.run([*self._base(), "var", "GIT_AUTHOR_IDENT"], Deadline(5))
        who = gitcmd.text(result.output).rpartition(" ")[0].rpartition(" ")[0]
        if not re.fullmatch(r"[^<>\n]+ <[^<>\s]+>", who):
            who = "Annoris <annoris@localhost>"
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(who)
        return who

    @property
    def mend(self) -> str:
        """What a person can do about a broken clone."""
        return "annoris verify --repair"


def _blobs(lines: list[bytes], wanted: Callable[[str], bool]) -> dict[str, str]:
    found = {}
    for line in lines:
        head, _, raw = line.partition(b"\t")
        if head.startswith(b"100") and wanted(path := gitcmd.text(raw)):
            found[path] = head.split(b" ")[2].decode()
    return found


def _import(commit: Commit, mark: int, who: str, parent: str, merge: str = "") -> list[bytes]:
    stamp = f"{who} {_seconds(commit.at)} +0000"
    message = commit.message.encode(errors="surrogateescape")
    if commit.batch:
        message += f"\n\n{_TRAILER}: {commit.batch}\n".encode()
    parts = [
        f"commit {_NEXT}\nmark :{mark}\nauthor {stamp}\ncommitter {stamp}\n".encode(),
        b"data %d\n%b\n" % (len(message), message),
    ]
    parts += [f"from {parent}\n".encode()] if parent else []
    parts += [f"merge {merge}\n".encode()] if merge else []
    for path, data in commit.files.items():
        name = _quoted(path)
        if data is None:
            parts.append(b"D " + name + b"\n")
        else:
            parts += [b"M 100644 inline " + name + b"\n", b"data %d\n" % len(data), data, b"\n"]
    return parts


def _quoted(path: str) -> bytes:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'.encode(errors="surrogateescape")  # a name on master need not be UTF-8


def _split(stream: IO[bytes], mark: bytes) -> Iterator[bytes]:
    """The records between marks, without empty ones, read piece by piece."""
    rest = b""
    while piece := stream.read(65536):
        *records, rest = (rest + piece).split(mark)
        yield from (record for record in records if record)
    if rest:
        yield rest


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(iso: str) -> int:
    return max(0, int(datetime.fromisoformat(iso).timestamp()))


def oid_of(data: bytes) -> str:
    """The git blob id of bytes."""
    blob = b"blob %d\0%b" % (len(data), data)
    if "hashlib" not in sys.modules:  # it loads OpenSSL, a twentieth of a load's time
        with contextlib.suppress(ImportError):
            from _sha1 import sha1  # type: ignore[import-not-found]  # noqa: PLC0415

            return str(sha1(blob).hexdigest())
    import hashlib  # noqa: PLC0415

    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def now() -> str:
    """This moment, as git and we write it."""
    return _iso(int(time.time()))


def tidy(folder: str, seconds: float) -> None:
    """Remove what git was writing into a repository when it was killed, if that is longer ago."""
    for place, _, names in os.walk(os.path.join(folder, "objects")):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                if name.startswith("tmp_") and time.time() - os.stat(path).st_mtime > seconds:
                    os.unlink(path)
