"""Label selectors: every form, and what none of them is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics_adapter.external_metrics_selector import SelectorError, parse

LABELS = {"pool": "chat", "level": "0.95", "window": "2", "app.kubernetes.io/name": "x", "empty": ""}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("  ", True),
        ("pool=chat", True),
        ("pool == chat", True),
        ("pool=code", False),
        ("pool!=code", True),
        ("pool!=chat", False),
        ("absent!=chat", True),
        ("pool in (code,chat)", True),
        ("pool in ( code , chat )", True),
        ("pool in (code)", False),
        ("pool notin (code)", True),
        ("pool notin (chat,code)", False),
        ("absent notin (chat)", True),
        ("absent in (chat)", False),
        ("pool", True),
        ("absent", False),
        ("!absent", True),
        ("! absent", True),
        ("!pool", False),
        ("window>1", True),
        ("window < 2", False),
        ("pool>1", False),
        ("absent<5", False),
        ("empty=", True),
        ("pool=", False),
        ("empty in (,a)", True),
        ("app.kubernetes.io/name=x", True),
        ("pool=chat,level=0.95", True),
        ("pool=chat, level in (0.5,0.95), !canary", True),
        ("pool=chat,level=0.5", False),
        ("in in (in,notin)", False),
        ("in", False),
        ("pool in (chat),notin notin (in)", True),
    ],
)
def test_every_form(text: str, holds: bool):
    assert parse(text).matches(LABELS) is holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pool=chat,", "'the end' must be the name of a label"),
        (",", "',' must be the name of a label"),
        ("=chat", "'=' must be the name of a label"),
        ("pool in chat", r"'chat' must be '\('"),
        ("pool in (chat", r"'the end' must be '\)'"),
        ("pool chat", "'chat' after 'pool' must be one of"),
        ("pool=chat code", "'code' must be ','"),
        ("pool=-chat", "must be the value of a label"),
        ("pool=" + "a" * 64, "must be the value of a label"),
        ("a" * 64, "must be the name of a label"),
        ("UPPER.io/a", "must be the name of a label"),
        ("/a", "must be the name of a label"),
        ("pool>many", "must be a whole number"),
        ("pool=chat;drop", "must be the value of a label"),
        ("a," * 3000, "6000 characters must be at most 4096"),
    ],
)
def test_what_is_none_says_so_in_a_sentence(text: str, said: str):
    with pytest.raises(SelectorError, match=said):
        parse(text)


@given(st.text(alphabet="ab=!(),<>in ot.\u00e9\n/-0", max_size=30))
def test_any_text_is_a_selector_or_a_sentence(text: str):
    said = "labelSelector"
    try:
        parse(text).matches(LABELS)
    except SelectorError as error:
        said = str(error)
    assert said.startswith("labelSelector")


def test_labels_that_are_not_known_yet_rule_nothing_out():
    selector = parse("pool=chat,level=0.5")
    assert selector.may_match({"pool": "chat"})
    assert not selector.may_match({"pool": "code"})
