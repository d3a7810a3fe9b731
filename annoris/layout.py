"""What master's files look like: Markdown under telling names, or envelopes under opaque ones.

``.annoris/format.toml`` says which of the two a master is. A path alone says how its bytes are
stored, so that the history of a master that was converted can be read in both forms. The words
of commits belong to the form too: those of a sealed master name nothing.

An envelope on master is bound to the id in its path, so that two files can't be swapped. It
can't be bound to its blob id, which only the sealed bytes have; git's history orders revisions.
All of master is under one key, the one that the proof in ``format.toml`` names, whatever older
or newer keys this machine has.

Pure: files, keys and git are given by the callers. A plain layout imports no cryptography.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from annoris.errors import ConfigError, KeyProblem, ScopeMismatch, Tampered, Truncated, WrongKey
from annoris.model import Draft

if TYPE_CHECKING:
    from annoris.envelope import Key, KeyRing

Scope = Literal["plain", "sealed"]
Keys = Callable[[bool], "KeyRing"]  # told whether a first key may be made

FORMAT = ".annoris/format.toml"
SETTING = {"plain": "caches", "sealed": "everything"}  # encryption.scope of a machine that fits

_VERSION = 1
_SEALED = r"sealed/([0-9a-f]{2})/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{10}\1)\.annoris"
_SEALED_PROJECT = r"projects/([0-9a-f]{32})\.annoris"
_TRANSCRIPT = (
    r"transcripts/([0-9a-f]{2})/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{10}\1)"
    r"\.(?:jsonl\.gz|annoris)"
)
_FIELD = r'(?m)^(\w+)[ \t]*=[ \t]*"?([^"\n]*?)"?[ \t\r]*$'
_ON_MASTER = "master"  # what envelopes are bound to in the place of a blob id
_NAMES = "names"


def id_in(path: str) -> str:
    """The id that a sealed session's path says; empty for any other path."""
    found = re.fullmatch(_SEALED, path) if path.startswith("sealed/") else None
    return found[2] if found else ""


def transcript_of(path: str) -> str:
    """The id of the session whose transcript lies at a path, in either form; else empty."""
    found = re.fullmatch(_TRANSCRIPT, path) if path.startswith("transcripts/") else None
    return found[2] if found else ""


def is_sealed(path: str) -> bool:
    """Whether a file at this path is an envelope."""
    return path.endswith(".annoris") and bool(_bound_to(path))


def scope_in(told: bytes | None) -> Scope | None:
    """What ``format.toml`` says; None where there is none. Raises ConfigError for a newer one."""
    if told is None:
        return None
    said = _fields(told)
    if said.get("version", "1") != str(_VERSION):
        raise ConfigError(
            f"master was set up by a newer Annoris (format {said['version'][:20]})",
            hint="upgrade Annoris on this machine",
        )
    return "sealed" if said.get("scope") == "sealed" else "plain"


def places(id: str) -> tuple[str, str]:
    """Pathspecs of where a session may have lain, in either form."""
    return f":(glob)**/*-{id[-8:]}.md", f":(literal){_sealed_path(id)}"


class Layout(ABC):
    """One of the two forms. Raises nothing but what ``fit`` and ``decode`` say."""

    scope: Scope
    foundation_paths: tuple[str, ...]

    def __init__(self, include: tuple[str, ...], keys: Keys | None = None) -> None:
        """``include``: globs of the sessions of a plain master. ``keys`` are asked at need."""
        self._include = include
        self._markdown = _matcher(include)
        self._keys = keys or _no_keys
        self._ring: KeyRing | None = None

    @property
    def sealed(self) -> bool:
        return self.scope == "sealed"

    @property
    def plain_places(self) -> tuple[str, ...]:
        """Pathspecs of what stands in plain on a master: sessions and projects."""
        globs = ("sessions/**/*.md", "projects/*.toml", *self._include)
        return tuple(f":(glob){glob}" for glob in globs)

    @abstractmethod
    def included(self, path: str) -> bool:
        """Whether a file on master is a session."""

    @abstractmethod
    def stray(self, path: str) -> bool:
        """Whether a file has the look of one that the other form would hold."""

    @abstractmethod
    def path_for(self, project: str, title: str, created: str, id: str) -> str:
        """Where a new session goes. Raises ValueError for what is no date or no UUID."""

    @abstractmethod
    def is_project(self, path: str) -> bool:
        """Whether a file on master is a project's own."""

    @abstractmethod
    def project_path(self, name: str, id: str = "") -> str:
        """Where the file of a new project goes; with ``id`` when that place is taken.

        The layout has been fitted to a master.
        """

    def transcript_path(self, id: str) -> str:
        """Where the transcript of a session lies."""
        return f"transcripts/{id[-2:]}/{id}.{'annoris' if self.sealed else 'jsonl.gz'}"

    @abstractmethod
    def fit(self, told: bytes | None, remote: str) -> None:
        """Make ready to write to the master whose ``format.toml`` says ``told``.

        Raises ScopeMismatch when it has the other form, WrongKey and the other KeyProblems
        when no key here opens its proof. ``remote`` is for the words.
        """

    @abstractmethod
    def begin(self) -> None:
        """Make ready to give a master this form; with a first key, where one is needed.

        Does nothing to a layout that has been fitted already.
        """

    @abstractmethod
    def foundation(self) -> dict[str, bytes]:
        """The first files of a master that begins with this form."""

    @abstractmethod
    def encode(self, path: str, data: bytes) -> bytes:
        """The bytes to store; the same again where the path is not a sealed one."""

    @abstractmethod
    def message(self, drafts: list[Draft]) -> str:
        """The subject of the commit that brings these drafts."""

    @abstractmethod
    def words(self, subject: str) -> str:
        """The subject of any other commit."""

    def decode(self, path: str, data: bytes) -> bytes:
        """The plaintext of what is stored at a path. Raises KeyProblem, naming the path."""
        if not is_sealed(path):
            return data
        from annoris.envelope import open_  # noqa: PLC0415

        self._ring = self._ring or self._keys(False)
        text = data.decode("ascii", "replace")
        try:
            return open_(text, ring=self._ring, session=_bound_to(path), oid=_ON_MASTER)
        except (Tampered, Truncated) as error:
            raise type(error)(
                f"{path} on master was not sealed for this place: {error.message}",
                hint=f"its older revisions are in: annoris history {path}",
            ) from error


class Plain(Layout):
    """Markdown under names that say project, date and title."""

    scope = "plain"
    foundation_paths = (FORMAT, "sessions/.gitattributes")

    def included(self, path: str) -> bool:
        return self._markdown(path)

    def stray(self, path: str) -> bool:
        return path.startswith(("sealed/", "projects/")) and path.endswith(".annoris")

    def path_for(self, project: str, title: str, created: str, id: str) -> str:
        from annoris import naming  # noqa: PLC0415

        return naming.path_for(project, title, created, id)

    def is_project(self, path: str) -> bool:
        from annoris import projects  # noqa: PLC0415

        return path.startswith("projects/") and projects.is_file(path)

    def project_path(self, name: str, id: str = "") -> str:
        from annoris import projects  # noqa: PLC0415

        return projects.file_for(name, id)

    def fit(self, told: bytes | None, remote: str) -> None:
        if scope_in(told) == "sealed":
            raise mismatch("sealed", remote)

    def begin(self) -> None:
        """Nothing is needed."""

    def foundation(self) -> dict[str, bytes]:
        return {
            FORMAT: b'# Annoris keeps sessions in this repository.\nversion = 1\nscope = "plain"\n',
            # Bytes stay bytes in every checkout: no line-end conversion for what we wrote.
            "sessions/.gitattributes": b"* -text\n",
        }

    def encode(self, path: str, data: bytes) -> bytes:  # noqa: ARG002
        return data

    def message(self, drafts: list[Draft]) -> str:
        drafts = _telling(drafts)
        first = drafts[0]
        verb = _VERBS[first.op]
        what = first.title or first.name or first.path
        if len(drafts) > 1:
            return f"{verb} {len(drafts)} sessions, {what[:40]} first"
        return f"{verb} {' '.join(what.split())[:60]}"

    def words(self, subject: str) -> str:
        return subject


class Sealed(Layout):
    """Envelopes under ids. A name that says something stands in none of its paths."""

    scope = "sealed"
    foundation_paths = (FORMAT, "sealed/.gitattributes")

    def __init__(self, include: tuple[str, ...], keys: Keys | None = None) -> None:
        super().__init__(include, keys)
        self._key: Key | None = None  # the one that master goes by
        self._names: Key | None = None  # makes the names of projects; outlives rotations

    @property
    def key_id(self) -> str:
        """The id of the key that the fitted master goes by; empty before."""
        return self._key.id if self._key else ""

    def included(self, path: str) -> bool:
        return bool(id_in(path))

    def stray(self, path: str) -> bool:
        from annoris import projects  # noqa: PLC0415

        misplaced = path.startswith("sealed/") and path.endswith(".annoris") and not id_in(path)
        return misplaced or self._markdown(path) or projects.is_file(path)

    def path_for(self, project: str, title: str, created: str, id: str) -> str:  # noqa: ARG002
        path = _sealed_path(id)
        if not id_in(path):
            raise ValueError(f"no path without a UUID: {id!r}")
        return path

    def is_project(self, path: str) -> bool:
        return path.startswith("projects/") and is_sealed(path)

    def project_path(self, name: str, id: str = "") -> str:
        from annoris import projects  # noqa: PLC0415
        from annoris.envelope import pseudonym  # noqa: PLC0415

        plain = projects.file_for(name, id)  # names that share a file there share one here
        return f"projects/{pseudonym(plain, self._fitted()[1])}.annoris"

    def fit(self, told: bytes | None, remote: str) -> None:
        from annoris import envelope  # noqa: PLC0415

        scope = scope_in(told)
        if told is None or scope != "sealed":
            raise mismatch(scope, remote)
        said, ring = _fields(told), self._keys(False)
        proof, names = said.get("proof", ""), said.get("names", "")
        try:
            envelope.check(ring, proof)
            secret = envelope.open_(names, ring=ring, session=_NAMES, oid=_ON_MASTER)
        except WrongKey as error:
            raise _wrong_key(error, remote) from error
        except (Tampered, Truncated) as error:
            raise type(error)(
                f"{FORMAT} on master was changed: {error.message}",
                hint=f"see by whom: annoris history {FORMAT}",
            ) from error
        self._ring, self._names = ring, envelope.Key(secret)
        self._key = ring.find(envelope.sealed_by(proof))

    def turn(self) -> None:
        """Go by this machine's current key from now on, for a rotation; names stay."""
        names = self._fitted()[1]
        self._ring = self._keys(False)
        self._key, self._names = self._ring.current, names

    def begin(self) -> None:
        from annoris import envelope  # noqa: PLC0415

        if self._key is None:
            self._ring = self._keys(True)
            self._key = self._ring.current
            # Made from the key, so that two machines that begin at once make the same.
            self._names = envelope.derived(self._key, _NAMES)

    def foundation(self) -> dict[str, bytes]:
        from annoris import envelope  # noqa: PLC0415

        self.begin()
        key, names = self._fitted()
        sealed = envelope.seal(names.secret, key=key, session=_NAMES, oid=_ON_MASTER)
        text = (
            "# Annoris keeps sessions in this repository, sealed: without the key they are noise.\n"
            f'version = 1\nscope = "sealed"\nproof = "{envelope.proof(key)}"\nnames = "{sealed}"\n'
        )
        # What is sealed neither has lines nor is like anything else.
        return {FORMAT: text.encode(), "sealed/.gitattributes": b"* -text -diff -delta\n"}

    def encode(self, path: str, data: bytes) -> bytes:
        if not is_sealed(path):
            return data
        from annoris.envelope import seal  # noqa: PLC0415

        key = self._fitted()[0]
        return seal(data, key=key, session=_bound_to(path), oid=_ON_MASTER).encode()

    def message(self, drafts: list[Draft]) -> str:
        drafts = _telling(drafts)
        verb = _VERBS[drafts[0].op]
        return f"{verb} {len(drafts)} session{'s' * (len(drafts) > 1)}"

    def words(self, subject: str) -> str:  # noqa: ARG002
        return "Change what is kept here"

    def _fitted(self) -> tuple[Key, Key]:
        assert self._key is not None and self._names is not None, "not fitted"  # noqa: S101, PT018
        return self._key, self._names


_VERBS = {"save": "Save", "delete": "Delete", "attach": "Keep"}


def _telling(drafts: list[Draft]) -> list[Draft]:
    """The drafts that a commit is about: transcripts only when there is nothing else."""
    return [draft for draft in drafts if draft.op != "attach"] or drafts[:1]


def _sealed_path(id: str) -> str:
    return f"sealed/{id[-2:]}/{id}.annoris"


def _bound_to(path: str) -> str:
    """What the envelope at a path is bound to; empty where there is none."""
    project = re.fullmatch(_SEALED_PROJECT, path)
    transcript = transcript_of(path)
    if project or transcript:
        return f"project {project[1]}" if project else f"transcript {transcript}"
    return id_in(path)


def _fields(told: bytes) -> dict[str, str]:
    return dict(re.findall(_FIELD, told.decode("utf-8", "replace")))


def _no_keys(_: bool) -> KeyRing:
    raise KeyProblem("no key was given")


def mismatch(found: Scope | None, remote: str) -> ScopeMismatch:
    """What to say of a master that has the other form, or none that it tells of."""
    where, init = remote or "master", f"annoris init{remote and f' --remote {remote}'}"
    if found is None:
        return ScopeMismatch(
            f"{where} was not set up for encryption.scope = everything; nothing was written",
            hint=f"set it up: {init}",
        )
    ours = SETTING["plain" if found == "sealed" else "sealed"]
    return ScopeMismatch(
        f"{where} is {found}, but encryption.scope of this machine is {ours}; nothing was written",
        hint=f"make this machine fit: {init} --scope {SETTING[found]}; or change master, for all "
        f"machines: {init} --scope {ours} --convert",
    )


def _wrong_key(error: WrongKey, remote: str) -> WrongKey:
    needed, have = error.details["needed"], error.details["have"]
    assert isinstance(have, list)  # noqa: S101 - as envelope says
    return WrongKey(
        f"{remote or 'master'} is sealed with key {needed}; here is {', '.join(have)}",
        hint="on a machine that has it: annoris key export; here: annoris key import, "
        "or set ANNORIS_KEY",
        details=error.details,
    )


def _matcher(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """A test for paths by globs in which ``**/`` spans folders and ``*`` does not."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(glob: str) -> str:
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
        return "".join(pieces.get(part, re.escape(part)) for part in parts)

    expression = re.compile(
        "|".join(f"(?:{translate(glob)})" for glob in globs) or r"(?!)", re.DOTALL
    )
    return lambda path: bool(expression.fullmatch(path)) and not path.startswith(".annoris/")
