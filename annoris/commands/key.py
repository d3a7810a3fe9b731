"""annoris key"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from annoris.commands import Json, Quiet, archive, settings, speak
from annoris.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)
PassphraseFile = Annotated[
    str, typer.Option(metavar="FILE|-", help="A file with the passphrase; - is stdin.")
]
_HOT = {
    "none": "not configured",
    "empty": "has seen no key yet",
    "accepted": "accepts the current key",
    "behind": "still goes by an older key; annoris key rotate brings it in step",
}


@app.callback(invoke_without_command=True)
def key(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """Show or change the encryption keys. They seal what caches, or master too, hold.

    \b
    annoris key
    annoris key export --passphrase-file FILE
    """
    if context.invoked_subcommand is None:
        check(json, quiet)


@app.command()
def check(json: Json = False, quiet: Quiet = False) -> None:
    """Try the keys on the hot cache and a sealed master. And say which one seals.

    \b
    annoris key check
    """
    from annoris import keys

    where = settings()
    if where.encryption.scope == "everything":
        opened = archive()
        opened.look()
        opened.must_fit()
    state = keys.check(where)
    output = speak(json, quiet)
    if json or not quiet:
        facts = [
            ("current", state.current),
            ("older", ", ".join(state.older) or "none"),
            ("from", state.source),
            ("hot", _HOT[state.hot]),
        ]
        output.facts(facts, key=asdict(state))


@app.command()
def new(json: Json = False, quiet: Quiet = False) -> None:
    """Make the first key. Its recovery phrase is printed, once.

    \b
    annoris key new
    """
    from annoris import keys

    phrase, state = keys.create(settings())
    output = speak(json, quiet)
    if json:
        output.emit(key=asdict(state))
        return
    output.line(phrase)
    output.note("write this recovery phrase down: with it anybody can read, without a key nobody")


@app.command()
def export(passphrase_file: PassphraseFile = "", json: Json = False, quiet: Quiet = False) -> None:
    """Print keys to carry them over. The current one as a phrase, all under a passphrase.

    \b
    annoris key export > phrase.txt
    annoris key export --passphrase-file FILE > keys.txt
    """
    from annoris import keys

    passphrase = _passphrase(passphrase_file)
    text, ids = keys.export(settings(), passphrase)
    output = speak(json, quiet)
    if json:
        output.emit(export=text, ids=ids)
        return
    output.line(text)
    opens = "opens with the passphrase" if passphrase else "is the key itself: keep it secret"
    output.note(f"this {opens}; it holds {', '.join(ids)}")


@app.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="A phrase, a key or an export; - is stdin.")
    ],
    passphrase_file: PassphraseFile = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take keys from another machine. The first of them seals here, the others stay.

    \b
    annoris key import phrase.txt
    annoris key import keys.txt --passphrase-file FILE
    """
    from annoris import keys

    if file == passphrase_file == "-":
        raise UsageError("stdin can't be both", hint="put the passphrase into a file")
    state = keys.bring(settings(), _text(file), _passphrase(passphrase_file))
    output = speak(json, quiet)
    if json:
        output.emit(key=asdict(state))
    output.note(f"key {state.current} seals from now on; to try it: annoris key check")


@app.command()
def rotate(json: Json = False, quiet: Quiet = False) -> None:
    """Seal everything under a new key. Or go on with a rotation that was stopped.

    \b
    annoris key rotate
    """
    from annoris.bootstrap import rotate as rotate_keys

    output = speak(json, quiet)
    with output.working("sealing again"):
        done = rotate_keys(settings())
    if json:
        output.emit(rotation=asdict(done))
        return
    if not done.made:
        output.note("an earlier rotation is finished; for one more key run this again")
    if done.dropped:
        output.warn(f"{done.dropped} damaged contents were dropped; loads bring them back")
    output.note(
        f"key {done.current} is current, contents sealed again: {done.resealed}; older keys "
        "stay to read.\nWhat the emergency cache holds expires by itself. Give the other machines "
        "the new key: annoris key export"
    )


@app.command()
def retire(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Eight hex digits; see annoris key.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Throw an older key away. Not while the hot cache needs it, nor on a sealed master.

    Contents of older dumps that are under it do not open any more.

    \b
    annoris key retire 3f2a9c1e
    """
    from annoris import keys

    state = keys.retire(settings(), key_id.lower())
    output = speak(json, quiet)
    if json:
        output.emit(key=asdict(state))
    output.note(
        f"key {key_id.lower()} is gone from here; left: {state.current}, the current one"
        f"{''.join(f', {older}' for older in state.older)}"
    )


def _passphrase(path: str) -> str | None:
    return _text(path).rstrip("\r\n") if path else None


def _text(path: str) -> str:
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name a file, or - for stdin") from error
    return data.decode("utf-8-sig", "surrogateescape")
