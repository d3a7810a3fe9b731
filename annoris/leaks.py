"""Credentials in a text, found before git keeps them for ever.

A table of the formats that providers document, plus an entropy rule for plain assignments.
Why no library: detect-secrets 1.5 takes 0.25 s to import and 70 ms for a Markdown document of
10 KB (this table 0.3 ms), finds about half of the credentials in ``tests/test_leaks.py`` and
takes a quarter of the ordinary lines there for credentials.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from annoris.model import Leak


def scan(text: str, *, allow: Collection[str] = ()) -> tuple[Leak, ...]:
    """Every credential in ``text``, by position; ``allow`` holds fingerprints to pass over.

    Lines and columns count characters from 1. Where rules overlap, the more telling one
    reports. Nothing is raised, whatever the text.
    """
    leaks = []
    line, line_start, seen = 1, 0, 0
    for found in _found(text):
        line += text.count("\n", seen, found.start)
        line_start = max(line_start, text.rfind("\n", seen, found.start) + 1)
        seen = found.start
        if found.fingerprint not in allow:
            column = found.start - line_start + 1
            leaks.append(Leak(found.rule, line, column, found.excerpt, found.fingerprint))
    return tuple(leaks)


def redact(text: str, leaks: Collection[Leak]) -> str:
    """``text`` with ``[redacted: rule]`` for each secret in ``leaks``, wherever it stands.

    What shows only after that (a secret glued to another one) goes too; what ``scan``
    finds and ``leaks`` does not name stays.
    """
    named = {leak.fingerprint for leak in leaks}
    kept = {found.fingerprint for found in _found(text)} - named
    while finds := [found for found in _found(text) if found.fingerprint not in kept]:
        pieces, end = [], 0
        for found in finds:
            pieces += [text[end : found.start], f"[redacted: {found.rule}]"]
            end = found.start + len(found.secret)
        text = "".join([*pieces, text[end:]])
    return text


class _Found(NamedTuple):
    rule: str
    start: int
    secret: str

    @property
    def excerpt(self) -> str:
        """Enough to recognise it by: 4 characters, of a short secret a quarter; the length."""
        return f"{self.secret[: min(4, len(self.secret) // 4)]}…{len(self.secret)}"

    @property
    def fingerprint(self) -> str:
        named = f"{self.rule}:{self.secret}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(named).hexdigest()[:12]


def _found(text: str) -> list[_Found]:
    """Secrets by position, none overlapping; a rule earlier in the table keeps its ground."""
    # U+0130 is the one character whose lower case is longer: offsets must stay true.
    lowered = text.replace("\u0130", "i").lower()
    long_words = "\n".join([word for word in lowered.split() if len(word) >= _LONG_WORD])
    tried = [
        (rule, anchor)
        for rule in _RULES
        for anchor in rule.anchors
        if anchor in (long_words if rule.in_long_word else lowered)
    ]
    covered = bytearray(len(text) if tried else 0)
    finds = []
    for rule, anchor in tried:
        for match in _matches(rule, anchor, text, lowered):
            start, end = match.span("secret")
            if covered.find(1, start, end) < 0:
                covered[start:end] = b"\1" * (end - start)
                finds.append(_Found(rule.name, start, match["secret"]))
    return sorted(finds, key=lambda found: found.start)


def _matches(rule: _Rule, anchor: str, text: str, lowered: str) -> Iterator[re.Match[str]]:
    match_at = re.compile(rule.pattern).match  # by the cache of re, on first use
    at = lowered.find(anchor)
    while at >= 0:
        match = match_at(text, at)
        if match and rule.genuine(match):
            yield match
            at = match.end() - 1
        at = lowered.find(anchor, at + 1)


# What looks like a secret and is none.

# Kept as text: re compiles them on first use, so that a command that never scans pays nothing.
_PLACEHOLDER = r"""(?x)
      ^[$%*]                                        # $TOKEN, %s, ****
    | [{}<>…] | \.\.\.                              # {{ token }}, <token>, sk-...
    | ^[A-Z_]+$                                     # YOUR_API_KEY, PASSWORD
    | (.)\1{4}                                      # xxxxx, 00000
    | (?i: example | sample | placeholder | dummy | fake | your | my[_-] | change.?me
         | replace | insert | redacted | p.ssw.rd | ваш | пример
         | xxxx | abcdefgh | 12345678 | qwerty )
"""
_STOCK = (
    r"(?i:1234|admin|annoris|app|bar|demo|dev|foo|guest|minio|mongo|mysql|pass|passwd|postgres|pw"
    r"|pwd|rabbitmq|redis|root|secret|test|token|user|x-oauth-basic|open sesame|пароль)?"
)
_NOWHERE = (
    r"(?:.*\.)?(?:localhost|example|invalid|test|local|example\.(?:com|org|net))|127\..*|0\.0\.0\.0"
)


def _filled(match: re.Match[str]) -> bool:
    """Not a placeholder."""
    return not re.search(_PLACEHOLDER, match["secret"])


def _entropy(text: str) -> float:
    """Shannon's, in bits for each character."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def _is_random(value: str, least: int) -> bool:
    """Drawn by a machine: at least ``least`` characters in parts that mix letters and digits.

    Cut where case or kind changes, what people write there (``utf8``, ``OAuth2Callback``)
    gives pieces of three characters and more, what is drawn from 16, 36 or 62 pieces of two.
    """
    parts = re.split(r"[^A-Za-z0-9]+", re.sub(_UUID, "", value))
    mixed = "".join(part for part in parts if not part.isalpha() and not part.isdigit())
    pieces = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", mixed)
    numbers = sum(piece.isdigit() for piece in pieces)
    return (
        len(mixed) >= least
        and (len(mixed) < 3 * len(pieces) or numbers >= 3)
        and _entropy(mixed) >= 2.9
    )


def _is_strong(password: str) -> bool:
    """Made to a password policy: 8 characters of all four classes, not twice the same few."""
    classes = ("[a-zа-я]", "[A-ZА-Я]", r"\d", r"[!#%&*+=?@^~$]")
    return (
        len(password) >= 8
        and all(re.search(one, password) for one in classes)
        and _entropy(password) >= 2.7
    )


def _is_assigned(match: re.Match[str]) -> bool:
    """An assigned value that entropy tells from words, digests and identifiers."""
    key, value = match["key"].lower(), match["secret"]
    if len(value) < 8 or not re.search(r"\d", value):  # cheap, and ends nearly all
        return False
    if not _filled(match) or re.fullmatch(_UUID, value):
        return False
    if re.fullmatch(r"(?i:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})", value):
        return not key.startswith(("token", "токен"))  # resume token: <commit>
    if key.startswith(("pass", "pwd", "парол")):
        return _is_strong(value) or _is_random(value, 10)
    return _is_random(value, 16)


def _is_chosen(password: str) -> bool:
    """Neither a placeholder nor what every manual and every container starts with."""
    return not (re.search(_PLACEHOLDER, password) or re.fullmatch(_STOCK, password))


def _is_reachable(match: re.Match[str]) -> bool:
    """A chosen password for a host that others can reach, or a random one for any host."""
    host, password = match["host"].lower(), match["secret"]
    if password == match["user"] or not _is_chosen(password):
        return False
    return _is_random(password, 12) or ("." in host and not re.fullmatch(_NOWHERE, host))


def _is_bearer(match: re.Match[str]) -> bool:
    value = match["secret"]
    return _filled(match) and (_is_random(value, 12) or bool(re.fullmatch(_UUID, value)))


def _is_basic(match: re.Match[str]) -> bool:
    import base64  # noqa: PLC0415

    try:
        _, _, password = base64.b64decode(match["secret"] + "==").decode().partition(":")
    except ValueError:
        return False
    return _is_chosen(password)


def _is_jwt(match: re.Match[str]) -> bool:
    """The header is a JSON object, and it is not the John Doe of every manual."""
    import base64  # noqa: PLC0415
    import json  # noqa: PLC0415

    parts = match["secret"].split(".")[:2]
    try:
        header, payload = (base64.urlsafe_b64decode(part + "==") for part in parts)
        return "alg" in json.loads(header) and b'"1234567890"' not in payload
    except (ValueError, RecursionError):
        return False


# The table. Quantifiers are bounded or possessive: no text makes a match expensive.

_LONG_WORD = 20
_UUID = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"


class _Rule(NamedTuple):
    """``pattern`` is matched where one of ``anchors`` stands, in upper or lower case.

    ``in_long_word``: an anchor needs looking for only in words of ``_LONG_WORD`` characters.
    There are few of them, so that the many token formats cost next to nothing.
    """

    name: str
    anchors: tuple[str, ...]  # in lower case
    pattern: str  # its group "secret" is what must not be seen
    genuine: Callable[[re.Match[str]], bool] = _filled
    in_long_word: bool = False


def _token(name: str, anchors: str, secret: str) -> _Rule:
    """A format that tells itself wherever it stands."""
    pattern = rf"(?a:(?<!\w)(?P<secret>{secret})(?!\w))"
    return _Rule(name, tuple(anchors.split()), pattern, in_long_word=True)


# Python 3.11.2 takes a part of a possessive group's last, failing round along: groups are atomic.
# Between two lines of a key, as code quotes them; then headers, full lines, the last ones.
_GAP = r"""(?>(?:[\s"'+,>|`\\]|\\[nrt]){0,99})"""
_PRIVATE_KEY = (
    r"(?P<secret>-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rf"(?>(?:{_GAP}[A-Z][A-Za-z-]{{1,20}}: [^\n\\]{{1,100}}){{0,5}})"
    rf"(?>(?:{_GAP}[A-Za-z0-9+/=]{{40,}}+)+)"
    rf"(?:(?>(?:{_GAP}[A-Za-z0-9+/=]{{1,80}}+){{0,2}}){_GAP}-----END [A-Z0-9 ]{{1,50}}-----)?)"
)
# A name that promises a secret (not the place in a list, nor a form's guard), and its tail.
_KEY = (
    r"(?<!page)(?<!page.)(?<!next)(?<!next.)(?<!starting.)(?<!csrf)(?<!csrf.)"
    r"(?P<key>pass(?:word|wd|phrase|code)?|pwd|secret|token"
    r"|парол[а-я]{1,3}|токен[а-я]{0,2}|секрет[а-я]{0,3}|ключ(?= api| доступа| шифрования)"
    r"|(?:(?<=api)|(?<=access)|(?<=private)|(?<=encryption)"
    r"|(?<=api.)|(?<=access.)|(?<=private.)|(?<=encryption.))(?:key|ключ))"
    r"s?(?:[_-](?:key|value|base|prod|production|staging|test|dev|live|\d{1,2})){0,2}"
)
_ASSIGNS = (
    r"""["'`*»)\\]{0,4}(?:(?<=["'])\])?"""
    r"(?: (?!sha|md5|hash|digest|checksum|commit|revision|хеш)[\w«»().-]{1,20}+){0,3}"
    r"(?: ?: ?[\w.]{1,20}(?= ?=))?"  # api_key: str = …
    r"[ \t]{0,9}(?:[=-]>|:=|={1,2}|[:|→–—])"
    r"""[ \t*_"'`«\\]{0,9}"""
)
# No sign that assigns stands in a value: a chain of assignments costs no more than its length.
_VALUE_PART = r"""[^\s"'`«»<>()\[\]{},;:&|→–—=\\.]{1,1000}+"""
_HEADER = r"""(?i:authorization["'`*\\]{0,3}\s?[:=][\s"'`*\\]{0,4}"""

_RULES = (
    _Rule("private-key", ("-----begin",), _PRIVATE_KEY, lambda _: True),
    _token("annoris-key", "annoris-key-", r"annoris-key-[\w-]{40,500}"),
    _token("annoris-token", "annoris_", r"annoris_[\w-]{43}"),
    _token("age-key", "age-secret-key-1", r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
    _token("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    _token("github-token", "github_pat_", r"github_pat_\w{22,255}"),
    _token("gitlab-token", "glpat- gldt- glrt- glptt-", r"gl(?:pat|dt|rt|ptt)-[\w.-]{20,300}"),
    _token("anthropic-key", "sk-ant-", r"sk-ant-[\w-]{24,250}"),
    _token("openai-key", "sk-proj- sk-svcacct- sk-admin-", r"sk-[a-z]{4,8}-[\w-]{32,250}"),
    _token("openai-key", "sk-", r"sk-(?:or-v1-)?[A-Za-z0-9]{32,64}"),
    _token("aws-access-key", "akia asia", r"(?:AKIA|ASIA)[A-Z0-9]{16}"),
    _Rule(
        "aws-secret-key",
        ("secret",),
        r"(?i:secret[ _-]?(?:access[ _-]?)?key)[^A-Za-z0-9/+\n]{1,12}"
        r"(?P<secret>(?=[a-z0-9/+]{0,39}[A-Z])(?=[A-Z0-9/+]{0,39}[a-z])[A-Za-z0-9/+]{40})"
        r"(?![A-Za-z0-9/+=])",
    ),
    _token("google-key", "aiza", r"AIza[\w-]{35}"),
    _token("google-oauth", "ya29. gocspx-", r"(?:ya29\.[\w.-]{30,2000}|GOCSPX-[\w-]{28})"),
    _token(
        "slack-token", "xoxa- xoxb- xoxe- xoxp- xoxr- xoxs-", r"xox[abeprs]-[A-Za-z0-9-]{20,250}"
    ),
    _token("slack-token", "xapp-", r"xapp-\d-[A-Za-z0-9-]{30,250}"),
    _Rule(
        "slack-webhook",
        ("hooks.slack.com/",),
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<secret>[\w/-]{20,200})",
        in_long_word=True,
    ),
    _token("stripe-key", "sk_live_ rk_live_", r"[sr]k_live_[A-Za-z0-9]{20,250}"),
    _token("stripe-key", "whsec_", r"whsec_[A-Za-z0-9+/]{32,100}={0,2}"),
    _token("huggingface-token", "hf_", r"hf_[A-Za-z0-9]{30,50}"),
    _token("npm-token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _token("pypi-token", "pypi-age", r"pypi-AgE[\w-]{50,500}"),
    _Rule(
        "telegram-token",
        (":aa",),
        r"(?a:(?<=\d{8}):(?P<secret>AA[\w-]{33})(?![\w-]))",
        in_long_word=True,
    ),
    _Rule(
        "discord-webhook",
        ("/api/webhooks/",),
        r"(?a:/api/webhooks/\d{17,20}/(?P<secret>[\w-]{60,80}))",
        in_long_word=True,
    ),
    _Rule(
        "discord-token",
        ("discord",),
        r"(?is:discord.{0,120}?)(?a:(?<![\w-])"
        r"(?P<secret>[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40})(?![\w-]))",
    ),
    _token("sendgrid-key", "sg.", r"SG\.[\w-]{16,32}\.[\w-]{30,64}"),
    _token("twilio-key", "sk", r"SK[0-9a-f]{32}"),
    _Rule(
        "twilio-token",
        ("twilio",),
        r"(?is:twilio.{0,120}?token)\W{1,6}(?P<secret>[0-9a-f]{32})(?!\w)",
    ),
    _token("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _Rule(
        "railway-token",
        ("railway",),
        rf"(?i:railway[\w ]{{0,20}}token)\W{{1,6}}(?P<secret>{_UUID})",
    ),
    _Rule(
        "azure-storage-key",
        ("accountkey=",),
        r"(?i:accountkey=)(?P<secret>[A-Za-z0-9+/]{86}==)",
        in_long_word=True,
    ),
    _token(
        "vendor-token",  # Groq, xAI, Perplexity, Replicate, Docker, Grafana, Vault, …
        "gsk_ xai- pplx- r8_ dckr_pat_ glsa_ hvs. shpat_ tskey- lin_api_ ntn_",
        r"(?:gsk_|xai-|pplx-|r8_|dckr_pat_|glsa_|hvs\.|shpat_|tskey-|lin_api_|ntn_)"
        r"(?=[\w-]{0,30}\d)[\w-]{27,250}",
    ),
    _Rule(
        "jwt",
        ("eyj",),
        r"(?a:(?<![\w-])(?P<secret>eyJ[\w-]{10,800}\.[\w-]{10,8000}\.[\w-]{16,1000})(?![\w-]))",
        _is_jwt,
        in_long_word=True,
    ),
    _Rule(
        "url-password",
        ("://",),
        r"""://(?P<user>[^\s:@/"'`<>]{0,128}):(?P<secret>[^\s@/"'`<>]{1,256})@(?P<host>[\w.-]{1,253})""",
        _is_reachable,
        in_long_word=True,
    ),
    _Rule(
        "netrc-password",
        ("machine",),
        r"machine\s{1,9}(?P<host>\S{1,253})\s{1,9}login\s{1,9}(?P<user>\S{1,128})"
        r"""\s{1,9}password\s{1,9}(?P<secret>[^\s"'`]{1,256})""",
        _is_reachable,
    ),
    _Rule(
        "authorization-header",
        ("authorization",),
        _HEADER + r"(?:bearer|token|bot|apikey)\s{1,3})(?P<secret>[\w.~+/=-]{16,2000})",
        _is_bearer,
    ),
    _Rule(
        "authorization-header",
        ("authorization",),
        _HEADER + r"basic\s{1,3})(?P<secret>[A-Za-z0-9+/]{8,500}={0,2})",
        _is_basic,
    ),
    _Rule(
        "assigned-secret",
        ("pass", "pwd", "secret", "token", "key", "парол", "токен", "секрет", "ключ"),
        rf"(?i:{_KEY}{_ASSIGNS})(?P<secret>{_VALUE_PART}(?>(?:\.{_VALUE_PART}){{0,2}})={{0,2}}+)(?![(\[])",
        _is_assigned,
    ),
)
