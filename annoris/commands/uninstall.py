"""annoris uninstall"""

from __future__ import annotations

from annoris.commands import Json, Quiet
from annoris.commands.install import CLIENT, DRY_RUN, change


def uninstall(
    client: CLIENT, dry_run: DRY_RUN = False, json: Json = False, quiet: Quiet = False
) -> None:
    """Take out what install put into a client. Nothing else in its files changes.

    \b
    annoris uninstall claude-code
    """
    change(client, remove=True, dry_run=dry_run, json=json, quiet=quiet)
