"""Making the webhook through GitHub's API. The only urllib.request."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from annoris.errors import AuthRefused, ConfigError, RemoteRefused, RemoteUnreachable
from annoris.settings import Settings

_SECONDS = 10.0


def create_hook(settings: Settings, url: str, secret: str) -> str:
    """Make master's repository tell ``url`` of each push, signed; answers the repository.

    One that does so already gets the new secret. Raises ConfigError, AuthRefused,
    RemoteRefused or RemoteUnreachable.
    """
    repository = _repository(settings.master.remote)
    if not settings.master.token:
        raise ConfigError(
            "no token to ask GitHub with",
            hint="put one that may manage webhooks into ANNORIS_MASTER_TOKEN",
        )
    hooks = f"{settings.server.github_api.rstrip('/')}/repos/{repository}/hooks"
    token = settings.master.token
    wanted = {
        "active": True,
        "events": ["push"],
        "config": {"url": url, "content_type": "json", "secret": secret, "insecure_ssl": "0"},
    }
    known = _ask(token, "GET", f"{hooks}?per_page=100")
    for hook in known:
        if hook.get("config", {}).get("url") == url:
            _ask(token, "PATCH", f"{hooks}/{int(hook['id'])}", wanted)
            return repository
    _ask(token, "POST", hooks, {"name": "web", **wanted})
    return repository


def _repository(remote: str) -> str:
    found = re.search(r"[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", remote)
    if not found or ("://" not in remote and ":" not in remote):
        raise ConfigError(
            f"master is no repository on GitHub: {remote or 'it is on this machine'}",
            hint="annoris init --remote https://github.com/OWNER/REPOSITORY",
        )
    return found[1]


class _NoRedirect(HTTPRedirectHandler):
    """The token goes to nobody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _ask(token: str, method: str, url: str, data: object = None) -> Any:
    if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise ConfigError("server.github_api must be an https:// URL")
    request = Request(  # noqa: S310 - only https, checked above
        url,
        method=method,
        data=None if data is None else json.dumps(data).encode(),
        headers={
            "Authorization": f"Bearer {token}",
            "Accept": "application/vnd.github+json",
            "Content-Type": "application/json",
            "User-Agent": "annoris",
        },
    )
    try:
        with build_opener(_NoRedirect).open(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read(1 << 22))
    except HTTPError as error:
        with error:
            status = error.code
        raise _refused(status, url) from None
    except (URLError, OSError, ValueError) as error:
        raise RemoteUnreachable(
            f"GitHub's API does not answer: {error}", hint="try again, or leave out --create"
        ) from None


def _refused(status: int, url: str) -> AuthRefused | RemoteRefused:
    if status in (401, 403, 404):
        return AuthRefused(
            f"GitHub refuses ({status}) {url}",
            hint="the token needs the right to manage webhooks of the repository (admin:repo_hook)",
        )
    return RemoteRefused(f"GitHub refuses ({status}) {url}", hint="leave out --create")
