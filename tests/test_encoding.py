from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annoris import encoding
from tests.corpus import documents
from tests.support.fuzz import examples

RUSSIAN = "# Отчёт\r\n\r\nВсё «готово»: проверка прошла, осталось написать письмо.\n"
FRENCH = "# Résumé\n\nÇa été “vérifié” à Noël, près du château – où est-ce…\r\n"


@pytest.mark.parametrize(
    ("text", "page"),
    [
        (RUSSIAN, "cp1251"),
        (RUSSIAN.replace("«", '"').replace("»", '"'), "koi8-r"),
        (RUSSIAN, "utf-16"),
        (FRENCH, "cp1252"),
        (FRENCH, "utf-16"),
        ("Größe: 5 × 3 ÷ 2 – über Straße\n", "cp1252"),
        ("temperature 20 °C — “ok”\n", "cp1252"),
        ("ДОГОВОР\nСТАТУС: ГОТОВ\n", "cp1251"),
    ],
)
def test_legacy_encodings_are_recognised(text: str, page: str) -> None:
    assert encoding.fix_encoding(text.encode(page)).decode() == text


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Größe, ‘x’ café\r\nnaïve … façade\n\tplain <b>&amp;</b>\n", "cp1252"),
        ("Größe “ok”, ‘x’ café\r\nnaïve … façade\n\tplain <b>&amp;</b>\n", "latin-1"),
        ("Статус: в работе\r\nпервый этап закончен\n\tplain <b>&amp;</b>\n", "cp1251"),
    ],
)
def test_mojibake_is_undone_and_quotes_and_line_ends_stay(text: str, wrong: str) -> None:
    fixed = encoding.fix_encoding(text.encode().decode(wrong).encode())
    assert fixed.decode() == text
    assert encoding.fix_encoding(fixed) == fixed


def test_lines_that_are_sound_stay_when_others_are_repaired() -> None:
    data = "Сохранено\n".encode() + "Проверка прошла\n".encode("cp1251") + "Ёлка\n".encode()
    assert encoding.fix_encoding(data).decode() == "Сохранено\nПроверка прошла\nЁлка\n"


def test_sound_documents_are_left_alone_by_the_repair() -> None:
    for name, data in documents():
        if "mojibake" not in name and len(data) < 20_000:
            assert encoding.fix_encoding(data) == data, name


PIECES = [
    b"\xff\xfe", b"\xfe\xff", b"\n", b"\0", b"\xef\xbb\xbf", b"text", b"\xd0", b"\xd0\xa1",
    b"\xc3\xa9", b"\xc3\x83\xc2\xa9", b"\x98", b"\xed\xa0\x80", "Сталь".encode("cp1251"),
    "Ð¡Ñ‚Ð°Ñ‚ÑƒÑ".encode(), "â€œ".encode(),
]  # fmt: skip


@given(st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
@settings(deadline=None, max_examples=examples(120))
def test_any_bytes_are_repaired_to_utf_8(data: bytes) -> None:
    encoding.fix_encoding(data).decode()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", 0),
        ("# T\n\nсловарь: né, à, «СССР»\n".encode(), 0),
        ("# T\r\nÐ¡Ñ‚Ð°Ñ‚ÑƒÑ\r\nâ€œ\r\n".encode(), 2),
        ("а\rб\rРЎС‚Р°С‚СѓСЃ".encode(), 3),
        (b"\xff\n\xfe" + "cafÃ© â€œquotedâ€".encode(), 2),
    ],
)
def test_mojibake_is_found_at_its_first_line(body: bytes, line: int) -> None:
    assert encoding.mojibake(body) == line
