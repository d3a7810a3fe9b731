"""What counts as a credential in a document, what does not, and what is told of it.

No line here holds a credential in one piece: those that a scanner knows are joined at run time.
"""

from __future__ import annotations

import base64
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annoris import leaks

MIXED = "a1B2" * 9  # 36 characters
HEX = "0f1e2d3c" * 8  # 64
LINE = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
DASHES = "-" * 5


def b64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def pem(kind: str, *lines: str, newline: str = "\n") -> str:
    return newline.join([f"{DASHES}BEGIN {kind}{DASHES}", *lines, f"{DASHES}END {kind}{DASHES}"])


JWT = ".".join([b64('{"alg":"HS256","typ":"JWT"}'), b64('{"sub":"u-71","admin":true}'), MIXED])

# rule, text, the part of it that is secret
HITS = [
    ("annoris-key", "annoris-key-" + MIXED + "Zz-9", None),
    ("annoris-token", "annoris_" + (MIXED + "Zz-9" * 11)[:43], None),
    ("age-key", "AGE-SECRET-" + "KEY-1" + "Q2W3" * 14 + "E4", None),
    ("github-token", "ghp_" + MIXED, None),
    ("github-token", "gho_" + MIXED, None),
    ("github-token", "ghu_" + MIXED, None),
    ("github-token", "ghs_" + MIXED, None),
    ("github-token", "ghr_" + MIXED, None),
    ("github-token", "github_" + "pat_11ABCDEFG0" + MIXED + "_" + MIXED, None),
    ("gitlab-token", "glpat-" + "x7Kd_9" * 4, None),
    ("anthropic-key", "sk-ant-" + "api03-" + MIXED * 2, None),
    ("openai-key", "sk-" + "a1B2" * 12, None),
    ("openai-key", "sk-proj-" + MIXED + "_" + MIXED, None),
    ("openai-key", "sk-or-v1-" + HEX, None),
    ("aws-access-key", "AKIA" + "Q3EG" * 4, None),
    ("aws-access-key", "ASIA" + "Q3EG" * 4, None),
    ("aws-secret-key", "AWS_SECRET_ACCESS_KEY=" + "aB3/" * 10, "aB3/" * 10),
    ("aws-secret-key", '"SecretAccessKey": "' + "aB3+" * 10 + '"', "aB3+" * 10),
    ("google-key", "AIza" + "Sy_" + "Dk39" * 8, None),
    ("google-oauth", "ya29." + "a0Af_" * 9, None),
    ("google-oauth", "GOCSPX-" + "k9_Z" * 7, None),
    ("slack-token", "xoxb-" + "2401830124-" + "a1B2" * 6, None),
    ("slack-token", "xapp-1-" + "A02BC3D4E5-" + "a1B2" * 6, None),
    (
        "slack-webhook",
        "https://hooks.slack.com/services/" + "T02K9XW1A/B03J8YV2C/" + "a1B2" * 6,
        "T02K9XW1A/B03J8YV2C/" + "a1B2" * 6,
    ),
    ("stripe-key", "sk_live_" + "a1B2" * 6, None),
    ("stripe-key", "rk_live_" + "a1B2" * 6, None),
    ("stripe-key", "whsec_" + "a1B2" * 8, None),
    ("huggingface-token", "hf_" + "aBcD" * 8 + "eF", None),
    ("npm-token", "npm_" + MIXED, None),
    ("pypi-token", "pypi-" + "AgEIcHlwaS5vcmc" + MIXED * 2, None),
    ("telegram-token", "7401839265:" + "AA" + "H_9" * 11, "AA" + "H_9" * 11),
    (
        "discord-webhook",
        "https://discord.com/api/webhooks/" + "110293847566473829/" + "a_B-" * 17,
        "a_B-" * 17,
    ),
    (
        "discord-token",
        "DISCORD_TOKEN=" + "MTk4NjIyNDgzNDcxOTI1MjQ4" + ".Cl2FMQ." + "ZnCjm1XVW7vRze4b7Cq4se7kKWs",
        "MTk4NjIyNDgzNDcxOTI1MjQ4" + ".Cl2FMQ." + "ZnCjm1XVW7vRze4b7Cq4se7kKWs",
    ),
    ("sendgrid-key", "SG." + "a1_B" * 5 + "xy." + "c3-D" * 10 + "abc", None),
    ("twilio-key", "SK" + HEX[:32], None),
    ("twilio-token", "TWILIO_AUTH_TOKEN=" + HEX[:32], HEX[:32]),
    ("digitalocean-token", "dop_v1_" + HEX, None),
    (
        "railway-token",
        "RAILWAY_TOKEN=" + "5e9c1a70-3b42-4d18-9f6a-c07d81e2b3f4",
        "5e9c1a70-3b42-4d18-9f6a-c07d81e2b3f4",
    ),
    (
        "azure-storage-key",
        "AccountName=notes;AccountKey=" + "a/B2" * 21 + "Qw==;EndpointSuffix=core.windows.net",
        "a/B2" * 21 + "Qw==",
    ),
    ("vendor-token", "gsk_" + MIXED, None),
    ("vendor-token", "hvs." + MIXED, None),
    ("jwt", JWT, None),
    ("private-key", pem("PRIVATE KEY", LINE, LINE, "Qk9eYg=="), None),
    ("private-key", pem("RSA PRIVATE KEY", LINE, LINE, LINE[:20], newline="\r\n"), None),
    ("private-key", pem("OPENSSH PRIVATE KEY", "b3BlbnNzaC1rZXktdjEA" + "A" * 44, LINE), None),
    ("private-key", pem("EC PRIVATE KEY", LINE), None),
    ("private-key", pem("PGP PRIVATE KEY BLOCK", "Version: GnuPG v2", "", LINE, "=aB3d"), None),
    (
        "private-key",
        pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0A1B", "", LINE),
        None,
    ),
    ("private-key", f"{DASHES}BEGIN PRIVATE KEY{DASHES}\n{LINE}\n{LINE}", None),  # cut short
    ("private-key", pem("PRIVATE KEY", LINE, LINE, "Qk9eYg==", newline="\\n"), None),  # in JSON
    ("private-key", pem("PRIVATE KEY", LINE, LINE, newline="\n    > "), None),  # quoted
    ("url-password", "postgres://annoris:" + "plum7tree" + "@db.prod.net/main", "plum7tree"),
    ("url-password", "postgresql+psycopg://a:" + "plum7tree" + "@10.0.0.7:5432/x", "plum7tree"),
    ("url-password", "redis://:" + "plum7tree" + "@cache.corp.ru:6379/0", "plum7tree"),
    ("url-password", "mysql://root:" + "plum7tree" + "@db.corp.ru", "plum7tree"),
    ("url-password", "amqps://svc:" + "plum7tree" + "@mq.corp.ru/vhost", "plum7tree"),
    ("url-password", "mongodb+srv://svc:" + "plum7tree" + "@c0.ab1.mongodb.net", "plum7tree"),
    ("url-password", "postgres://app:" + "Xk9mQ2vL7pRt" + "@localhost/app", "Xk9mQ2vL7pRt"),
    ("url-password", "https://deploy:" + "plum7tree" + "@git.corp.ru/x.git", "plum7tree"),
    ("netrc-password", "machine git.corp.ru login ann password " + "plum7tree", "plum7tree"),
    ("netrc-password", "machine git.corp.ru\n  login ann\n  password " + "plum7", "plum7"),
    ("authorization-header", "Authorization: Bearer " + "k3J9x_Q2vL7pRt5Z", "k3J9x_Q2vL7pRt5Z"),
    ("authorization-header", 'curl -H "authorization: token ' + HEX[:40] + '"', HEX[:40]),
    (
        "authorization-header",
        "Authorization: Bearer " + "5e9c1a70-3b42-4d18-9f6a-c07d81e2b3f4",
        "5e9c1a70-3b42-4d18-9f6a-c07d81e2b3f4",
    ),
    (
        "authorization-header",
        '"Authorization": "Basic ' + b64("ann:plum7trees") + '"',
        b64("ann:plum7trees"),
    ),
]
RANDOM = "xK9mQ2vL7pRt4Wz8"
ASSIGNMENTS = [
    "password = {}",
    "API_KEY={}",
    'api_key: str = "{}"',
    '"client_secret": "{}",',
    '\\"token\\": \\"{}\\"',
    "SECRET_KEY_BASE={}",
    "export DB_PASSWORD_PROD='{}'",
    'config["token"] = "{}"',
    "**Password:** `{}`",
    "- **API key**: {}",
    "| API key | {} |",
    "token := {}",
    "{{ token: '{}' }}",
    "https://corp.ru/hook?access_token={}&page=2",
    "пароль: {}",
    "Пароль от продакшн базы: {}.",
    "- **Токен:** `{}`",
    "API-ключ — {}",
    "Ключ API: «{}»",
    "секрет вебхука → {}",
]
HITS += [("assigned-secret", form.replace("{}", RANDOM), RANDOM) for form in ASSIGNMENTS]
HITS += [
    ("assigned-secret", "webhook secret: " + HEX[:40], HEX[:40]),
    ("assigned-secret", "DB_PASS=" + "Qz7#plum!x", "Qz7#plum!x"),
    ("assigned-secret", "secret: " + "q7Rt-x2Kp_9LmZ-w4Vb8Nc", "q7Rt-x2Kp_9LmZ-w4Vb8Nc"),
    ("assigned-secret", "secret_value: " + "Zm9v+YmFy/9xQ2L7pR4tWk==", "Zm9v+YmFy/9xQ2L7pR4tWk=="),
]

SHA1 = "757107ea0eb2509fc211221cce984b8a37570b6d"
SHA256 = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
UUID = "0199f3c2-7d1e-7b44-9c55-3f0a1e2d4c6b"
SHA512 = "sha512-" + base64.b64encode(bytes(range(7, 71))).decode()
PNG = base64.b64encode(bytes((i * 89 + 41) % 256 for i in range(900))).decode()

CLEAN = f"""
# Auth refactor — session 14
**Status:** in progress, token refresh is next
**Next:** rotate the API key before Friday
The token budget for each request: 4096-16384, not more.
Max tokens: 128000, max output tokens = 8192
Use `GITHUB_TOKEN=<token>` in CI
export GITHUB_TOKEN=ghp_{"x" * 36}
export GITHUB_TOKEN=ghp_{"X" * 36}
token: ****************
export TOKEN=$TOKEN
DATABASE_URL=${{DATABASE_URL}}
password: "${{DB_PASSWORD:-changeme}}"
token: {{{{ token }}}}
api_key = YOUR_API_KEY
api_key = "your-api-key-goes-here-1234567890"
OPENAI_API_KEY=sk-...
ANTHROPIC_API_KEY=sk-ant-api03-your-key-here-and-nothing-else
aws_access_key_id = AKIAIOSFODNN7EXAMPLE
aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
postgres://user:password@localhost:5432/db
postgres://postgres:postgres@db:5432/annoris
postgresql://annoris:annoris@127.0.0.1/annoris_test
mysql://root:plum7tree@localhost/app
https://user:pass@host.corp.ru/path
https://<user>:<password>@git.corp.ru/x.git
https://x-access-token:${{TOKEN}}@github.com/o/r.git
redis://:$REDIS_PASSWORD@cache.corp.ru:6379
amqp://guest:guest@rabbit.corp.ru
mongodb://app:plum7tree@db.example.com/test
http://localhost:8080/@scope/package and https://corp.ru:8443/a@b
Contact: ops@corp.ru, git@github.com:annoris/notes.git
commit {SHA1}
- {SHA1[:7]} Fix token refresh
- {SHA1[:7]} Rotate secret: see the runbook
md5 9e107d9d372bb6826bd81d3542a419d6  session.md
{SHA256}  annoris-0.1.0.tar.gz
secret sha256: {SHA256}
The password hash checksum is {SHA256}
Resume token: {SHA1}
X-Hub-Signature-256: sha256={SHA256}
image@sha256:{SHA256}
session {UUID} saved
token: {UUID}
secret-id = {UUID}
idempotency token: {UUID}
"integrity": "{SHA512}",
"resolved": "https://registry.corp.ru/left-pad/-/left-pad-1.3.0.tgz#5b8a3a7765dfe001261dde915589e782f8c94d1e"
![diagram](data:image/png;base64,{PNG})
<img src="data:image/png;base64,{PNG[:200]}">
/srv/annoris/clones/github.com/annoris/notes.git/objects/75/7107ea0eb2509fc211221cce984b8a37570b6d
/home/ann/projects/service-api-gateway/src/main/java/ru/corp/security/TokenAuthenticationFilter.java
https://github.com/annoris/notes/blob/{SHA1}/annoris/leaks.py#L10-L42
https://docs.corp.ru/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit
colours: #1e90ff, #ff6347, #2e8b5780; accent = #0F1E2D
var a=function(e,t){{return e.k9x2Qm7||t.pR4tWz8vL(e)}};!function(n){{var r={{}};n(r)}}(window)
password = getpass.getpass("Password: ")
secret = os.environ["WEBHOOK_SECRET"]
token = secrets.token_urlsafe(32)
secret = base64.b64encode(hmac.digest(key, data, "sha256"))
api_key: str = Field(default=..., min_length=16)
token = response.json()["access_token"]
if token == settings.GITHUB_TOKEN_V2: return True
def token(self, handleOAuth2CallbackV2: str) -> None: ...
password_hash = "$2b$12$KIXQ1V2m0x8Yp5r6t7u8v.e9w0x1y2z3A4B5C6D7E8F9G0H1I2J3K"
password hashing: PBKDF2-SHA256, then argon2id
Token algorithm: HS256/RS256/ES256/PS256
secret: projects/annoris-prod/secrets/db-password/versions/3
secret = arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/db-a1B2c3
token model: claude-sonnet-4-5-20250929
secretKeyRef: annoris-webhook-v2
kubectl get secret annoris-tls-7d9f8b6c5d -o yaml
next_page_token: CiAKGjBpNDd2Nmp2Zml2cXRwYjBpOXA5
"NextToken": "eyJNYXJrZXIiOiBudWxsLCAiYm90bzNfdHJ1bmNhdGUiOiAyfQ=="
<input type="hidden" name="csrf_token" value="Zk4Qm7xR2vL9pTw3">
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN9vQ2rT7xLp4Zb8c1Yf6Hd3Jg5Ks0Ua2Wv4Ex7 ann@laptop
It starts with `{DASHES}BEGIN PRIVATE KEY{DASHES}`, ends with `{DASHES}END PRIVATE KEY{DASHES}`.
{DASHES}BEGIN RSA PRIVATE KEY{DASHES} ... {DASHES}END RSA PRIVATE KEY{DASHES}
{DASHES}BEGIN PUBLIC KEY{DASHES} {LINE} {DASHES}END PUBLIC KEY{DASHES}
{DASHES}BEGIN CERTIFICATE{DASHES} {LINE} {DASHES}END CERTIFICATE{DASHES}
Authorization: Bearer <token>
Authorization: Bearer $TOKEN
Authorization: Bearer YOUR_ACCESS_TOKEN_HERE
Authorization: Basic {b64("user:password")}
Authorization: Basic {b64("ann:YOUR_PASSWORD")} and Basic {b64("Aladdin:open sesame")}
password: P@ssw0rd2024!
private key: ~/.ssh/id_ed25519_github2
Send it as an Authorization: token authentication-middleware header
The state machine: login with a password prompt, then logout
machine example.com login ann password plum7tree
A JWT looks like eyJhbGciOi...; see {b64('{"alg":"HS256"}')}.{b64('{"sub":"1234567890"}')}.{MIXED}
eyJub3QiOiAiYSBoZWFkZXIifQ.{MIXED}.{MIXED}
class="sk-fading-circle-with-a-very-long-name" id="task-list-of-the-sprint"
The risk-based approach and the desk-ant-colony-optimisation-of-everything
hf_hub_download(repo_id="annoris/model", filename="config.json")
npm_config_registry, npm_package_version and npm_lifecycle_event are set
ref: AKIA is a prefix, ghp_ is a prefix, xoxb- is a prefix, sk_live_ is a prefix
sk_test_{MIXED[:24]} is a test key of Stripe
2026-11-24T06:42:56Z INFO token refreshed in 12.3ms request_id=7f3a9c1d5e7b8a9c
ratio 12345678:AAAA and 10:30:45.123456
DISCORD bot: token comes from the vault, see the Discord runbook
Twilio: the auth token was rotated on 2026-11-20
RAILWAY_TOKEN is set in the project, not here
# Рефакторинг авторизации
**Статус:** в работе, обновление токена следующее
Пароль: см. в менеджере паролей, запись «прод»
Пароль: <пароль>
пароль: ваш-пароль-здесь-2024
пароль = $DB_PASSWORD
Токен: выдан 24.11.2026, действует 30 дней
Токен — это JWT/OAuth2, подпись HS256
Ключ API: хранится в Railway, не здесь
Ключ: значение, ключ шифрования: AES-256-GCM/HKDF-SHA256
Секрет: в переменной `WEBHOOK_SECRET`
Осталось токенов: 12345, лимит 200000
Контрольная сумма пароля: md5 9e107d9d372bb6826bd81d3542a419d6
Коммит {SHA1}, ветка `fix/token-refresh-v2`
""".strip().splitlines()


@pytest.mark.parametrize(("rule", "text", "secret"), HITS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("frame", ["{}", "Итак, вот:\n\n    {}\nи всё.", '- see "{}", please'])
def test_a_credential_is_reported_once_with_its_rule_and_place(
    rule: str, text: str, secret: str | None, frame: str
) -> None:
    document = frame.replace("{}", text)
    (leak,) = leaks.scan(document)
    assert leak.rule == rule
    secret = text if secret is None else secret
    line = document[: document.index(secret)].split("\n")
    assert (leak.line, leak.column) == (len(line), len(line[-1]) + 1)
    assert leaks.redact(document, [leak]) == document.replace(secret, f"[redacted: {rule}]")


def test_every_rule_is_hit_by_a_case() -> None:
    assert {rule for rule, _, _ in HITS} == {rule.name for rule in leaks._RULES}


@pytest.mark.parametrize("line", CLEAN, ids=lambda line: line[:30])
def test_an_ordinary_line_is_no_leak(line: str) -> None:
    assert leaks.scan(line) == ()


def test_ordinary_lines_together_are_no_leak() -> None:
    assert len(CLEAN) >= 100
    assert leaks.scan("\n".join(CLEAN)) == ()


def test_the_excerpt_shows_four_characters_at_most_and_the_length() -> None:
    (token,) = leaks.scan("ghp_" + MIXED)
    assert token.excerpt == "ghp_…40"
    (short,) = leaks.scan("https://deploy:" + "plum7tree" + "@git.corp.ru/x.git")
    assert short.excerpt == "pl…9"


def test_the_fingerprint_names_one_secret_wherever_it_stands() -> None:
    token, other = "ghp_" + MIXED, "ghp_" + MIXED[::-1]
    first, second, third = leaks.scan(f"a {token}\nb `{token}`\ntoken = {other}")
    assert re.fullmatch("[0-9a-f]{12}", first.fingerprint)
    assert first.fingerprint == second.fingerprint != third.fingerprint


def test_an_allowed_secret_passes_and_its_neighbours_do_not() -> None:
    token, other = "ghp_" + MIXED, "ghp_" + MIXED[::-1]
    text = f"token = {token}, token = {other}"
    first, second = leaks.scan(text)
    assert leaks.scan(text, allow={first.fingerprint}) == (second,)
    assert leaks.scan(text, allow=["github-token"]) == (first, second)


def test_leaks_come_in_the_order_of_the_text() -> None:
    texts = [text for _, text, _ in HITS]
    found = leaks.scan("\n\n".join(texts))
    assert [leak.rule for leak in found] == [rule for rule, _, _ in HITS]
    assert [leak.line for leak in found] == sorted(leak.line for leak in found)


def test_redacting_some_leaves_the_others() -> None:
    token, other = "ghp_" + MIXED, "npm_" + MIXED
    text = f"{token} and {other} and {token}"
    (first, *_) = leaks.scan(text)
    expected = f"[redacted: github-token] and {other} and [redacted: github-token]"
    assert leaks.redact(text, [first]) == expected


def test_a_service_account_file_is_one_leak() -> None:
    account = {
        "type": "service_account",
        "private_key_id": SHA1,
        "private_key": pem("PRIVATE KEY", LINE, LINE, "Qk9eYg==") + "\n",
        "client_email": "annoris@prod.iam.gserviceaccount.com",
    }
    rules = [leak.rule for leak in leaks.scan(json.dumps(account, indent=2))]
    assert rules.count("private-key") == 1
    assert set(rules) <= {"private-key", "assigned-secret"}


def test_lower_case_keeps_every_offset() -> None:
    """U+0130 alone grows in lower case; a text full of it still gives true columns."""
    assert [c for c in range(sys.maxunicode + 1) if len(chr(c).lower()) != 1] == [0x130]
    (leak,) = leaks.scan("İ" * 10 + " ghp_" + MIXED)
    assert leak.column == 12


PIECES = st.one_of(
    st.sampled_from([text for _, text, _ in HITS]),
    st.sampled_from([text[: len(text) // 2] for _, text, _ in HITS]),
    st.sampled_from(
        ["token", "password", "://", ":", "=", "-", "_", "@", " ", "\n", '"', "]", "."]
    ),
    st.text(max_size=6),
)


@given(st.lists(PIECES, max_size=7).map("".join))
def test_nothing_is_left_after_redaction_and_no_excerpt_tells_a_secret(text: str) -> None:
    found = leaks.scan(text)
    for leak in found:
        shown, length = leak.excerpt.split("…")
        assert len(shown) <= 4
        assert int(length) >= 4 * len(shown)
        offset = sum(len(one) + 1 for one in text.split("\n")[: leak.line - 1]) + leak.column - 1
        assert text.startswith(shown, offset)
    assert leaks.scan(leaks.redact(text, found)) == ()


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=400))
def test_no_text_makes_the_scan_raise(text: str) -> None:
    assert leaks.redact(text, leaks.scan(text)) is not None


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    [
        "password=",
        "token.token=",
        "ghp_",
        "-eyJa.",
        "://a:b@",
        "secret key ",
        "token: a.b.c ",
        f"{DASHES}BEGIN PRIVATE KEY{DASHES}",
        f"{DASHES}BEGIN PRIVATE KEY{DASHES}\\n",
        "discord MTk4.",
        "machine a login b password ",
        "a",
    ],
)
def test_a_line_of_a_million_hostile_characters_is_scanned(unit: str) -> None:
    assert leaks.scan(unit * (1_000_000 // len(unit))) == ()
