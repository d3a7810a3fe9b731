"""annoris webhook"""

from __future__ import annotations

import os
import secrets
from typing import Annotated

import typer

from annoris import commands
from annoris.commands import Json, Quiet, speak
from annoris.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def webhook() -> None:
    """Have GitHub tell the server of each push.

    \b
    annoris webhook setup https://sessions.example.com
    """


@app.command()
def setup(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the server can be reached.")],
    create: Annotated[
        bool, typer.Option("--create", help="Make the hook with ANNORIS_MASTER_TOKEN.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a secret for GitHub's webhook. And say what to enter there, or enter it.

    \b
    annoris webhook setup https://sessions.example.com
    annoris webhook setup https://sessions.example.com --create
    """
    from annoris.server.github import create_hook
    from annoris.settings import default_path, write

    if not url.startswith(("https://", "http://")):
        raise UsageError(f"{url} is not a URL", hint="https:// and the name of the server")
    known = commands.settings()
    path = known.source or commands.config_file or default_path(os.environ)
    target, secret = f"{url.rstrip('/')}/webhooks/github", secrets.token_hex(32)
    output = speak(json, quiet)
    if create:
        with output.working("talking to GitHub"):
            repository = create_hook(known, target, secret)
    write(path, {"server": {"webhook_secret": secret}})
    if json:
        output.emit(webhook={"url": target, "secret": secret, "config": path, "created": create})
    elif create:
        output.note(f"{repository} tells {target} of each push")
    else:
        fields = [("Payload URL", target), ("Content type", "application/json"),
                  ("Secret", secret), ("Events", "Just the push event")]  # fmt: skip
        output.note("Enter this on GitHub, in the repository's Settings, Webhooks, Add webhook:")
        output.facts(fields)
    output.note(f"the secret is in {path}; on another machine: ANNORIS_SERVER_WEBHOOK_SECRET")
