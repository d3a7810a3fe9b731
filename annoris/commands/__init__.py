"""One thin file per command: parse, call, show. ``ls`` of this folder is the manual.

A command imports what it needs when it runs: a signature is read for help too, which
must not pay for the archive. The modules of everyday commands do without postponed annotations,
each of which typer would compile again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from annoris.archive import Archive
    from annoris.console import Output
    from annoris.model import Alert, Receipt
    from annoris.settings import Settings

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Answer one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing when all is well.")]
InProject = Annotated[
    str,
    typer.Option("--project", "-p", metavar="NAME", help="The project; default: this folder's."),
]
Selector = Annotated[
    str,
    typer.Argument(
        metavar="[SEL]",
        help="A name, project/name, the start or the last 8 of an id, or a path on master. "
        "Nothing: the newest of this project.",
    ),
]
WHAT = Annotated[str, typer.Argument(metavar="SEL", help="A name, project/name, id or path.")]

config_file = ""  # what --config said, before any command runs


def settings() -> Settings:
    from annoris.settings import load

    return load(config_file or None)


def archive() -> Archive:
    """The archive of this machine, closed when the command ends."""
    import atexit

    from annoris.bootstrap import open_archive

    opened = open_archive(settings())
    atexit.register(opened.close)
    return opened


def speak(json: bool, quiet: bool) -> Output:
    from annoris.console import Output

    return Output(json, quiet)


def alerting(
    output: Output,
    where: Archive,
    events: Callable[[T | Exception], Iterable[Alert]],
    work: Callable[[], T],
) -> T:
    """Do ``work`` and tell people what ``events`` sees in its answer, or in what it raises."""
    from annoris.alerts import tell

    try:
        answer = work()
    except Exception as error:
        output.complain(tell(where, events(error)))
        raise
    output.complain(tell(where, events(answer)))
    return answer


def exit_code(receipts: list[Receipt]) -> int:
    """What the receipts of one command mean for its caller; the worst decides."""
    states = {receipt.state for receipt in receipts}
    worst = (("refused", 10), ("queued", 75), ("conflict", 4))
    return next((code for state, code in worst if state in states), 0)
