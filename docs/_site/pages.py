"""The pages that are made from the code when the site is built, as a hook of MkDocs.

Each function below returns one page of Markdown. Nothing here is committed twice: commands come
from the command line itself, settings from their dataclasses and the example, errors from their
tree, answers from the model, the REST API from its OpenAPI.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import TypeAdapter
from typer.main import get_command

from annoris import cli, errors, model
from annoris.server import problems
from annoris.server.app import create_app
from annoris.settings import Settings, load

TOP = Path(__file__).parents[2]

# What stands under which key of the object that a command answers to --json.
ANSWERS: dict[str, tuple[str, type, bool]] = {
    "save": ("receipts", model.Receipt, True),
    "delete": ("receipts", model.Receipt, True),
    "load": ("session", model.Session, False),
    "list": ("sessions", model.Session, True),
    "history": ("revisions", model.Revision, True),
    "projects": ("projects", model.Project, True),
    "sync": ("report", model.Report, False),
    "verify": ("audit", model.Audit, False),
    "log": ("runs", model.Run, True),
    "status": ("status", model.Standing, False),
    "doctor": ("findings", model.Ailment, True),
    "init": ("init", model.SetUp, False),
    "import": ("imported", model.Imported, False),
    "dump": ("dump", model.Dumped, False),
    "dump --drill": ("drill", model.Drilled, False),
    "dump list": ("dumps", model.Shelved, True),
    "restore": ("restore", model.Restored, False),
}  # fmt: skip
_MORE_FIELDS = {"Session": {"short": "string"}, "Project": {"percent": "string"}}
_OTHER_EXITS = {
    0: "done; what was saved is on master",
    1: "a bug: the traceback is in a file, which the message names",
    124: "a scheduled run was ended at its deadline",
    130: "interrupted (Ctrl-C); 143 when told to end",
    141: "nobody read the output any more",
}


# --- the hook ------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that stand in no section under More, so that none is lost."""
    listed = re.findall(r"[\w/-]+\.md", json.dumps(config.nav))
    here = (path.name for path in sorted(Path(config.docs_dir).glob("*.md")))
    if more := [name for name in here if name not in listed]:
        config.nav = [*(config.nav or []), {"More": more}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {
        "index.md": home(),
        "site.css": "td code { white-space: nowrap; }\n",
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        "reference/errors.md": exit_codes(),
        "reference/answers.md": answers(),
        "reference/answers.schema.json": json.dumps(schema(), indent=1),
        "reference/rest.md": rest(),
        "reference/changes.md": (TOP / "CHANGELOG.md").read_text().replace("](docs/", "](../"),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Links to files of the repository that are no pages become their names."""
    pages = {
        "../config.example.toml": "reference/configuration.md",
        "../CHANGELOG.md": "reference/changes.md",
        "../README.md": "index.md",
    }

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if target in pages:
            return f"[{text}]({pages[target]})"
        return f"{text} (`{target.removeprefix('../')}`)"

    if "/" in page.file.src_uri:
        return markdown
    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]*)\)", link, markdown)


# --- pages ---------------------------------------------------------------------------------------


def home() -> str:
    """The README, seen from the folder docs."""
    text = (TOP / "README.md").read_text()
    here = re.sub(r"\]\((?!docs/|\w+:)", "](../", text)
    return here.replace("](docs/", "](")


def commands() -> str:
    group = get_command(cli.app)
    parts = ["# Commands\n\n" + _table(("option of `annoris` itself", ""), _options(group))]
    parts += [_command(f"annoris {command.name}", command) for command in group_of(group)]
    return "\n\n".join(parts)


def group_of(group: Any) -> Iterator[Any]:
    """The commands of a group that are not hidden, in the order of its help."""
    found = (group.get_command(None, name) for name in group.list_commands(None))
    return (command for command in found if not command.hidden)


def _command(words: str, command: Any, level: str = "##") -> str:
    about, _, examples = (command.help or "").partition("\b")
    arguments = " ".join(
        _metavar(item) for item in command.params if item.param_type_name == "argument"
    )
    children = list(group_of(command)) if hasattr(command, "list_commands") else []
    usage = f"{words} [OPTIONS] {arguments}{'COMMAND …' if children else ''}".rstrip()
    parts = [f"{level} {words}", _flowing(about), f"```text\n{usage}\n```"]
    if examples:
        lines = [line.strip() for line in examples.strip().splitlines()]
        parts.append("Examples:\n\n```text\n" + "\n".join(lines) + "\n```")
    if rows := [*_arguments(command), *_options(command)]:
        parts.append(_table(("argument or option", ""), rows))
    parts += [_command(f"{words} {child.name}", child, "###") for child in children]
    return "\n\n".join(parts)


def _arguments(command: Any) -> Iterator[tuple[str, str]]:
    for item in command.params:
        if item.param_type_name == "argument":
            yield f"`{_metavar(item)}`", item.help or ""


def _options(command: Any) -> Iterator[tuple[str, str]]:
    for item in command.params:
        if item.param_type_name == "option" and not item.hidden:
            value = "" if item.is_flag else f" {_metavar(item)}"
            default = item.default
            told = default not in (None, "", False, 0, ()) and not callable(default)
            more = f" Default: `{default}`." if told else ""
            yield f"`{', '.join(item.opts)}{value}`", f"{item.help or ''}{more}"


def _metavar(item: Any) -> str:
    return str(item.make_metavar(ctx=None))


def configuration() -> str:
    about = _comments((TOP / "config.example.toml").read_text())
    intro = (
        "# Configuration\n\nDefaults, then `config.toml`, then `.env` of this folder (only "
        "`ANNORIS_…`), then the environment: the later wins. The file is "
        "`~/.config/annoris/config.toml`, or what `--config` or `ANNORIS_CONFIG` names. An unknown "
        "key or a wrong type is an error. `DATABASE_URL` and `REDIS_URL`, which hosting platforms "
        "set, stand for `hot.url` and `emergency.url`; `PORT` for the server's."
    )
    return intro + "".join(
        f"\n\n## {f'[{section}]' if section else 'At the top'}\n\n"
        + _table(
            ("key", "default", "in the environment", ""),
            [
                (
                    f"`{key}`", f"`{_toml(default)}`",
                    f"`{'_'.join(filter(None, ('ANNORIS', section, key))).upper()}`",
                    about.get((section, key), ""),
                )
                for key, default in keys.items()
            ],
        )
        for section, keys in settings_of().items()
    )  # fmt: skip


def settings_of() -> dict[str, dict[str, object]]:
    """Each section with its keys and their defaults; the section without a name is the top."""
    sections: dict[str, dict[str, object]] = {"": {}}
    for item in fields(Settings):
        if is_dataclass(item.default):
            keys = {key.name: key.default for key in fields(item.default)}
            sections[item.name] = keys
        elif item.name != "source":
            sections[""][item.name] = item.default
    return sections


def _comments(example: str) -> dict[tuple[str, str], str]:
    """What the example says above each key; a key without words of its own shares those above."""
    found: dict[tuple[str, str], str] = {}
    section, said = "", ""
    for line in example.splitlines():
        if line.startswith("# "):
            said = f"{said} {line[2:]}".strip()
        elif line.startswith("["):
            section, said = line.strip("[]"), ""
        elif " = " in line:
            found[section, line.partition(" = ")[0]] = said
            said = ""
        else:
            said = ""
    return found


def exit_codes() -> str:
    told = _tree(errors.__doc__ or "")
    rows = [(str(number), "", words) for number, words in _OTHER_EXITS.items()]
    for number in sorted(set(cli.EXIT.values())):
        codes = [code for code in told if cli.EXIT.get(code) == number]
        means = "; ".join(filter(None, (told[code] for code in codes)))
        rows.append((str(number), ", ".join(f"`{code}`" for code in codes), means))
    rows.sort(key=lambda row: int(row[0]))
    statuses: dict[int, list[str]] = {}
    for code, status in problems.STATUS.items():
        statuses.setdefault(status, []).append(f"`{code}`")
    return (
        "# Exit codes and errors\n\nThe worst of several outcomes decides. With `--json` an error "
        'is `{"error": {"code": …, "message": …, "hint": …}}` on stdout; codes never change '
        "their meaning.\n\n"
        + _table(("exit", "code", "means"), rows)
        + "\n\n## HTTP\n\nThe server answers the same codes as problems (RFC 9457).\n\n"
        + _table(("status", "codes"), [(str(n), ", ".join(c)) for n, c in sorted(statuses.items())])
    )


def _tree(text: str) -> dict[str, str]:
    """Codes and meanings of the tree of errors, as its docstring draws it."""
    return dict(re.findall(r"── \w+ +([a-z-]+)(?:  +(.+))?$", text, re.MULTILINE))


def schema() -> dict[str, Any]:
    """JSON Schema of what stands under the keys of answers."""
    definitions: dict[str, Any] = {}
    answered: dict[str, Any] = {}
    for words, (key, kind, many) in ANSWERS.items():
        made = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        definitions |= made.pop("$defs", {})
        definitions[kind.__name__] = made
        one = {"$ref": f"#/$defs/{kind.__name__}"}
        answered[words] = {
            "type": "object",
            "required": ["schema_version", key],
            "properties": {
                "schema_version": {"const": 1},
                key: {"type": "array", "items": one} if many else one,
            },
        }
    for name, more in _MORE_FIELDS.items():
        definitions[name]["properties"] |= {key: {"type": kind} for key, kind in more.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        "answers": answered,
    }


def answers() -> str:
    known = schema()
    kinds = "\n\n".join(
        f"## {name}\n\n{_flowing(made.get('description', ''))}\n\n"
        + _table(("key", "type"), [(f"`{k}`", _type(v)) for k, v in made["properties"].items()])
        for name, made in sorted(known["$defs"].items())
        if "properties" in made
    )
    rows = [
        (f"`annoris {words}`", f"`{key}`", "list of " * many + _linked(kind.__name__))
        for words, (key, kind, many) in ANSWERS.items()
    ]
    return (
        "# JSON answers\n\nEvery command answers `--json` with one object on one line. It has "
        "`schema_version`, now 1; keys are only ever added to it. The same as JSON Schema: "
        "[answers.schema.json](answers.schema.json).\n\n"
        + _table(("command", "key", "holds"), rows)
        + f"\n\n{kinds}"
    )


def _type(made: dict[str, Any]) -> str:
    if name := made.get("$ref", "").rpartition("/")[2]:
        return _linked(name)
    if any_of := made.get("anyOf"):
        return " or ".join(_type(item) for item in any_of)
    if choices := made.get("enum"):
        return ", ".join(f"`{item}`" for item in choices)
    if "items" in made:
        return f"list of {_type(made['items'])}"
    return str(made.get("type", "anything"))


def _linked(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def rest() -> str:
    known = openapi()
    parts = [
        "# REST API\n\n" + known["info"]["description"] + "\n\nA running server has this, to try "
        "out, at `/docs`, and as OpenAPI at `/openapi.json`. How to run one: "
        "[the server](../server.md)."
    ]
    for path, methods in known["paths"].items():
        for method, about in methods.items():
            parts.append(_route(method.upper(), path, about))
    return "\n\n".join(parts)


def openapi() -> dict[str, Any]:
    """The OpenAPI of a server over an archive of its own, which is thrown away."""
    with tempfile.TemporaryDirectory() as home:
        app = create_app(load(environ={"HOME": home, "PATH": os.environ["PATH"]}))
        known = app.openapi()
        app.state.pool.close()
    return known


def _route(method: str, path: str, about: dict[str, Any]) -> str:
    parts = [f"## {method} {path}", f"**{about.get('summary', '')}**"]
    if text := about.get("description"):
        parts.append(text)
    inputs = [
        (f"`{item['name']}`", item["in"], item.get("description", ""))
        for item in about.get("parameters", [])
    ]
    body = ", ".join(f"`{kind}`" for kind in about.get("requestBody", {}).get("content", {}))
    inputs += [("body", body, "")] if body else []
    if inputs:
        parts.append(_table(("input", "in", ""), inputs))
    told = [(status, item["description"]) for status, item in about["responses"].items()]
    parts.append(_table(("status", "means"), told))
    return "\n\n".join(parts)


# --- Markdown ------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text of one line that is no HTML, its code aside, and no border of a table."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(
        part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts)
    )


def _flowing(text: str) -> str:
    """Paragraphs of one line each, without Sphinx's marks."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("``", "`")


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value)
