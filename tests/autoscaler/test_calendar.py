"""Calendars of known events in files of their own: what they say reaches the pool, what is wrong in them is said."""

from __future__ import annotations

import json

import pytest

from autoscaler.config import load_config
from autoscaler.errors import ConfigError

CSV = """# what marketing told us
name,start,end,factor,time_zone
launch, 2027-03-01T09:00:00+01:00, 2027-03-01T18:00:00+01:00, 3.0,
quiet sunday,0 0 * * 0,0 23 * * 0,0.4,Europe/Paris
"""
JSON = [
    {"name": "launch", "start": "2027-03-01T09:00:00+01:00", "end": "2027-03-01T18:00:00+01:00", "factor": 3.0},
    {"name": "quiet sunday", "start": "0 0 * * 0", "end": "0 23 * * 0", "factor": 0.4, "time_zone": "Europe/Paris"},
]


def config_with(tmp_path, events):
    path = tmp_path / "pools.json"
    path.write_text(json.dumps({"version": 1, "pools": [{"name": "chat", "events": events}]}))
    return path


def test_a_calendar_is_what_its_events_are_in_the_config(tmp_path):
    written = load_config(config_with(tmp_path, JSON)).pools[0].events
    assert [e.factor for e in written] == [3.0, 0.4]
    (tmp_path / "calendars").mkdir()
    (tmp_path / "calendars" / "a.csv").write_text(CSV)
    (tmp_path / "b.json").write_text(json.dumps({"events": JSON}))
    (tmp_path / "c.toml").write_text(
        "".join("[[events]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in row.items()) for row in JSON)
    )
    for name in ("calendars/a.csv", "b.json", "c.toml"):
        assert load_config(config_with(tmp_path, name)).pools[0].events == written, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,start,end,factor\nx,0 0 * * *,0 1 * * *,many\n", r"events\[0\].factor.*must be a number"),
        ("name,start,end,factor\nx,0 0 * * *,0 1 * * *,-2\n", r"events\[0\].factor.*must be"),
        ("name,start,end,factor\nx,0 0 * * *,0 1 * * *\n", r"events\[0\].*must have 4 cells"),
        ("name,start,end,factor\nx,0 0 * * *,0 1 * * *,2,3\n", r"events\[0\].*must have 4 cells"),
        ("name,begin,end,factor\nx,0 0 * * *,0 1 * * *,2\n", "heading.*begin"),
        ("name,start,end\nx,0 0 * * *,0 1 * * *\n", r"events\[0\].*factor"),
        ("name,start,end,factor\nx,soon,0 1 * * *,2\n", r"events\[0\].*start"),
        ("", "heading"),
    ],
)
def test_what_is_wrong_in_a_calendar_is_said(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(config_with(tmp_path, "a.csv"))
    assert "a.csv" in str(caught.value)


def test_a_calendar_that_is_not_there_or_no_list(tmp_path):
    with pytest.raises(ConfigError, match="none.csv.*cannot be read"):
        load_config(config_with(tmp_path, "none.csv"))
    (tmp_path / "b.json").write_text('{"events": 3}')
    with pytest.raises(ConfigError, match="must be a list of events"):
        load_config(config_with(tmp_path, "b.json"))
    with pytest.raises(ConfigError, match="path of a calendar"):
        load_config(config_with(tmp_path, ""))
