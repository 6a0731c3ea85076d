"""Good traces, profiles and scenarios, damaged in every way: one sentence that names the place, or the right answer.

Every case runs a whole load.  Nothing else than ConfigError may leave it, and a damage that must be noticed must be noticed.
"""

# ruff: noqa: E501  a case a line

from __future__ import annotations

import copy
import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from autoscaler.errors import ConfigError
from load_tests import draws
from load_tests.scenario import load_scenario
from load_tests.traces import RateTrace, RequestTrace, Trace, load_trace
from load_tests.traffic import materialise
from serving.profiles import Profile, load_profile, load_startup, profile, startup_profile

FOLDER = Path("cases")  # joined to a temporary folder


class Case(NamedTuple):
    """Bytes of a file, what reads it, and what must come of it.

    `says`: words that the sentence must hold; None: it must load, and `right` must hold of what was loaded.
    """

    name: str
    file: str
    raw: bytes | None
    load: Callable[[Path], Any]
    says: tuple[str, ...] | None
    right: Callable[[Any], bool] = lambda loaded: True


# Traces

OWN = "arrival_s,prompt_tokens,output_tokens\n0.0,374,44\n4.315,396,109\n4.5,879,55\n9.0,91,16\n"
RATE = "t_s,requests,prompt_tokens,output_tokens,iat_cv,gap\n0,5,500,50,1.1,0\n600,6,600,60,1.0,0\n1200,7,700,70,,0\n1800,8,800,80,1.3,0\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,396,109\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,API log\n45,GPT-4,1087,230,1317,API log\n"
MOON = "\n".join(
    json.dumps({"timestamp": 1000 * k, "input_length": 600 + k, "output_length": 5, "hash_ids": [0, k + 1]})
    for k in range(3)
)
FORMS = {"own.csv": OWN, "rate.csv": RATE, "azure.csv": AZURE, "burst.csv": BURST, "moon.jsonl": MOON}
ROWS = {"own.csv": 4, "rate.csv": 4, "azure.csv": 2, "burst.csv": 2, "moon.jsonl": 3}


def size(trace: Trace) -> int:
    return trace.requests.size if isinstance(trace, RateTrace) else trace.rows.arrival_seconds.size


def whole(file: str) -> Callable[[Trace], bool]:
    return lambda trace: size(trace) == ROWS[file]


def container_cases(file: str, text: str) -> Iterator[Case]:
    """Damage to the file as a whole."""
    raw, ok = text.encode(), whole(file)
    packed = gzip.compress(raw)
    yield Case("as it is", file, raw, load_trace, None, ok)
    yield Case("gzip", file, packed, load_trace, None, ok)
    yield Case("two gzip members", file, gzip.compress(raw[:30]) + gzip.compress(raw[30:]), load_trace, None, ok)
    yield Case("byte-order mark", file, b"\xef\xbb\xbf" + raw, load_trace, None, ok)
    yield Case("CRLF", file, raw.replace(b"\n", b"\r\n"), load_trace, None, ok)
    yield Case("no last newline", file, raw.rstrip(b"\n"), load_trace, None, ok)
    yield Case("blank lines", file, raw.replace(b"\n", b"\n\n"), load_trace, None, ok)
    yield Case("missing", file, None, load_trace, (file, "cannot be read"))
    yield Case("empty", file, b"", load_trace, (file, "is empty"))
    yield Case("blank", file, b"  \n\n", load_trace, (file, "is empty"))
    yield Case("empty gzip", file, gzip.compress(b""), load_trace, (file, "is empty"))
    yield Case("binary", file, bytes(range(256)) * 4, load_trace, (file, "is not UTF-8 text"))
    yield Case("UTF-16", file, text.encode("utf-16"), load_trace, (file, "is not UTF-8 text"))
    yield Case("NUL bytes", file, raw.replace(b"3", b"\0"), load_trace, (file,))
    for part in (3, 12, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        yield Case(f"gzip cut at {part}", file, packed[:part], load_trace, (file, "is not a complete gzip file"))
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    yield Case("gzip with a wrong byte", file, bytes(broken), load_trace, (file,))
    yield Case("a picture", file, b"\x89PNG\r\n\x1a\n" + bytes(40), load_trace, (file, "is not UTF-8 text"))
    yield Case(
        "header only",
        file,
        raw.split(b"\n")[0] + b"\n",
        load_trace,
        None if file == "moon.jsonl" else (file, "no rows"),
    )
    yield Case("HTML instead", file, b"<html><body>Not found</body></html>\n", load_trace, (file,))


CELLS = {
    "text": "abc", "NaN": "NaN", "infinite": "inf", "negative": "-1", "huge": "1e300", "a formula": "=1+1", "empty": "",
    "a fraction": "1.5", "a date": "2023-11-16", "long": "9" * 400, "longer": "x" * 200_000, "two numbers": "1 2",
}  # fmt: skip
ALLOWED = {  # cells that are right where they stand, by column
    "arrival_s": {"a fraction": True},
    "t_s": {},
    "iat_cv": {"empty": True, "a fraction": True},
    "gap": {"empty": True},
    "requests": {"empty": True},
    "prompt_tokens": {},
    "Timestamp": {"a fraction": True},
    "Model": dict.fromkeys(CELLS, True),
}


def cell_cases(file: str, text: str) -> Iterator[Case]:
    """One wrong cell in the third line."""
    lines = text.splitlines()
    header, row = lines[0].split(","), lines[2].split(",")
    for column in header:
        if column in ("Total tokens", "Log Type"):
            continue
        for what, value in CELLS.items():
            allowed = ALLOWED.get(column, {}).get(what, False)
            if file == "rate.csv" and column.endswith("tokens") and what in ("empty", "a fraction"):
                allowed = True
            if (column, what) == ("TIMESTAMP", "a date"):
                continue  # midnight of the day is an instant
            if (column, what) == ("Model", "longer"):
                allowed = False  # longer than a CSV field may be
            changed = list(row)
            changed[header.index(column)] = value
            raw = "\n".join([*lines[:2], ",".join(changed), *lines[3:]]).encode()
            says = (file, "line 3") if what == "longer" else (file, f"line 3, {column}")
            if (column, what) == ("t_s", "a fraction"):
                says = (file, "t_s")  # with steps of 1.5, 1198.5 and 600 s nobody can say which row is wrong
            if allowed:
                yield Case(f"{column} {what}", file, raw, load_trace, None, whole(file))
            else:
                yield Case(f"{column} {what}", file, raw, load_trace, says)


def column_cases(file: str, text: str) -> Iterator[Case]:
    """Columns dropped, doubled, renamed; rows cut, lengthened and out of order."""
    table = [line.split(",") for line in text.splitlines()]
    optional = {"prompt_tokens", "output_tokens", "iat_cv", "gap", "Total tokens", "Log Type"}

    def joined(rows: list[list[str]]) -> bytes:
        return ("\n".join(",".join(r) for r in rows) + "\n").encode()

    for i, column in enumerate(table[0]):
        less = joined([r[:i] + r[i + 1 :] for r in table])
        fine = column in optional and (file != "own.csv")
        yield Case(f"without {column}", file, less, load_trace, None if fine else (file, "line 1"), whole(file))
        twice = joined([[*r, r[i]] for r in table])
        yield Case(f"{column} twice", file, twice, load_trace, (file, "line 1", column, "twice"))
    foreign = file in ("azure.csv", "burst.csv")
    more = joined([[*r, "x" if k else "colour"] for k, r in enumerate(table)])
    yield Case("a column more", file, more, load_trace, None if foreign else (file, "line 1, colour"), whole(file))
    turned = joined([r[::-1] for r in table])
    yield Case("columns turned around", file, turned, load_trace, None, whole(file))
    yield Case(
        "a short row",
        file,
        joined([*table[:2], table[2][:-1], *table[3:]]),
        load_trace,
        (file, "line 3", "fields must be"),
    )
    yield Case(
        "a long row",
        file,
        joined([*table[:2], [*table[2], "1"], *table[3:]]),
        load_trace,
        (file, "line 3", "fields must be"),
    )
    yield Case("no header", file, joined(table[1:]), load_trace, (file, "line 1"))
    unsorted = joined([table[0], *table[:0:-1]])
    yield Case("rows turned around", file, unsorted, load_trace, None if foreign else (file, "line 3"), whole(file))
    yield Case("an open quote", file, joined(table).replace(b"\n", b'\n"', 1), load_trace, (file,))
    spaced = joined([[f" {c} " for c in r] for r in table])
    yield Case("blanks around cells", file, spaced, load_trace, None, whole(file))


def rate_cases() -> Iterator[Case]:
    head = "t_s,requests\n"
    file = "rate.csv"
    yield Case("uneven steps", file, (head + "0,1\n60,1\n120,1\n150,1\n").encode(), load_trace, (file, "line 5, t_s"))
    yield Case("the same time twice", file, (head + "0,1\n0,1\n").encode(), load_trace, (file, "line 3, t_s"))
    yield Case("one row", file, (head + "0,1\n").encode(), load_trace, (file, "at least 2"))
    yield Case(
        "all zero", file, (head + "0,0\n60,0\n").encode(), load_trace, (file, "requests", "every interval is zero")
    )
    yield Case("a leap of years", file, (head + "0,1\n1,1\n900000000,1\n").encode(), load_trace, (file, "line 4, t_s"))
    lost = (head + "0,1\n60,1\n240,1\n").encode()
    yield Case(
        "rows lost", file, lost, load_trace, None, lambda t: t.missing.tolist() == [False, False, True, True, False]
    )


def json_cases() -> Iterator[Case]:
    file, good = "moon.jsonl", [json.loads(line) for line in MOON.splitlines()]

    def changed(**change: Any) -> bytes:
        rows = copy.deepcopy(good)
        rows[1].update(change)
        return "\n".join(json.dumps({k: v for k, v in r.items() if v is not ...}, default=str) for r in rows).encode()

    for key in ("timestamp", "input_length", "output_length"):
        for value in ("x", -1, None, [], {}, True, math.nan, math.inf, 10**400, 1e300):
            yield Case(f"{key} {value!r:.12}", file, changed(**{key: value}), load_trace, (file, f"line 2, {key}"))
        yield Case(f"no {key}", file, changed(**{key: ...}), load_trace, (file, f"line 2, {key}", "is missing"))
    for value in ("x", [-1], [1.5], ["a"], [2**63], [True], {"a": 1}, 5):
        yield Case(f"hash_ids {value!r:.12}", file, changed(hash_ids=value), load_trace, (file, "line 2, hash_ids"))
    yield Case("no hash_ids", file, changed(hash_ids=...), load_trace, None, whole(file))
    for name, line in (
        ("a list", b"[1]"),
        ("half a line", b'{"timestamp": 5'),
        ("nested", b"[" * 100_000),
        ("a number", b"5"),
    ):
        yield Case(name, file, MOON.encode() + b"\n" + line, load_trace, (file, "line 4"))


# Profiles and start-ups


def plain(row: object) -> dict[str, Any]:
    found = asdict(row)  # type: ignore[call-overload]
    return json.loads(json.dumps({k: v for k, v in found.items() if v is not None}))  # type: ignore[no-any-return]


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value that is not a mapping or list."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key)) if isinstance(value, dict | list) and value else iter([(*path, key)])


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    out = copy.deepcopy(data)
    here = out
    for key in path[:-1]:
        here = here[key]
    if value is ...:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return out


def spelled(path: tuple[Any, ...]) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")


def named(path: tuple[Any, ...], what: str) -> str:
    """The place that a sentence must name: a number out of range is named by its list."""
    return spelled(path[:-1] if what == "negative" and isinstance(path[-1], int) else path)


WRONG: dict[str, Any] = {
    "a list of lists": [[1]],
    "a mapping": {"kind": 5},
    "negative": -1,
    "NaN": math.nan,
    "huge": 10**400,
}
PROFILE = plain(profile("qwen3-32b_bf16_h100_tp2"))
STARTUP = plain(startup_profile("warm_node_remote"))


def field_cases(
    file: str, good: dict[str, Any], load: Callable[[Path], Any], kind: type, every: int = 1
) -> Iterator[Case]:
    """Every field of a JSON file wrong in turn: another type, below its range, not a number, too large for a float."""
    for n, path in enumerate(leaves(good)):
        where = spelled(path)
        old = good
        for key in path:
            old = old[key]
        for what, value in WRONG.items():
            if n % every or (
                what in ("negative", "NaN", "huge") and where.endswith("bias_percent") and what == "negative"
            ):
                continue
            numeric = isinstance(old, int | float) and not isinstance(old, bool)
            if what == "huge" and not numeric:
                continue
            raw = json.dumps(put(good, path, value)).encode()
            if what == "negative" and where.endswith(".r2"):
                yield Case(f"{where} {what}", file, raw, load, None, lambda got: isinstance(got, kind))
            else:
                yield Case(f"{where} {what}", file, raw, load, (file, named(path, what)))


def text_cases(file: str, good: dict[str, Any], load: Callable[[Path], Any]) -> Iterator[Case]:
    """Damage to a settings file as a whole."""
    raw = json.dumps(good).encode()
    yield Case("cut", file, raw[: len(raw) // 2], load, (file, "is not JSON"))
    yield Case("empty", file, b"", load, (file,))
    yield Case("a list", file, b"[]", load, (file, "must hold a mapping"))
    yield Case("null", file, b"null", load, (file, "must hold a mapping"))
    yield Case("binary", file, bytes(range(256)), load, (file, "is not UTF-8 text"))
    yield Case("missing", file, None, load, (file, "cannot be read"))
    yield Case("nested", file, b"[" * 200_000, load, (file, "is not JSON"))
    yield Case("unknown key", file, json.dumps({**good, "colour": 1}).encode(), load, ("colour", "unknown key"))
    yield Case("wrong ending", "file.ini", raw, load, ("file.ini", "ending"))
    yield Case("byte-order mark", file, b"\xef\xbb\xbf" + raw, load, None)
    yield Case("YAML for tabs", "file.yaml", b"a:\n\t- b: [", load, ("file.yaml", "is not YAML"))
    yield Case("YAML of a tag", "file.yaml", b"a: !!python/object:os.system {}", load, ("file.yaml", "is not YAML"))
    yield Case("YAML of itself", "file.yaml", b"&a [*a]", load, ("file.yaml", "must hold a mapping"))
    yield Case("YAML of NUL", "file.yaml", b"a: \0", load, ("file.yaml", "is not YAML"))
    yield Case("TOML twice", "file.toml", b"a = 1\na = 2\n", load, ("file.toml", "is not TOML"))


# Scenarios

SCENARIO: dict[str, Any] = {
    "version": 1,
    "name": "test",
    "traffic": {
        "kind": "trace", "trace": "own.csv", "rotated_copies": 2, "thin_fraction": 0.9,
        "arrivals": {"law": "gamma", "cv": 1.2, "exact_counts": True},
        "lengths": {"kind": "lognormal", "prompt_tokens": 100, "output_sigma": 0.5},
    },
    "window": {"start_seconds": 0, "duration_seconds": 9},
    "history_days": 7,
    "origin": "2025-01-06T00:00:00+00:00",
    "time_zone": "Europe/Paris",
    "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1", "max_num_seqs": 64},
    "startup": {"profile": "warm_node_local", "tier": "parallel_streamer", "factor": 2.0, "replicas_per_node": 2},
    "slo": {"ttft_seconds": 1.0, "itl_seconds": 0.05, "attainment_fraction": 0.99},
    "interval_seconds": 10,
    "seeds": [0, 1],
    "limits": {"min_replicas": 1, "max_replicas": 9},
    "initial_replicas": 3,
    "gpus_per_replica": 1,
    "routing": "two_choices",
    "drain": True,
    "score_from_seconds": 1,
    "policies": [{"kind": "pool", "name": "auto", "config": {"strategy": "auto"}}, {"kind": "static", "replicas": 2}],
    "faults": [
        {"kind": "scrape_gap", "at_seconds": 2, "for_seconds": 3},
        {"kind": "capacity", "factor": 0.7},
        {"kind": "replica_failure", "at_seconds": 2, "count": 1},
    ],
}  # fmt: skip


def run_scenario(path: Path) -> Any:
    (path.parent / "own.csv").write_text(OWN, encoding="utf-8")
    return materialise(load_scenario(path), 0)


def scenario_field_cases() -> Iterator[Case]:
    file = "scenario.json"
    for path in leaves(SCENARIO):
        where = spelled(path)
        old: Any = SCENARIO
        for key in path:
            old = old[key]
        for what, value in WRONG.items():
            if what == "huge" and (not isinstance(old, int | float) or isinstance(old, bool)):
                continue
            raw = json.dumps(put(SCENARIO, path, value)).encode()
            yield Case(f"{where} {what}", file, raw, run_scenario, (named(path, what),))
        if where in ("version", "name", "traffic.kind", "traffic.trace"):
            gone = json.dumps(put(SCENARIO, path, ...)).encode()
            yield Case(f"{where} gone", file, gone, run_scenario, (where,))
    for name in list(SCENARIO):
        close = {**{k: v for k, v in SCENARIO.items() if k != name}, name + "s": SCENARIO[name]}
        yield Case(f"{name} misspelled", file, json.dumps(close).encode(), run_scenario, (name + "s", "unknown key"))


def scenario_cases() -> Iterator[Case]:
    yield Case("as it is", "scenario.json", json.dumps(SCENARIO).encode(), run_scenario, None)
    yield Case("as YAML", "scenario.yaml", yaml.safe_dump(SCENARIO).encode(), run_scenario, None)
    changes: dict[str, tuple[tuple[Any, ...], Any, tuple[str, ...]]] = {
        "no trace": (("traffic", "trace"), "gone.csv", ("gone.csv", "cannot be read")),
        "a folder": (("traffic", "trace"), ".", ("cannot be read",)),
        "unknown builtin": (("traffic", "trace"), "builtin:", ("traffic.trace",)),
        "NUL in a path": (("traffic", "trace"), "a\0b", ("trace", "without NUL")),
        "a name too long": (("traffic", "trace"), "x" * 300, ("xxx", "cannot be read")),
        "window too late": (("window", "start_seconds"), 100, ("window.start_seconds", "must be < 10")),
        "window too long": (("window", "duration_seconds"), 100, ("window.duration_seconds",)),
        "window without requests": (("window",), {"start_seconds": 1.2, "duration_seconds": 1.5}, ("hold no request",)),
        "pairs of rates": (
            ("traffic", "lengths"),
            {"kind": "pairs", "file": "builtin:rate_nab_elb"},
            ("lengths.file",),
        ),
        "unknown zone": (("time_zone",), "../../etc/passwd", ("time_zone",)),
        "empty zone": (("time_zone",), "", ("time_zone",)),
        "far origin": (("origin",), "99999-01-01T00:00:00Z", ("origin",)),
        "first origin": (("origin",), "0001-01-01T00:00:00+23:59", ("origin",)),
        "bad config": (("policies", 0, "config"), {"limits": {"max_replicas": 0}}, ("policies[0].config.limits",)),
        "config of text": (("policies", 0, "config"), "fast", ("policies[0].config",)),
        "no policies": (("policies",), [], ("policies",)),
        "no seeds": (("seeds",), [], ("seeds",)),
        "hpa on a rate without target": (
            ("policies", 1),
            {"kind": "hpa", "signal": "requests_per_second"},
            ("policies[1]",),
        ),
        "a missing profile": (("replica", "profile"), "mine.toml", ("replica.profile", "cannot be read")),
        "a missing start-up": (("startup", "profile"), "mine.toml", ("startup.profile", "cannot be read")),
    }
    for name, (path, value, says) in changes.items():
        yield Case(name, "scenario.json", json.dumps(put(SCENARIO, path, value)).encode(), run_scenario, says)


def every_case() -> list[Case]:
    cases: list[Case] = []
    for file, text in FORMS.items():
        cases += container_cases(file, text)
        if file.endswith(".csv"):
            cases += cell_cases(file, text)
            cases += column_cases(file, text)
    cases += [*rate_cases(), *json_cases()]
    cases += field_cases("profile.json", PROFILE, load_profile, Profile)
    cases += text_cases("profile.json", PROFILE, load_profile)
    cases += field_cases("startup.json", STARTUP, load_startup, object, every=3)
    cases += text_cases("startup.json", STARTUP, load_startup)
    cases += scenario_field_cases()
    cases += scenario_cases()
    cases += text_cases("scenario.json", SCENARIO, run_scenario)
    return cases


CASES = every_case()


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 200
    assert sum(c.says is not None for c in CASES) >= 200


@pytest.mark.parametrize("case", CASES, ids=[f"{c.file}: {c.name}" for c in CASES])
def test_a_damaged_file_is_one_sentence_or_the_right_answer(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file
    if case.raw is not None:
        path.write_bytes(case.raw)
    if case.says is None:
        assert case.right(case.load(path))
        return
    with pytest.raises(ConfigError) as caught:
        case.load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 2000
    assert not [word for word in case.says if word not in said], said


@pytest.mark.parametrize("file", FORMS)
def test_random_bytes_changed_give_a_sentence_or_a_trace(file: str, tmp_path: Path) -> None:
    raw, path = FORMS[file].encode(), tmp_path / file
    for seed in range(60):
        u = draws.uniforms(draws.key(seed, file), 9)
        changed = bytearray(raw)
        for place, value in zip(u[:3], u[3:6], strict=True):
            changed[int(place * len(raw))] = int(value * 256)
        path.write_bytes(bytes(changed) if seed % 2 else bytes(changed[: int(u[6] * len(raw))]))
        try:
            trace = load_trace(path)
        except ConfigError:
            continue
        assert isinstance(trace, RequestTrace | RateTrace)
        if isinstance(trace, RequestTrace):
            assert (np.diff(trace.rows.arrival_seconds) >= 0).all()
            assert trace.rows.output_tokens.min() >= 1
