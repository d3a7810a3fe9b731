"""Configuration: defaults < config.toml < .env < environment, as one frozen object.

The only file that reads TOML and ``.env``, and only when such a file exists. Every key is a
field below; ``[save] max_bytes`` is ``ANNORIS_SAVE_MAX_BYTES`` in the environment. An unknown
key or a wrong type is an error that names the file and the key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from annoris.dataclass import dataclass, field
from annoris.errors import ConfigError

if TYPE_CHECKING:
    from datetime import tzinfo


@dataclass(frozen=True, slots=True)
class MasterSettings:
    remote: str = ""
    branch: str = "main"
    include: tuple[str, ...] = ("sessions/**/*.md",)
    token: str = field(default="", repr=False)
    author: str = ""
    push_seconds: float = 60.0
    fetch_seconds: float = 30.0
    load_seconds: float = 5.0
    fresh_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class SaveSettings:
    max_bytes: int = 20 * 1024 * 1024
    strict: bool = False
    required_sections: tuple[str, ...] = ()
    scan: bool = True
    allow_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HotSettings:
    url: str = field(default="", repr=False)
    schema: str = "annoris"
    seconds: float = 5.0
    load_seconds: float = 1.0
    sync_seconds: float = 600.0
    retention_days: int = 30


@dataclass(frozen=True, slots=True)
class EmergencySettings:
    url: str = field(default="", repr=False)
    cluster: bool = False
    ttl_seconds: int = 3600


@dataclass(frozen=True, slots=True)
class AlertSettings:
    urls: tuple[str, ...] = field(default=(), repr=False)
    level: str = "warning"
    quiet_hours: str = ""
    digest_seconds: float = 300.0
    repeat_seconds: float = 86400.0
    outbox_age_seconds: float = 86400.0
    seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class DumpSettings:
    branch: str = "annoris-dumps"
    daily: int = 7
    weekly: int = 4
    monthly: int = 12
    seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class EncryptionSettings:
    scope: str = "caches"


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    text: bool = True


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = 8080
    threads: int = 16
    queue: int = 500
    pushes: int = 6000
    answer_seconds: float = 25.0
    stop_seconds: float = 30.0
    rate: int = 600
    max_body_bytes: int = 25 * 1024 * 1024
    token_seconds: float = 15.0
    schedule_sync_seconds: float = 900.0
    schedule_verify_seconds: float = 86400.0
    schedule_dump_seconds: float = 86400.0
    sample_seconds: float = 60.0
    webhook_secret: str = field(default="", repr=False)
    github_api: str = "https://api.github.com"


@dataclass(frozen=True, slots=True)
class Settings:
    project: str = "default"
    data_dir: str = ""
    key: str = field(default="", repr=False)
    master: MasterSettings = MasterSettings()
    save: SaveSettings = SaveSettings()
    hot: HotSettings = HotSettings()
    emergency: EmergencySettings = EmergencySettings()
    alerts: AlertSettings = AlertSettings()
    dump: DumpSettings = DumpSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    catalog: CatalogSettings = CatalogSettings()
    server: ServerSettings = ServerSettings()
    source: str = ""  # the config file that was read, if any

    def at(self, name: str) -> str:
        """A path inside the data folder."""
        return os.path.join(self.data_dir, name)


_SECTIONS = {
    "master": MasterSettings,
    "save": SaveSettings,
    "hot": HotSettings,
    "emergency": EmergencySettings,
    "alerts": AlertSettings,
    "dump": DumpSettings,
    "encryption": EncryptionSettings,
    "catalog": CatalogSettings,
    "server": ServerSettings,
}
# What hosting platforms set. From the real environment only: a project's own .env is not ours.
_FOREIGN = {"DATABASE_URL": ("hot", "url"), "REDIS_URL": ("emergency", "url")}
INSIDE = "ANNORIS_SANDBOX"  # set: this command is one of the sandbox's, and of nothing else
_LONGEST_TTL = 3600
_NOT_KEYS = {"source", *_SECTIONS}


def load(config: str | None = None, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Read everything there is; ``config`` (or ``ANNORIS_CONFIG``) must exist, the default may not.

    Raises ConfigError with the file, the key and what is expected there.
    """
    env = dict(_dotenv())
    env.update(os.environ if environ is None else environ)
    path = config or env.get("ANNORIS_CONFIG") or ""
    values: dict[str, Any] = {}
    if path or os.path.exists(default_path(env)):
        path = path or default_path(env)
        values = _from_toml(path)
    for variable, (section, key) in _FOREIGN.items():
        if found := env.get(variable):
            values.setdefault(section, {})[key] = found
    _from_environment(env, values)
    values["data_dir"] = os.path.expanduser(values.get("data_dir") or default_data_dir(env))
    if values["data_dir"].startswith("~"):
        raise ConfigError(
            "no home folder is known for this user", hint="set ANNORIS_DATA_DIR to a folder"
        )
    sections = {name: cls(**values.pop(name, {})) for name, cls in _SECTIONS.items()}
    settings = Settings(**values, **sections, source=path)
    _check_remote(settings.master)
    _check_alerts(settings.alerts)
    _check_branch("dump.branch", settings.dump.branch)
    if settings.dump.branch == settings.master.branch:
        raise ConfigError("dump.branch: dumps need a branch of their own, not master's")
    check_scope(settings.encryption.scope)
    if settings.emergency.ttl_seconds > _LONGEST_TTL:
        raise ConfigError(
            f"emergency.ttl_seconds: must be at most {_LONGEST_TTL}, "
            f"not {settings.emergency.ttl_seconds}",
            hint="the emergency cache bridges an outage; the hot cache is what keeps sessions",
        )
    return settings


def default_path(env: Mapping[str, str]) -> str:
    """Where config.toml lies when nobody says otherwise (XDG)."""
    base = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or "~", ".config")
    return os.path.join(os.path.expanduser(base), "annoris", "config.toml")


def outside(environ: Mapping[str, str]) -> list[str]:
    """Names that only this shell or this folder's ``.env`` sets: cron would not see them."""
    found = {name for name, value in {**_dotenv(), **environ}.items() if value}
    places = {"ANNORIS_DATA_DIR", "ANNORIS_CONFIG"}  # these go along as arguments
    ours = {name for name in found if name.startswith("ANNORIS_") or name in _FOREIGN}
    return sorted(ours - places)


def write(path: str, changes: Mapping[str, Mapping[str, object]]) -> None:
    """Set keys of sections in config.toml, keeping every other line. A new file is made 0600."""
    import tomlkit  # noqa: PLC0415

    try:
        with open(path, encoding="utf-8-sig") as file:
            document = tomlkit.parse(file.read())
    except FileNotFoundError:
        document = tomlkit.document()
    for section, values in changes.items():
        table = document.setdefault(section, tomlkit.table())
        table.update(values)
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    temporary = f"{path}.tmp"
    with open(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(tomlkit.dumps(document))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def default_data_dir(env: Mapping[str, str]) -> str:
    """Where clone, outbox and catalog lie when nobody says otherwise (XDG)."""
    base = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME") or "~", ".local", "share")
    return os.path.join(base, "annoris")


def _dotenv() -> Mapping[str, str]:
    if os.environ.get(INSIDE) or not os.path.isfile(".env"):
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415

    try:
        found = dotenv_values(".env", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env: can't be read: {error}") from error
    return {key: value for key, value in found.items() if value and key.startswith("ANNORIS_")}


def _from_toml(path: str) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415

    try:
        with open(path, "rb") as file:
            raw = tomllib.loads(file.read().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="check --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 (byte {error.start})", hint="save the file as UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: [{key}] must be a table")
            values[key] = {
                name: _checked(_SECTIONS[key], name, item, f"{path}: {key}.{name}")
                for name, item in value.items()
            }
        else:
            values[key] = _checked(Settings, key, value, f"{path}: {key}")
    return values


def _from_environment(env: Mapping[str, str], values: dict[str, Any]) -> None:
    for section, cls in {"": Settings, **_SECTIONS}.items():
        for key in _keys(cls):
            variable = "_".join(filter(None, ("ANNORIS", section, key))).upper()
            if text := env.get(variable):
                target = values.setdefault(section, {}) if section else values
                target[key] = _checked(cls, key, _parsed(cls, key, text), variable)


def _keys(cls: type) -> list[str]:
    return [item.name for item in fields(cls) if item.name not in _NOT_KEYS]


def _kind(cls: type, key: str) -> type:
    for item in fields(cls):
        if item.name == key and item.default is not MISSING:
            return type(item.default)
    raise KeyError(key)


def _parsed(cls: type, key: str, text: str) -> object:
    kind = _kind(cls, key)
    if key == "urls":  # they may hold commas themselves
        return [part for part in re.split(r"[\s,]+(?=[\w+-]+://)|\s+", text) if part]
    if kind is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is bool:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            text.lower(), text
        )
    for number in (int, float):
        if kind in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _checked(cls: type, key: str, value: object, where: str) -> object:
    if key not in _keys(cls):
        import difflib  # noqa: PLC0415

        near = difflib.get_close_matches(key, _keys(cls), 1)
        raise ConfigError(
            f"{where}: unknown key", hint=f"did you mean {near[0]}?" if near else "remove it"
        )
    kind = _kind(cls, key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = "" if _secret(cls, key) else f", not {value!r}"
        raise ConfigError(f"{where}: must be {names.get(kind, 'a list of texts')}{shown}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{where}: must be text without NUL characters")
    if kind in (int, float) and isinstance(value, (int, float)) and not 0 < value < 1e12:
        raise ConfigError(f"{where}: must be above zero, not {value!r}")
    return value


def _secret(cls: type, key: str) -> bool:
    return any(item.name == key and not item.repr for item in fields(cls))


def _check_alerts(alerts: AlertSettings) -> None:
    if alerts.level not in ("info", "warning", "error"):
        raise ConfigError(f"alerts.level: {alerts.level!r} is not info, warning or error")
    quiet_hours(alerts.quiet_hours)


def quiet_hours(text: str) -> tuple[str, str, tzinfo | None] | None:
    """The hours as "HH:MM" and the time zone, None for this machine's; None when there are none."""
    if not text:
        return None
    match = re.fullmatch(r"({0})-({0})(?: (\S+))?".format(r"(?:[01]\d|2[0-3]):[0-5]\d"), text)
    if not match or match[1] == match[2]:
        raise ConfigError(
            f"alerts.quiet_hours: {text!r} is not a span of hours",
            hint="write 22:00-07:00, or 22:00-07:00 Europe/Berlin",
        )
    if not match[3]:
        return match[1], match[2], None
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    try:
        return match[1], match[2], ZoneInfo(match[3])
    except (ValueError, LookupError, OSError):
        raise ConfigError(
            f"alerts.quiet_hours: no time zone {match[3]!r} is known here",
            hint="write it as in Europe/Berlin, or leave it out for this machine's",
        ) from None


def check_scope(scope: str) -> None:
    """Refuse what is no scope of encryption."""
    if scope not in ("caches", "everything"):
        raise ConfigError(
            f'encryption.scope: must be "caches" or "everything", not {scope!r}',
            hint="caches: master holds Markdown; everything: master holds envelopes",
        )


def _check_remote(master: MasterSettings) -> None:
    check_remote(master.remote)
    _check_branch("master.branch", master.branch)


def _check_branch(key: str, name: str) -> None:
    bad = (" ", "~", "^", ":", "?", "*", "[", "\\", "..", "@{", "//", "/.", ".lock/")
    if (
        not name.isprintable()
        or not name
        or name[0] in "-/."
        or name.endswith(("/", ".", ".lock"))
        or any(part in name for part in bad)
    ):
        raise ConfigError(f"{key}: {name!r} is not a branch name")


def check_remote(remote: str) -> None:
    """Refuse a remote that carries a password, or that git would take for an option."""
    helper = re.match(r"\w+::", remote)  # git would run the program git-remote-<that>
    if remote.startswith("-") or helper or any(ord(char) < 32 for char in remote):
        raise ConfigError(f"master.remote: {remote!r} is not a repository")
    scheme, mark, rest = remote.partition("://")
    if not mark:
        return
    user = rest.split("/", 1)[0].rpartition("@")[0]
    if scheme in ("http", "https") and user:
        raise ConfigError(
            "master.remote: the URL carries a credential, which would end up in logs",
            hint="use the plain URL and put the token into ANNORIS_MASTER_TOKEN",
        )
    if scheme not in ("http", "https", "ssh", "file", "git", "git+ssh", "ssh+git"):
        raise ConfigError(
            f"master.remote: {scheme}:// is not supported", hint="use https://, ssh:// or a path"
        )
