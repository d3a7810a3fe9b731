"""Documents to test with: deterministic, varied, each of them good enough to be saved."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

_UUID = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"

_WORDS = {
    "en": "build fix queue retry schema deploy cache index parser test branch review token page "
    "cost limit shape order client server merge report draft release",
    "ru": "сборка очередь ошибка проверка ветка отчёт сервер кэш шаблон запрос таблица ключ "
    "выпуск задача решение вопрос черновик заказ стоимость предел",
    "de": "Auftrag Prüfung Änderung Zweig Schlüssel Lösung Frage Größe Straße Bericht Entwurf "
    "Ablauf Zwischenspeicher Fehler Übergabe",
    "zh": "构建 队列 错误 测试 分支 报告 服务器 缓存 模板 请求 表格 密钥 发布 任务 决定 问题",
    "ar": "بناء طابور خطأ اختبار فرع تقرير خادم ذاكرة قالب طلب جدول مفتاح إصدار مهمة قرار",
    "he": "בנייה תור שגיאה בדיקה ענף דוח שרת מטמון תבנית בקשה טבלה מפתח גרסה משימה החלטה",
}

_LABELS = {
    "en": ("Session", "Status", "Next", "Decisions", "Open questions", "in progress"),
    "ru": ("Сессия", "Статус", "Дальше", "Решения", "Открытые вопросы", "в работе"),
    "de": ("Sitzung", "Status", "Weiter", "Entscheidungen", "Offene Fragen", "in Arbeit"),
    "zh": ("会话", "状态", "下一步", "决定", "未决问题", "进行中"),
    "ar": ("جلسة", "الحالة", "التالي", "القرارات", "أسئلة مفتوحة", "قيد التنفيذ"),
    "he": ("מפגש", "מצב", "הבא", "החלטות", "שאלות פתוחות", "בעבודה"),
}

_FRONTS = {
    "ours": f'---\nid: {_UUID}\nproject: shop\nname: "the: name"\nstatus: open\n'
    "etag: 00aa11bb22cc33dd\n---\n",
    "jekyll": "---\nlayout: post\ntitle:  'Week 48: the queue'\ndate: 2026-11-24 10:00:00 +0100\n"
    "categories: [work, queue]\npermalink: /w48/\n---\n",
    "hugo-yaml": "---\ntitle: Release\ndraft: false\ntags:\n- a\n- b\nparams:\n  id: 7\n---\n",
    "hugo-toml": "+++\ntitle = 'Release'\ndraft = true\n+++\n",
    "obsidian": "---\naliases:\n  - Очередь\n  - queue\ncssclasses: []\nup: '[[Home]]'\n---\n",
    "empty": "---\n---\n",
    "comments": "---\n# kept by hand\nstatus: open   # till Friday\n\n# end\nowner: me\n---\n",
    "foreign": "---\nid: 20261124-1\nstatus:\n  - draft\n  - shared\npriority: {a: 1}\n---\n",
    "anchors": "---\nbase: &base {a: 1}\nuse:\n  <<: *base\n  b: 2\n---\n",
    "scalars": "---\nnote: |+\n  kept\n\nfold: >-\n  one\n  two\nquoted: 'it''s'\n---\n",
    "dots": "---\ntitle: Ends with dots\n...\n",
    "indented": "---\n  title: Indented\n  status: open\n---\n",
    "crlf": "---\r\ntitle: Windows\r\nstatus: open # here\r\n---\r\n",
    "bom": "\ufeff---\ntitle: With a BOM\n---\n",
    "rule": "---\n\nA rule, then text.\n\n---\n",
    "prose": "---\nOnly prose between two rules\n---\n",
}

_ODD = {
    "tables": "| a | b |\n|---|:-:|\n| `x|y` | **z** |\n| 1 | \\| |\n",
    "fences": "```python\n# no heading\n---\n```\n\n~~~~ text\n```\n~~~\n~~~~\n\n    indented\n",
    "quotes": "> one\n>> two\n>>> three\n>\n> - a\n>   ```sh\n>   ls\n>   ```\n",
    "lists": "1. a\n   - b\n     * c\n       + d\n\n10) e\n- [ ] todo\n- [x] done\n",
    "html": "<!-- # not a title\n--- -->\n<details><summary>x</summary>\n\ntext\n\n</details>\n",
    "math": "$$\n\\int_0^1 x^2\\,dx = \\frac13\n$$\n\nInline $a_1*b_2*c$.\n",
    "footnotes": "Text[^1] and more[^long].\n\n[^1]: One.\n[^long]: Two\n    lines.\n",
    "emoji": "🔥 **Priority:** P1\n\n👩‍👩‍👧‍👦 🇩🇪 1️⃣ ✅ 🏴󠁧󠁢󠁥󠁮󠁧󠁿\n",
    "nfd": unicodedata.normalize("NFD", "Ёлка, café, Größe, Å, 한국어\n"),
    "nfc": unicodedata.normalize("NFC", "Ёлка, café, Größe, Å, 한국어\n"),
    "conflict": "<<<<<<< is only a word here, and so are ======= and >>>>>>>.\n<<<<<<< HEAD\n",
    "rules": "one\n\n---\n\ntwo\n\n***\n\n---\nkey: value\n---\n",
    "blanks": "trailing  \nspaces   \n\ttab\n \n\n\n\nend\t\n",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf\n",
    "invisible": "zero\u200bwidth\u200d\u200c \u2060joiner \u00adsoft \u202eright-to-left\u202c\n",
    "setext": "Two lines\nof a heading\n=====\n\nLower\n-----\n",
    "escape": "\x1b[31mred\x1b[0m and a bell \x07\n",
    "quotation": "« Voilà » – „so“ – ‘or’ “this” … 5 × 3 ÷ 2 ± 1 №7\n",
    "mojibake-like": "The text Ã© is what é becomes.\n",
    "no-title": "just a line\nand another\n",
}


def documents(n: int = 120) -> Iterator[tuple[str, bytes]]:
    """``n`` documents as (name, bytes); the first 120 hold at least one of each kind."""
    kinds = [*_sessions(), *_fronted(), *_odd(), *_ends(), *_large()]
    for number in range(n):
        name, text = kinds[number % len(kinds)]
        again = f"\n<!-- {number} -->\n" if number >= len(kinds) else ""
        yield f"{number:03}-{name}", (text + again).encode()


def session(language: str, seed: int, paragraphs: int = 6) -> str:
    """A session as people and assistants write it."""
    draw = random.Random(f"{language}{seed}")
    head, status, following, decisions, questions, state = _LABELS[language]
    words = _WORDS[language].split()

    def line(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    parts = [
        f"# {head} {seed}: {line(3)}",
        f"**{status}:** {state}\n**Date:** 2026-11-{1 + seed % 28:02}\n**{following}:** {line(5)}",
        f"## {decisions}",
        "\n".join(f"- **{line(2)}** — {line(9)}" for _ in range(3)),
        *(f"{line(30)}." for _ in range(paragraphs)),
        f"```sh\n# {line(4)}\nmake {draw.randrange(99)}\n```",
        f"## {questions}",
        "\n".join(f"{number}. {line(8)}?" for number in range(1, 4)),
    ]
    return "\n\n".join(parts) + "\n"


def _sessions() -> Iterator[tuple[str, str]]:
    for seed in range(6):
        for language in _LABELS:
            yield f"session-{language}", session(language, seed, 3 + seed * 3)


def _fronted() -> Iterator[tuple[str, str]]:
    for number, (style, front) in enumerate(_FRONTS.items()):
        for language in ("en", "ru"):
            yield f"front-{style}-{language}", front + session(language, 50 + number)


def _odd() -> Iterator[tuple[str, str]]:
    for number, (kind, text) in enumerate(_ODD.items()):
        yield f"odd-{kind}", text
        yield f"odd-{kind}-session", session("de", 80 + number) + "\n" + text


def _ends() -> Iterator[tuple[str, str]]:
    """Line ends and the edges of a file."""
    text = session("ru", 100)
    yield "crlf", text.replace("\n", "\r\n")
    yield "cr", text.replace("\n", "\r")
    yield "mixed", text.replace("\n", "\r\n", 9).replace("\n\n", "\n\r")
    yield "no-final-newline", text.rstrip("\n")
    yield "bom", "\ufeff" + text
    yield "leading-blanks", "\n \n\t\n" + text
    yield "one-character", "x"
    yield "only-front-closed-at-the-end", "---\nnote: no newline after\n---\nx"


def _large() -> Iterator[tuple[str, str]]:
    yield "long-line", "# Long\n\n" + "word " * 40_000 + "\n"
    yield "many-sections", "# Log\n" + "".join(f"\n## {n}\n\n{n} done\n" for n in range(8_000))
    yield "big-session", session("zh", 7, 700)
    yield "big-table", "# Table\n\n|a|b|\n|-|-|\n" + "| 1 | два |\n" * 12_000
