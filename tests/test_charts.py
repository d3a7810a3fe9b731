"""Charts: well-formed whatever they are given, and true to the values."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from annoris.server import charts
from annoris.server.charts import Span

HOSTILE = "</svg><script>alert('1')</script>\" onload=\"x"
VALUES = st.one_of(st.none(), st.floats(0, 1e9))


def _svg(markup: str) -> ET.Element:
    root = ET.fromstring(markup)
    assert root.get("role") == "img"
    for element in root.iter():
        assert not [key for key in element.attrib if key == "style" or key.startswith("on")]
    return root


def _percent(element: ET.Element, key: str) -> float:
    return float(element.get(key, "0").removesuffix("%"))


@given(st.lists(st.tuples(st.floats(0, 2e9), VALUES), max_size=40))
def test_a_sparkline_stays_in_its_box_and_breaks_where_nobody_answered(
    points: list[tuple[float, float | None]],
) -> None:
    """As many lines as there are stretches of answers; no answer is no line."""
    points.sort(key=lambda point: point[0])
    drawn = charts.sparkline(points, HOSTILE)
    if sum(value is not None for _, value in points) < 2:
        assert not drawn
        return
    root = _svg(drawn)
    assert root.get("aria-label") == HOSTILE
    there = "".join(" " if value is None else "x" for _, value in points).split()
    assert len(root.findall("polyline")) + len(root.findall("path")) == len(there)
    for line in root.findall("polyline"):
        places = [place.split(",") for place in str(line.get("points")).split()]
        assert all(0 <= float(x) <= 100.01 and 0 <= float(y) <= 40 for x, y in places)


def test_a_sparkline_rises_with_the_value() -> None:
    """Up is slower: SVG counts from the top."""
    [line] = _svg(charts.sparkline([(0, 1.0), (1, 10.0), (2, 100.0)], "x")).findall("polyline")
    heights = [float(place.split(",")[1]) for place in str(line.get("points")).split()]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] - heights[-1] > 20


@given(
    st.lists(
        st.builds(
            Span,
            lane=st.sampled_from(["sync", "dump", HOSTILE]),
            start=st.floats(1e9, 1.1e9),
            end=st.floats(1e9, 1.1e9),
            tone=st.sampled_from(["good", "bad", HOSTILE]),
            label=st.just(HOSTILE),
        ),
        max_size=20,
    )
)
def test_a_timeline_is_sound_whatever_the_log_says(spans: list[Span]) -> None:
    drawn = charts.timeline(spans, 1.1e9, HOSTILE)
    for bar in _svg(drawn).findall("rect") if spans else []:
        assert 0 <= _percent(bar, "x") <= 100
        assert 0 < _percent(bar, "width") <= 100
        assert bar.findtext("title") == HOSTILE


def test_a_timeline_orders_by_time_and_shows_a_week() -> None:
    """The later run is further right; what ended more than seven days ago is left out."""
    day = 86400.0
    now = 100 * day
    spans = [
        Span("sync", now - 60, now, "good", "new"),
        Span("sync", now - 2 * day, now - 2 * day + 60, "bad", "older"),
        Span("dump", now - 9 * day, now - 9 * day + 60, "good", "gone"),
    ]
    bars = {
        bar.findtext("title"): bar for bar in _svg(charts.timeline(spans, now, "x")).iter("rect")
    }
    assert set(bars) == {"new", "older"}
    assert _percent(bars["older"], "x") < _percent(bars["new"], "x")
    assert bars["older"].get("class") == "bad"


def test_columns_and_bars_are_as_long_as_their_values() -> None:
    values = [("one", 1.0, "good"), ("two", 2.0, "bad"), ("none", 0.0, "good")]
    bars = _svg(charts.columns(values, "x")).findall("rect")
    heights = [float(str(bar.get("height"))) for bar in bars]
    assert heights[1] == 2 * heights[0]
    assert bars[2].get("class") == "none"
    assert not charts.columns([], "x")
    for share, width in ((0.0, None), (0.5, 50.0), (1.0, 100.0), (3.0, 100.0)):
        track, *reached = _svg(charts.progress(share, "x")).findall("rect")
        assert track.get("class") == "track"
        assert [_percent(bar, "width") for bar in reached] == ([width] if width else [])


def test_a_distance_in_time_has_one_unit() -> None:
    told = [charts.short_span(seconds) for seconds in (-5, 0, 59, 60, 3600, 86400 * 3)]
    assert told == ["0 s", "0 s", "59 s", "1 min", "1 h", "3 d"]
