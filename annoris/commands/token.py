"""annoris token"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from annoris.commands import Json, Quiet, archive, speak

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def token(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """Make, list or revoke tokens of the server. They lie hashed on master.

    \b
    annoris token new --scope write --name laptop
    annoris token revoke laptop
    """
    if context.invoked_subcommand is None:
        list_(json, quiet)


@app.command()
def new(
    scope: Annotated[
        str, typer.Option(metavar="read|write|admin", help="What it may; each includes the others.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Whose it is.")] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a token. It is printed, once; servers know it within seconds.

    \b
    annoris token new --scope read --name grafana
    """
    from annoris.server import tokens

    output = speak(json, quiet)
    with output.working("talking to master"):
        text, made = tokens.new(archive(), scope, name)
    if json:
        output.emit(token=text, **_shown(made))
        return
    output.line(text)
    output.note(f"token {made.id} may {made.scope}; keep it: it can't be shown again")


@app.command("list")
def list_(json: Json = False, quiet: Quiet = False) -> None:
    """List tokens.

    \b
    annoris token list
    """
    from annoris.server import tokens

    where, output = archive(), speak(json, quiet)
    stale = where.look()
    found = tokens.known(where)
    if json:
        output.emit(tokens=[_shown(token) for token in found], stale=stale)
        return
    if stale:
        output.warn(f"may be old: {stale}")
    if not found:
        output.note("no token yet: annoris token new --scope write")
    rows = [(token.id, token.scope, token.created, token.name) for token in found]
    output.table(("id", "scope", "made", "name"), rows)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID|NAME")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a token back. Servers refuse it within seconds.

    \b
    annoris token revoke laptop
    """
    from annoris.server import tokens

    output = speak(json, quiet)
    with output.working("talking to master"):
        gone = tokens.revoke(archive(), token)
    if json:
        output.emit(revoked=_shown(gone))
        return
    output.note(f"token {gone.id} {gone.name} is revoked")


def _shown(token: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(token).items() if key != "sha256"}
