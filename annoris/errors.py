"""Everything that can go wrong on purpose, as one tree.

    AnnorisError                 the root; only its children are raised
    ├── UsageError               usage        the command line asks for something impossible
    ├── ConfigError              config       configuration that can't be used
    │   └── ScopeMismatch        config-scope  master is sealed, this machine not; or vice versa
    ├── NotFound                 not-found    no such session, project, revision
    ├── Ambiguous                ambiguous    a selector that fits several sessions
    ├── Conflict                 conflict     two versions; both are kept
    ├── Unavailable              unavailable  no tier could answer
    ├── TierDown                 tier-down    a cache does not answer
    ├── DocumentRefused          document     structure, size or encoding of a document
    ├── CredentialFound          credential   a secret stands in a document
    ├── KeyProblem               key          an encryption key is wrong or missing
    │   ├── WrongKey             key-wrong
    │   ├── Tampered             key-tampered
    │   ├── Truncated            key-truncated
    │   └── NewerFormat          key-newer
    ├── FindingsFound            findings     verify found something
    ├── RemoteRefused            refused      master's server said no, for good
    │   ├── AuthRefused          refused-auth
    │   ├── PolicyRefused        refused-policy
    │   └── MasterShrunk         master-shrunk  master lost so much that a person must say yes
    ├── RemoteUnreachable        unreachable  master's server did not answer, for now
    ├── Locked                   locked       another run holds the lock
    ├── OutOfTime                deadline     a command did not end by its deadline
    ├── StorageError             storage      this machine's disk, or a cache, refused for good
    │   └── DiskFull             storage-full there is no space left on this machine
    └── Queued                   queued       saved here, not on master yet

A class carries a ``code`` that never changes; each edge maps codes to its own
answers (exit codes in ``cli``, HTTP statuses in ``server``). A message names what
and where; ``hint`` says what to do next, as a command where there is one.
"""

from __future__ import annotations

from typing import Literal


class AnnorisError(Exception):
    """The root. ``details`` is JSON-ready data for machines."""

    code = "error"
    transient = False  # whether the same thing may work a moment later

    def __init__(
        self, message: str, *, hint: str = "", details: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}


class UsageError(AnnorisError):
    code = "usage"


class ConfigError(AnnorisError):
    code = "config"


class ScopeMismatch(ConfigError):
    code = "config-scope"


class NotFound(AnnorisError):
    code = "not-found"


class Ambiguous(AnnorisError):
    code = "ambiguous"


class Conflict(AnnorisError):
    code = "conflict"


class Unavailable(AnnorisError):
    code = "unavailable"


class TierDown(AnnorisError):
    """A cache does not answer, or answers that it can't work now; another tier may.

    ``mend`` is what a person can do about it.
    """

    code = "tier-down"

    def __init__(
        self, message: str, *, hint: str = "", mend: str = "", transient: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.mend = mend
        self.transient = transient


class DocumentRefused(AnnorisError):
    code = "document"


class CredentialFound(AnnorisError):
    code = "credential"


class KeyProblem(AnnorisError):
    code = "key"


class WrongKey(KeyProblem):
    code = "key-wrong"


class Tampered(KeyProblem):
    code = "key-tampered"


class Truncated(KeyProblem):
    code = "key-truncated"


class NewerFormat(KeyProblem):
    code = "key-newer"


class FindingsFound(AnnorisError):
    code = "findings"


class RemoteRefused(AnnorisError):
    code = "refused"


class AuthRefused(RemoteRefused):
    code = "refused-auth"


class PolicyRefused(RemoteRefused):
    """The server's rules refuse the push.

    ``about``: the whole branch is protected; the content of a document (``paths`` are those
    that the server named, if it named any); or unknown, when a hook only said no.
    """

    code = "refused-policy"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        about: Literal["branch", "content", "unknown"] = "unknown",
        paths: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, details={"paths": list(paths)})
        self.about = about
        self.paths = paths


class MasterShrunk(RemoteRefused):
    code = "master-shrunk"


class RemoteUnreachable(AnnorisError):
    code = "unreachable"
    transient = True


class Locked(AnnorisError):
    code = "locked"


class OutOfTime(AnnorisError):
    code = "deadline"


class StorageError(AnnorisError):
    code = "storage"


class DiskFull(StorageError):
    code = "storage-full"


class Queued(AnnorisError):
    code = "queued"
