"""What deploy/ and .railway/ hold: it parses, and each claim it makes about Annoris is true."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from typer.main import get_command

from annoris.cli import app
from annoris.envelope import new_key
from annoris.settings import Settings
from tests.support.machine import Machine
from tests.support.service import Service, on_master, save
from tests.support.tiers import Tiers

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
RAILWAY = ROOT / ".railway" / "railway.ts"
FILES = [DEPLOY / "Dockerfile", DEPLOY / "compose.yaml", RAILWAY, *UNITS.iterdir(),
         ROOT / "docs/deploy.md", ROOT / "docs/scaling.md"]  # fmt: skip


def _variables() -> set[str]:
    """Every variable that a setting is read from, and what brings into a sandbox."""
    found = {"ANNORIS_CONFIG", "ANNORIS_SANDBOX", "ANNORIS_FULL"}
    for item in fields(Settings):
        if is_dataclass(item.default):
            names = [f"{item.name}_{inner.name}" for inner in fields(item.default)]
        else:
            names = [item.name]
        found |= {f"ANNORIS_{name}".upper() for name in names}
    return found


def _understood(words: list[str]) -> None:
    """Fail unless ``annoris`` takes these words: the command, its options, and what it starts."""
    command: Any = get_command(app)
    assert words.pop(0) == "annoris"
    assert words[0] in command.list_commands(None), words
    while words and hasattr(command, "get_command"):
        below = command.get_command(None, words[0])
        if not below:
            break
        command, words = below, words[1:]
    inner = words[words.index("--") + 1 :] if "--" in words else []
    command.make_context(command.name, list(words))
    if inner:
        _understood(["annoris", *inner])


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_one(file: Path) -> None:
    named = set(re.findall(r"\bANNORIS_[A-Z_]+\b", file.read_text()))
    assert named <= _variables()


# --- the image -----------------------------------------------------------------------------------


def _instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def test_the_image_is_pinned_small_and_runs_as_nobody_in_particular() -> None:
    """Two stages of one exact base; git and tini are there; no root, no build tools at the end."""
    steps = list(_instructions())
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL",
             "HEALTHCHECK", "ENTRYPOINT", "CMD"}  # fmt: skip
    assert {word for word, _ in steps} == known
    bases = [rest for word, rest in steps if word == "FROM"]
    assert len(bases) == 2
    assert all(re.match(r"python:3\.\d+\.\d+-slim-\w+( AS build)?$", base) for base in bases)
    last = steps[max(number for number, step in enumerate(steps) if step[0] == "FROM") :]
    ran = " ".join(rest for word, rest in last if word == "RUN")
    assert {"git", "tini", "ca-certificates"} <= set(shlex.split(ran))
    assert "--no-install-recommends" in ran
    assert "pip" not in ran
    user = next(rest for word, rest in last if word == "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert [word for word, _ in last].index("USER") > [word for word, _ in last].index("RUN")


def test_the_image_starts_what_there_is() -> None:
    """Its command, port, health check and data folder are those of Annoris."""
    steps = dict(_instructions())
    assert json.loads(steps["ENTRYPOINT"])[0] == "tini"
    _understood(json.loads(steps["CMD"]))
    assert int(steps["EXPOSE"]) == Settings().server.port
    assert "'8080'" in steps["HEALTHCHECK"]
    assert "/livez" in steps["HEALTHCHECK"]
    compile(json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])[2], "HEALTHCHECK", "exec")
    assert f"ANNORIS_DATA_DIR={steps['WORKDIR']}" in steps["ENV"]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for rest in (rest for word, rest in _instructions() if word == "COPY"):
        if not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed


def test_every_dependency_of_the_image_is_held_to_a_version_that_fits() -> None:
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["server"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), text


# --- compose -------------------------------------------------------------------------------------


def test_compose_holds_together() -> None:
    """Images are pinned, volumes declared, starts are in order, no secret has a default."""
    text = (DEPLOY / "compose.yaml").read_text()
    whole = yaml.safe_load(text)
    assert set(whole) == {"name", "services", "volumes"}
    services = whole["services"]
    for name, service in services.items():
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).exists()
        else:
            assert re.search(r":\d+\.\d+", service["image"]), name
            assert service["healthcheck"]["test"]
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in whole["volumes"]
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            assert how == {"condition": "service_healthy"}
    server = services["annoris"]
    assert server["ports"] == ["127.0.0.1:8080:8080"]
    assert server["read_only"]
    environment = server["environment"]
    for name in ("ANNORIS_MASTER_REMOTE", "ANNORIS_MASTER_TOKEN", "ANNORIS_KEY"):
        assert environment[name].startswith(f"${{{name}:?")
    assert "@postgres/" in environment["DATABASE_URL"]
    assert "@valkey:6379" in environment["REDIS_URL"]
    assert not re.search(r"(PASSWORD|TOKEN|KEY):-[^}]", text)


# --- Railway -------------------------------------------------------------------------------------

# What Railway's own module gives, as far as the file uses it: names and references.
IAC = """
const database = (kind) => (name) =>
  ({ kind, name, env: new Proxy({}, { get: (_, key) => `\\${{${name}.${String(key)}}}` }) });
export const postgres = database("postgres");
export const redis = database("redis");
export const service = (name, config) => ({ kind: "service", name, ...config });
export const project = (name, config) => ({ name, ...config });
export const defineRailway = (make) => make;
"""
EVALUATE = """
const made = (await import(process.argv[1])).default;
const shared = new Proxy({}, { get: (_, key) => `\\${{shared.${String(key)}}}` });
const plain = (_, value) => (value && value.kind && value.kind !== "service" ? value.kind : value);
console.log(JSON.stringify(made({ shared }), plain));
"""


@pytest.fixture
def railway(tmp_path: Path) -> dict[str, Any]:
    """The services of .railway/railway.ts by name, as node reads it."""
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed")
    package = tmp_path / "node_modules" / "railway"
    package.mkdir(parents=True)
    exports = {"name": "railway", "type": "module", "exports": {"./iac": "./iac.js"}}
    (package / "package.json").write_text(json.dumps(exports))
    (package / "iac.js").write_text(IAC)
    file = tmp_path / "railway.mjs"  # it uses no types, so that it is JavaScript as well
    file.write_text(RAILWAY.read_text())
    done = subprocess.run(
        [node, "--input-type=module", "--eval", EVALUATE, "--", str(file)],
        capture_output=True, check=False, timeout=60, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["name"] == "annoris"
    assert [item for item in made["resources"] if isinstance(item, str)] == ["postgres", "redis"]
    return {item["name"]: item for item in made["resources"] if isinstance(item, dict)}


def test_railway_has_a_web_server_and_two_cron_services_of_one_image(
    railway: dict[str, Any],
) -> None:
    """Each command is one of Annoris, ends before its next start, and has the three tiers."""
    assert list(railway) == ["web", "sync", "daily"]
    for service in railway.values():
        assert service["build"]["builder"] == "DOCKERFILE"
        assert (ROOT / service["build"]["dockerfilePath"]).exists()
        assert service["env"]["DATABASE_URL"] == "${{postgres.DATABASE_URL}}"
        assert service["env"]["REDIS_URL"] == "${{redis.REDIS_URL}}"
        assert service["env"]["ANNORIS_KEY"] == "${{shared.ANNORIS_KEY}}"
        start = service["deploy"]["startCommand"]
        assert "tini -- annoris " in start
        for command in re.findall(r"annoris [^;&\"]+", start):
            _understood(command.split())
    web, sync, daily = (service["deploy"] for service in railway.values())
    assert web["healthcheckPath"] == "/readyz"
    assert web["drainingSeconds"] > Settings().server.stop_seconds
    assert (sync["cronSchedule"], sync["restartPolicyType"]) == ("*/15 * * * *", "NEVER")
    assert int(re.findall(r"--seconds (\d+)", sync["startCommand"])[0]) < 15 * 60
    assert re.fullmatch(r"\d+ \d+ \* \* \*", daily["cronSchedule"])
    assert all(word in daily["startCommand"] for word in ("verify --quiet", "dump --quiet"))


def test_railway_s_file_holds_no_secret() -> None:
    text = RAILWAY.read_text()
    given = re.findall(r"^\s+(ANNORIS_\w+|\w+_URL): (.+),$", text, re.MULTILINE)
    assert len(given) == 7
    assert all(re.match(r"ctx\.shared\.|(hot|emergency)\.env\.", value) for _, value in given)


# --- systemd -------------------------------------------------------------------------------------


def _unit(path: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_each_unit_starts_a_command_of_annoris_as_its_own_user() -> None:
    """Each timer has its service, and no run lasts into its next one."""
    services = {path.stem: _unit(path) for path in UNITS.glob("*.service")}
    timers = {path.stem for path in UNITS.glob("*.timer")}
    assert set(services) - timers == {"annoris-server"}
    for unit in services.values():
        service = unit["Service"]
        program, _, rest = service["ExecStart"].partition(" ")
        assert program == "/opt/annoris/bin/annoris"
        _understood(["annoris", *shlex.split(rest)])
        assert (service["User"], service["StateDirectory"]) == ("annoris", "annoris")
        assert service["Environment"] == "ANNORIS_DATA_DIR=/var/lib/annoris"
    sync = services["annoris-sync"]["Service"]
    assert int(sync["TimeoutStartSec"]) <= 15 * 60


def test_systemd_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for path in UNITS.iterdir():
        text = path.read_text().replace("/opt/annoris/bin/annoris", "/bin/true")
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.glob("annoris*")))],
        capture_output=True, check=False, timeout=60, text=True,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "annoris" in line]
    assert (done.returncode, ours) == (0, [])


# --- a container ---------------------------------------------------------------------------------


def test_a_server_needs_variables_alone_and_makes_its_data_anew(
    machine: Callable[..., Machine], tiers: Tiers
) -> None:
    """No file, no home, no git identity: what a new container has. The tokens lie on master."""
    container = machine("container")
    container.environment = {
        "PATH": container.environment["PATH"],
        "HOME": "/nonexistent",
        "ANNORIS_DATA_DIR": str(container.data),
        "ANNORIS_MASTER_AUTHOR": "Annoris <annoris@localhost>",  # as the image says
        "ANNORIS_MASTER_REMOTE": str(tiers.remote),
        "ANNORIS_KEY": new_key().text(),
        "DATABASE_URL": tiers.hot_url,
        "REDIS_URL": tiers.emergency_url,
    }
    refused = container.run("serve", "--port", "0", env={"PORT": "8080"})
    assert (refused.code, "annoris token new" in refused.err) == (2, True)
    token = container.run("token", "new", "--scope", "admin").text.strip()
    with Service(container, "--schedule", token=token, PORT="8080") as server:
        assert "[::]" in server.url or "0.0.0.0" in server.url
        assert server.client.get("/readyz").status_code == 200
        made = save(server.client, "# In a container\n\n**Status:** open\n\ntext\n")
        assert made.status_code == 201
        assert server.stop() == 0
    assert len(on_master(tiers.remote)) == 1

    shutil.rmtree(container.data)
    with Service(container, token=token, PORT="8080") as server:
        again = server.client.get(made.headers["Location"])
        assert (again.status_code, again.json()["title"]) == (200, "In a container")

    shutil.rmtree(container.data)
    for words in ("sync --full --quiet", "verify --quiet", "dump --quiet"):
        ran = container.run("schedule", "run", "--seconds", "100", "--", *words.split())
        assert (ran.code, ran.text, ran.err) == (0, "", "")
    assert set(os.listdir(container.folder)) == {"desk", "data"} | {
        path.name for path in container.folder.glob("serve-*.log")
    }
