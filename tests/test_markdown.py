from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from annoris import document, markdown
from annoris.errors import DocumentRefused, NotFound
from tests.corpus import documents
from tests.support.fuzz import examples

WHOLE = list(documents())


def rules(text: str, **options: Any) -> list[tuple[str, int]]:
    found = markdown.check(document.parse(text.encode()), **options)
    return [(problem.rule, problem.line) for problem in found]


# ------------------------------------------------------------------ structure


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# T\n\n## A\n\n### B\n\n## C\n", []),
        ("T\n=\n\nA\n-\n", []),
        ("no title\n", [("no-h1", 0)]),
        ("> # quoted\n", [("no-h1", 0)]),
        ("# T\n\n### B\n", [("skipped-heading", 3)]),
        ("---\na: b\n---\n# T\r\n\r\n### B\r\n", [("skipped-heading", 6)]),
        ("# T\r\r```\rx\r", [("unclosed-fence", 3)]),
        ("# T\n\n```\nx\n```\n", []),
        ("# T\n\n~~~~\nx\n~~~\n", [("unclosed-fence", 3)]),
        ("# T\n\n```\n", [("unclosed-fence", 3)]),
        ("# T\n\n- a\n\n  ```\n  # x\n  ```\n", []),
        ("# T\n> ```\n> x\n> ```\n", []),
        ("# T\n<<<<<<< a\n1\n=======\n2\n>>>>>>> b\n", [("conflict-marker", 2)]),
        ("# T\n<<<<<<< a\nonly one\n", []),
        ("# T\n\nÐ¡Ñ‚Ð°Ñ‚ÑƒÑ Ð³Ð¾Ñ‚Ð¾Ð²\n", [("mojibake", 3)]),
        ("# T\n\nРЎС‚Р°С‚СѓСЃ: РІ СЂР°Р±РѕС‚Рµ\n", [("mojibake", 3)]),
        ("# T\n\ncafÃ© â€œquotedâ€\x9d\n", [("mojibake", 3)]),
        ("[only]: /a-link\n", [("no-h1", 0)]),
        ("# T\n\n« né », ‘É’, «СССР», №7 — à 5 °C\n", []),
    ],
)
def test_structure_warnings_name_rule_and_file_line(
    text: str, found: list[tuple[str, int]]
) -> None:
    assert rules(text) == found


def test_required_sections_are_found_whatever_their_case_and_emoji() -> None:
    text = "# T\n\n## 🎯 NEXT steps:\n\n## **Решения**\n"
    wanted = ("Next Steps", "решения", "Open questions")
    problems = markdown.check(document.parse(text.encode()), required=wanted)
    assert [(p.rule, p.message) for p in problems] == [
        ("missing-section", "there is no section 'Open questions'")
    ]


def test_above_the_parsers_limit_lines_are_scanned_to_the_same_end() -> None:
    text = "# T\n\n### Skipped\n\nx\n\n```\nopen\n" + "text\n" * 250_000
    assert len(text) > markdown.PARSER_LIMIT
    assert rules(text) == [("skipped-heading", 3), ("unclosed-fence", 7)]


@pytest.mark.parametrize(("name", "data"), WHOLE, ids=[name for name, _ in WHOLE])
def test_the_line_scan_sees_what_the_markdown_parser_sees(name: str, data: bytes) -> None:
    text = document.lined(document.split(data)[1].decode())[:30_000]
    shown = [
        [(line, level, document.plain(raw)) for line, level, raw in scan(text)]
        for scan in (document.outline, markdown._parsed)
    ]
    assert shown[0] == shown[1]


LINES = [
    "# T", "## b #", "#tag", "text", "- item", "  - sub", "1. one", "   para", "> q", "", "",
    "```", "```py", "```", "~~~", "````", "   ```", "  # in", "    # c", "---", "===", "-", "<b>",
    "<div>", "<!-- x", "-->", "<https://a>", "\tx", "- ```", "> ```", "[a]: /u 'x", "``` a`b", "-a",
    " ", " ---", "-\tx", "\x0b", "- # h", "# x \\#", "\u2028# no", "<pre>",
    "- <pre>", "          - deep", "#\tt", "1)", "* * *", "~~~~ `", "- - - - - - - - - - - x",
]  # fmt: skip


def test_where_no_parser_is_asked_it_would_have_seen_the_same() -> None:
    chance, sure = random.Random(5), 0
    for _ in range(4000):
        some = chance.sample(LINES, chance.randint(1, len(LINES)))
        text = "\n".join(chance.choices(some, k=chance.randint(1, 12)))
        if (scanned := markdown._scanned(text)) is not None:
            sure += 1
            assert scanned == list(markdown._parsed(text)), text
    assert sure > 300


@pytest.mark.parametrize(
    "line", ["  # in a list", "<div>", "- ```", "a\n===", "\t# x", "```", "- - - - - - - - - - x"]
)
def test_what_only_a_parser_can_judge_it_is_asked_about(line: str) -> None:
    assert markdown._scanned("# T\n\n- a\n\n```\n  # code\n<div>\n```\n\ntext\n---text\n")
    assert markdown._scanned(f"# T\n\n{line}\n\nb\n") is None


PIECES = [
    "---\n", "a: b\n", "\n", "\r", "\r\n", "# T\n", "### x\n", "```\n", "~~~ `\n", "<!--", "-->",
    "===\n", "- ", "> ", "1. ", "    ", "\t", "<<<<<<< x\n", ">>>>>>>\n", "\u2028", "x", "Ð¡Ñ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@settings(deadline=None, max_examples=examples(120))
def test_any_text_is_checked_and_each_problem_stands_on_a_line_of_the_file(text: str) -> None:
    try:
        parsed = document.parse(text.encode())
    except DocumentRefused:
        reject()
    lines = document.newlines(parsed.data) + 1
    for problem in markdown.check(parsed, required=("x",)):
        assert 0 <= problem.line <= lines
        assert not problem.error


# ------------------------------------------------------------------ sections

BODY = (
    "# Log\n\nintro\n\n## 🎯 Next steps\n\n- a\n\n### Detail\n\nd\n\n```\n## no\n```\n\n"
    "## Next week\n\nw\n\nOpen *questions*\n---\n\nq\n"
)


@pytest.mark.parametrize(
    ("title", "first", "last"),
    [
        ("🎯 Next steps", "## 🎯", "```\n\n"),
        ("next STEPS", "## 🎯", "```\n\n"),
        ("## Next steps:", "## 🎯", "```\n\n"),
        ("Detail", "### D", "```\n\n"),
        ("det", "### D", "```\n\n"),
        ("Open questions", "Open *", "q\n"),
        ("Log", "# Log", "q\n"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_section_reaches_to_the_next_heading_of_its_level(
    title: str, first: str, last: str, newline: str
) -> None:
    body = BODY.replace("\n", newline)
    part = markdown.section(body, title)
    assert part in body
    assert part.startswith(first)
    assert part.endswith(last.replace("\n", newline))


@pytest.mark.parametrize(
    ("title", "hint"),
    [("no", "🎯 Next steps; Detail; Next week"), ("next", "🎯 Next steps; Next week"), ("", "Log")],
)
def test_a_section_that_is_not_there_is_answered_with_the_headings(title: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        markdown.section(BODY, title)
    assert hint in caught.value.hint
    with pytest.raises(NotFound, match="no section"):
        markdown.section("text", title)


# ------------------------------------------------------------------ excerpts


@given(
    st.text(st.characters(codec="utf-8"), max_size=20), st.integers(-1, 200), st.integers(0, 300)
)
@settings(deadline=None, max_examples=examples(80))
def test_a_clip_is_a_beginning_and_counts_what_is_missing(
    text: str, limit: int, times: int
) -> None:
    text = (text + "\n\n") * times
    clipped = markdown.clip(text, limit)
    assert len(clipped) <= max(limit, 0) or clipped == text == ""
    if clipped != text and (match := re.search(r"\n\n\[… (\d+) more .*\]\Z", clipped)):
        assert text.startswith(clipped[: match.start()])
        assert int(match[1]) == len(text) - match.start()


def test_a_clip_ends_at_a_paragraph_or_a_line_where_it_can() -> None:
    assert markdown.clip("short", 5) == "short"
    left = "\n\n[… {} more characters are left out]"
    paragraphs = "one\n\n" + "x" * 30 + "\n\n" + "y" * 60
    assert markdown.clip(paragraphs, 84) == paragraphs[:35] + left.format(len(paragraphs) - 35)
    lines = "x" * 30 + "\n" + "y" * 99
    assert markdown.clip(lines, 80) == "x" * 30 + left.format(100)
    assert markdown.clip("z" * 200, 100).startswith("z" * 59)
    assert markdown.clip("z" * 200, 3) == "zzz"
