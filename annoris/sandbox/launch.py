"""Note who this process is, then become a program: so none is ever run that nobody knows of.

Run as a script: RECORD LOG FOLDER UID PROGRAM ARGUMENT…; UID 0 stays the user that it is.
"""

from __future__ import annotations

import json
import os
import sys


def identity(pid: int) -> str:
    """What tells this process from a later one of the same number; empty when it does not live."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        return "" if os.path.exists("/proc/self/stat") else _asked(pid)
    return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _asked(pid: int) -> str:
    """As ``ps`` tells it, where there is no /proc (macOS)."""
    with os.popen(f"LC_ALL=C ps -o state= -o lstart= -p {int(pid)}") as answer:  # noqa: S605
        state, _, started = answer.read().strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def main(record: str, log: str, folder: str, uid: int, command: list[str]) -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDONLY)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(source, target)
    os.closerange(3, 64)
    with open(os.open(f"{record}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"pid": os.getpid(), "started": identity(os.getpid())}, file)
    os.replace(f"{record}.new", record)
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.execvp(command[0], command)  # noqa: S606 - no shell is involved


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:])
