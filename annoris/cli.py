"""The command line: which commands there are, and what every outcome means for the caller."""

import atexit
import errno
import gc
import os
import signal
import sys
from importlib import import_module
from typing import Annotated, Any

gc.set_threshold(50_000)  # what imports make is no garbage: looking for some is 5 % of a start
atexit.register(gc.freeze)  # the last of all: nor is it at the end, where that would be a tenth

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402
from typer.main import get_command  # noqa: E402

from annoris import __version__, commands  # noqa: E402
from annoris.errors import AnnorisError, StorageError, UsageError  # noqa: E402

# The manual: the first sentence of each command's own help, in order. Its module is imported when
# it is run, or when its help is asked for.
_COMMANDS = {
    "save": "Save documents on master.",
    "load": "Bring a session back.",
    "list": "List sessions, newest first.",
    "search": "Find sessions by their text.",
    "history": "Show the revisions of a session.",
    "diff": "Show what changed between revisions.",
    "delete": "Remove a session from master.",
    "sync": "Deliver what waits and follow master.",
    "verify": "Check that every tier holds what master holds.",
    "log": "Show past runs.",
    "outbox": "Show what is only on this machine.",
    "projects": "List projects, show one, change what is kept of it.",
    "dump": "Dump the hot cache to a branch beside master.",
    "restore": "Bring the hot cache back from a dump.",
    "status": "Show where one stands.",
    "doctor": "Find what is misconfigured.",
    "alerts": "Show where alerts go, what waits, and what was told.",
    "key": "Show or change the encryption keys.",
    "schedule": "Run sync, verify and dump regularly.",
    "init": "Set up this machine or its remote.",
    "install": "Set up an assistant's client.",
    "uninstall": "Take out what install put into a client.",
    "import": "Make a session of each conversation that another tool keeps.",
    "mcp": "Serve assistants by MCP on stdin and stdout, until stdin ends.",
    "hook": "Answer an assistant's hook; its client runs this.",
    "serve": "Answer HTTP requests.",
    "token": "Make, list or revoke tokens of the server.",
    "webhook": "Have GitHub tell the server of each push.",
    "sandbox": "Try a whole Annoris on this machine.",
}
_FUNCTIONS = {"list": "list_", "import": "import_"}
_MODULES = {"import": "import_"}  # a word of Python's own names no module

EXIT = {
    "usage": 2, "config": 2, "config-scope": 2, "not-found": 3, "ambiguous": 3, "conflict": 4,
    "unavailable": 5, "document": 6, "credential": 7, "key": 8, "key-wrong": 8, "key-tampered": 8,
    "key-truncated": 8, "key-newer": 8, "findings": 9, "refused": 10, "refused-auth": 10,
    "refused-policy": 10, "master-shrunk": 10, "unreachable": 5, "locked": 11, "storage": 74,
    "storage-full": 74, "tier-down": 5, "deadline": 5, "queued": 75,
}  # fmt: skip

# What this machine refuses is no bug of ours, wherever it happens.
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO,
    errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip


# What typer calls a UsageError: it does not export the class itself, only what is derived from it.
_MISUSE: type[BaseException] = typer.BadParameter.__mro__[1]


class _Lazy(TyperGroup):
    """Commands by name, each imported only when needed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(_COMMANDS)  # type: ignore[assignment]  # to suggest

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"annoris.commands.{_MODULES.get(cmd_name, cmd_name)}")
        if hasattr(module, "app"):
            app = module.app
        else:
            app = typer.Typer(rich_markup_mode=None, add_completion=False)
            app.command(cmd_name)(getattr(module, _FUNCTIONS.get(cmd_name, cmd_name)))
        command = get_command(app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Lazy,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"annoris {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def annoris(
    context: typer.Context,
    config: Annotated[str, typer.Option(metavar="FILE", help="Read this configuration file.")] = "",
    sandbox: Annotated[
        bool,
        typer.Option(
            "--sandbox",
            envvar="ANNORIS_SANDBOX",
            show_envvar=False,
            help="Use the sandbox: annoris sandbox up.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """Save and restore the state of work between conversations.

    \b
    annoris save session.md     put it on master; exit 0 means it is there
    annoris load                bring the newest one of this project back
    """
    commands.config_file = config
    command = context.invoked_subcommand
    if sandbox and command != "sandbox":
        commands.config_file = _inside(command or "status", config)
    if command is None:
        import_module("annoris.commands.status").glance()


def _inside(command: str, config: str) -> str:
    """Step into the sandbox; answers its configuration."""
    from annoris.sandbox.place import enter  # noqa: PLC0415

    if command == "hook":  # an assistant in its shell: the person's spool is not for here
        raise typer.Exit
    if config:
        raise UsageError("--config and --sandbox are two archives", hint="give one of them")
    return enter(command)


def main() -> None:
    """Run, and turn every outcome into an exit code and at most a few lines."""
    signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        sys.exit(_run())
    except AnnorisError as error:
        sys.exit(_failed(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _close_stdout()
        sys.exit(141)
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        _close_stdout()
        sys.exit(141)  # typer said 1, which would mean a bug
    except OSError as error:
        if error.errno not in _REFUSALS:
            _bug(error)
            sys.exit(1)
        _close_stdout()
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_failed(StorageError(f"{where}{error.strerror}", hint="annoris doctor")))
    except Exception as error:  # noqa: BLE001 - the last line of defence
        _bug(error)
        sys.exit(1)


def _run() -> int:
    """Answers the exit code; misuse is worded as our own errors are, and as JSON where asked."""
    try:
        code = app(prog_name="annoris", standalone_mode=False)
    except _MISUSE as error:
        context: Any = getattr(error, "ctx", None)
        told = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        named = [word for word in sys.argv[1:] if word in _COMMANDS][:1]  # where typer names none
        hint = f"{context.command_path if context else ' '.join(['annoris', *named])} --help"
        raise UsageError(told[:1].lower() + told[1:], hint=hint) from None
    finally:
        sys.stdout.flush()  # what can't be written is an error, not ignored at exit
    return code if isinstance(code, int) else 0


def _failed(error: AnnorisError) -> int:
    from annoris.console import fail  # noqa: PLC0415

    fail(error, as_json="--json" in sys.argv)
    return EXIT[error.code]


def _close_stdout() -> None:
    """Nobody reads it, or it can't be written: what is still in its buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _bug(error: Exception) -> None:
    """Keep the traceback where it can be sent from, and say one line."""
    import tempfile  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    handle, path = tempfile.mkstemp(prefix="annoris-bug-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"annoris {__version__}, Python {sys.version}\n")
        traceback.print_exception(error, file=file)
    print(f"annoris: this is a bug: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
    print(f"  please report it with {path}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
