"""The fast reader of the text format says what the reference parser says, and refuses what no number should come of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from metrics_adapter.text import MOST_KEYS, MOST_SERIES, PageError, TextReader, samples

PAGES = sorted((Path(__file__).parent / "samples").rglob("*.prom"))


def by_reference(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Types are left out: the reference parser would give counters of older forms the ending _total."""
    bare = "".join(line + "\n" for line in page.split("\n") if not line.startswith("# TYPE"))
    found = [s for family in text_string_to_metric_families(bare) for s in family.samples]
    return {(s.name, tuple(sorted(s.labels.items()))): float(s.value) for s in found}


def by_reader(reader: TextReader, page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    values = reader.read(page.encode())
    return {s: v for s, v in zip(reader.series, values, strict=True) if v is not None}


def same(one: dict[object, float], other: dict[object, float]) -> bool:
    return one.keys() == other.keys() and all(
        one[k] == other[k] or (math.isnan(one[k]) and math.isnan(other[k])) for k in one
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_whole_pages_read_as_by_the_reference_parser(path: Path) -> None:
    page = path.read_text()
    expected = by_reference(page)
    reader = TextReader({name for name, _ in expected})
    for _ in range(2):  # learning, and knowing
        assert same(by_reader(reader, page), expected)  # type: ignore[arg-type]
    plain = {(n, tuple(sorted(labels.items()))): v for n, labels, v in samples(page.encode())}
    assert plain == expected


names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", fullmatch=True)
keys = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)
numbers = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e3", "5.", ".5", "1E-7"]),
)


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@st.composite
def pages(draw: st.DrawFn) -> str:
    rows = draw(
        st.dictionaries(
            st.tuples(names, st.dictionaries(keys, texts, max_size=3).map(lambda d: tuple(sorted(d.items())))),
            numbers,
            max_size=12,
        )
    )
    lines = []
    for (name, labels), value in rows.items():
        pairs = ",".join(f'{k}="{escaped(v)}"' for k, v in labels)
        space = draw(st.sampled_from([" ", "  ", "\t"]))
        stamp = draw(st.sampled_from(["", " 1795330055000", " -5"]))
        braces = f"{{{pairs}}}" if pairs or draw(st.booleans()) else ""
        lines.append(f"{name}{braces}{space}{value}{stamp}")
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["", "# a comment", f"# HELP {name} words", "#"])))
    return "".join(line + "\n" for line in lines)


@settings(max_examples=40)
@given(pages(), pages())
def test_any_page_reads_as_by_the_reference_parser(one: str, two: str) -> None:
    expected = [by_reference(one), by_reference(two)]
    reader = TextReader({name for found in expected for name, _ in found})
    for page, found in [(one, expected[0]), (two, expected[1]), (one, expected[0])]:
        assert same(by_reader(reader, page), found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("a 1\na 2", "cut short"),
        ("a 1\na 1\n", "says 'a 1' twice"),
        ('a{x="1",y="2"} 1\na{y="2",x="1"} 1\n', "says .* twice"),
        ("a one\n", "no number for a value"),
        ("a 1_0\n", "no number for a value"),
        ("a\n", "has no value"),
        ('a{x="1} 2\n', "labels that do not end"),
        ('a{x="1",x="1"} 2\n', "has the label x twice"),
        ("a 1 2 3\n", "has no value"),
        ("<html>\n", "not a page of metrics"),
        ('{"json": 1}]\n<b>\n', "not a page of metrics"),
    ],
)
def test_a_page_that_is_wrong_where_it_is_read_is_refused(page: str, words: str) -> None:
    with pytest.raises(PageError, match=words):
        TextReader({"a"}).read(page.encode())
    if "says" not in words:  # one sample after another cannot know
        with pytest.raises(PageError, match=words):
            list(samples(page.encode(), {"a"}))


def test_what_is_not_wanted_is_not_read() -> None:
    page = b"b one\nb{ 1\nab 7\na_total 9\na 5\n"
    reader = TextReader({"a"})
    assert reader.read(page) == reader.read(page) == [5.0]


def test_exemplars_timestamps_and_the_end_mark_of_openmetrics_are_passed_over() -> None:
    page = b'a_bucket{le="1"} 5 # {trace_id="x"} 0.67 123.5\na_bucket{le="2"} 7 1795330055\n# EOF\n'
    reader = TextReader({"a_bucket"})
    assert reader.read(page) == [5.0, 7.0]
    assert reader.read(page) == [5.0, 7.0]


def test_series_that_come_and_go_are_none_where_they_are_not() -> None:
    reader = TextReader({"a", "b"})
    assert reader.read(b"a 1\nb 2\n") == [1.0, 2.0]
    assert reader.read(b"b 3\n") == [None, 3.0]
    assert reader.read(b"") == [None, None]


def test_labels_that_change_all_the_time_do_not_pile_up() -> None:
    reader = TextReader({"a"})
    for i in range(400):
        page = b"".join(b'a{id="%d"} %d\nx{id="%d"} 1\n' % (i * 20 + j, j, i) for j in range(20))
        values = reader.read(page)
        assert [v for v in values if v is not None] == list(range(20))
    assert len(reader.series) < 2000
    assert len(reader._slots) <= MOST_KEYS + 1000


def test_a_page_of_too_many_series_is_refused() -> None:
    page = b"".join(b'a{id="%d"} 1\n' % i for i in range(MOST_SERIES + 1))
    with pytest.raises(PageError, match="more than 20000 of the series"):
        TextReader({"a"}).read(page)
