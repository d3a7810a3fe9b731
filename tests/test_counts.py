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
from tests.support.githttp import GitServer
from tests.support.machine import Machine

_GOODBYE = b"X\0\0\0\4"  # PostgreSQL's, which nobody waits for
EVER_NEW = {"master_fresh_seconds": "0.001"}  # each verb asks master


def _counting(here: Machine, folder: Path) -> Callable[..., int]:
    """Run a verb and count the git processes that it starts itself."""
    git, log, programs = shutil.which("git"), folder / "log", folder / "programs"
    programs.mkdir(parents=True)
    (programs / "git").write_text(f'#!/bin/sh\necho x >> "{log}"\nexec "{git}" "$@"\n')
    (programs / "git").chmod(0o755)
    path = f"{programs}{os.pathsep}{here.environment['PATH']}"

    def count(*arguments: str | Path) -> int:
        log.unlink(missing_ok=True)
        ran = here.run(*arguments, env={"PATH": path})
        assert ran.code == 0, ran.err
        return len(log.read_text().splitlines()) if log.exists() else 0

    return count


def _manual() -> dict[str, list[int]]:
    """The table of counts in the manual: verb → processes, requests, turns, bytes at most."""
    page = Path(__file__).parent.parent / "docs" / "performance.md"
    rows = page.read_text().partition("\n## Counts\n")[2].partition("\n## ")[0].splitlines()
    cells = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in rows
        if row.startswith("| `")
    ]
    return {verb: [int(one.replace(",", "")) for one in row] for verb, *row in cells}


def test_each_verb_costs_what_the_manual_says(
    machine: Callable[..., Machine], server: GitServer, hot_url: str, tmp_path: Path
) -> None:
    """Processes of git that it starts, requests to a git server, turns with PostgreSQL."""
    patient = {"hot_seconds": "20", "hot_load_seconds": "20"}
    with _turns(hot_url) as (url, turns):
        psycopg.connect(url).close()
        ((connecting,),) = turns
        found = {}
        for name, words in (("laptop", ""), ("desktop", ", with a hot cache")):
            settings = {"hot_url": url, **patient} if words else {}
            here = machine(name, server.url, **EVER_NEW, **settings)
            count = _counting(here, tmp_path / f"of-{name}")
            here.save(f"# First of {name}\n\ntext\n".encode())
            here.sync()
            note = here.write("note.md", f"# Note of {name}\n\ntext\n")
            many = [here.write(f"{n}.md", f"# {n} of {name}\n\ntext {n}\n") for n in range(30)]
            verbs: dict[str, tuple[str | Path, ...]] = {
                "`sync`": ("sync",), "`save`": ("save", note), "`save` of 30": ("save", *many),
                "`load`": ("load",), "`list`": ("list",), "`search`": ("search", "text"),
            }  # fmt: skip
            for verb, arguments in verbs.items():
                before = server.requests, server.pushed
                del turns[:]
                processes = count(*arguments)
                asked, pushed = server.requests - before[0], server.pushed - before[1]
                talked = sum(mine - connecting for (mine,) in turns)
                found[verb + words] = [processes, asked, talked, pushed]
    wanted = _manual()
    assert {verb: row[:3] for verb, row in found.items()} == {v: r[:3] for v, r in wanted.items()}
    for verb, (*_, pushed) in found.items():
        assert pushed <= wanted[verb][3] <= 2 * pushed, (verb, pushed)


def test_within_the_time_that_a_look_at_master_counts_for_nobody_is_asked_again(
    machine: Callable[..., Machine], server: GitServer, tmp_path: Path
) -> None:
    here = machine("laptop", server.url, master_fresh_seconds="3600")
    count = _counting(here, tmp_path)
    here.save(b"# First\n\ntext\n")
    before = server.requests
    assert [count("load"), count("list"), count("search", "text")] == [1, 0, 0]
    assert server.requests == before


def test_what_a_save_pushes_does_not_grow_with_the_number_of_sessions(
    machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """All of them in the folder that it goes to, which is the worst case."""
    pushed = []
    for size in (100, 2000):
        with GitServer(tmp_path / f"server-{size}") as server:
            here = machine(f"of-{size}", server.url)
            here.save(b"# First\n\ntext\n")
            month = next(path for path in server.files() if path.endswith(".md")).rpartition("/")[0]
            notes = {f"{month}/{n:04}-a-note.md": f"# Old {n}\n".encode() for n in range(size)}
            server.commit(notes)
            here.run("sync")
            before = server.pushed
            here.save(b"# Next\n\ntext\n")
            pushed.append(server.pushed - before)
    assert 0 < pushed[1] < pushed[0] + 200


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
