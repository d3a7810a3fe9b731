"""What a verb costs in processes and round trips: counts are the same on every machine."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import typer
from typer.core import TyperGroup
from typer.main import get_command

from annoris import cli
from tests.support import githttp
from tests.support.machine import Machine

_GOODBYE = b"X\0\0\0\4"  # PostgreSQL's, which nobody waits for
EVER_NEW = {"master_fresh_seconds": "0.001"}  # each verb asks master


def _counting(here: Machine, folder: Path) -> Callable[..., int]:
    """Run a verb and count the git processes that it starts itself."""
    git, log, programs = shutil.which("git"), folder / "log", folder / "programs"
    programs.mkdir()
    (programs / "git").write_text(f'#!/bin/sh\necho x >> "{log}"\nexec "{git}" "$@"\n')
    (programs / "git").chmod(0o755)
    path = f"{programs}{os.pathsep}{here.environment['PATH']}"

    def count(*arguments: str | Path) -> int:
        log.unlink(missing_ok=True)
        ran = here.run(*arguments, env={"PATH": path})
        assert ran.code == 0, ran.err
        return len(log.read_text().splitlines()) if log.exists() else 0

    return count


def test_each_verb_starts_few_git_processes(
    machine: Callable[..., Machine], remote: Path, tmp_path: Path
) -> None:
    """With a remote: one that asks it, and one or two for the work."""
    here = machine("laptop", remote, **EVER_NEW)
    count = _counting(here, tmp_path)
    here.save(b"# First\n\ntext\n", b"# Second\n\ntext\n")
    note = here.write("note.md", "# Note\n\ntext\n")
    assert count("save", note) <= 3
    here.write("note.md", "# Note\n\nmore text\n")
    assert count("save", note) <= 3
    assert count("sync") <= 2
    assert count("load") <= 2
    assert count("list") <= 1
    assert count("search", "text") <= 1
    many = [here.write(f"many-{n}.md", f"# Many {n}\n\ntext {n}\n") for n in range(30)]
    assert count("save", *many) <= 3


def test_files_that_only_git_can_date_take_one_walk_of_history_however_many(
    machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """Each was one for 2,000 files: adopting a large repository took the square of its size."""
    taken = []
    for number in (10, 4100):
        remote = githttp.bare(tmp_path / f"{number}.git")
        folder = tmp_path / f"counted {number}"
        folder.mkdir()
        githttp.commit(remote, {f"sessions/x/{n}.md": b"# N %d\n" % n for n in range(number)})
        here = machine(f"with {number}", remote)
        taken.append(_counting(here, folder)("sync"))
        shown = here.run("list", "--project", "x", "--json", "-n", "5000").json["sessions"]
        assert len(shown) == number
        assert all(row["saved"] > "1970-01-02" for row in shown)
    assert taken[0] == taken[1]


@contextmanager
def _turns(url: str) -> Iterator[tuple[str, list[list[int]]]]:
    """A way to a PostgreSQL on which the client's turns are counted, by connection."""
    parts = urlsplit(url)
    listener, turns = socket.create_server(("127.0.0.1", 0)), list[list[int]]()

    def serve(client: socket.socket) -> None:
        mine, last = [0], threading.Event()  # set: the server spoke last
        turns.append(mine)
        last.set()

        def down(server: socket.socket) -> None:
            while data := server.recv(65536):
                last.set()
                client.sendall(data)

        with client, socket.create_connection(("127.0.0.1", parts.port or 5432)) as server:
            back = threading.Thread(target=down, args=(server,))
            back.start()
            while data := client.recv(65536):
                mine[0] += last.is_set() and data != _GOODBYE
                last.clear()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
            back.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    user = f"{parts.username}@" if parts.username else ""
    port = listener.getsockname()[1]
    try:
        yield urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{port}")), turns
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()


def test_a_load_from_the_hot_cache_is_one_round_trip_after_the_connection(
    machine: Callable[..., Machine], remote: Path, hot_url: str
) -> None:
    with _turns(hot_url) as (url, turns):
        here = machine("laptop", remote, hot_url=url, hot_seconds="20", hot_load_seconds="20")
        here.save(b"# First\n\n**Name:** first\n\ntext\n", name="first")
        del turns[:]
        psycopg.connect(url).close()
        ((connecting,),) = turns
        id = here.run("list", "--json").json["sessions"][0]["id"]
        for selector in ("", "first", id):
            del turns[:]
            assert here.load(selector).endswith(b"text\n")
            assert turns == [[connecting + 1]], selector


def test_the_manual_says_of_each_command_what_its_own_help_says() -> None:
    """It is kept as a table, so that help imports no command."""
    group = get_command(cli.app)
    assert isinstance(group, TyperGroup)
    context = typer.Context(group)
    for name, said in cli._COMMANDS.items():
        command = group.get_command(context, name)
        assert command is not None
        told = " ".join((command.help or "").split("\b")[0].split())
        assert told.startswith(said), name
