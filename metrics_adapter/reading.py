"""One replica's values at an instant, as its engine's table names them: what a page says, or what a store of pages kept.

    reader = EngineReader(load_engine("vllm"))
    reading = reader.read(page, at_seconds=1795330000.0)              # bytes of a page, fast
    reading = reader.read_samples(samples, at_seconds=1795330000.0)   # (name, labels, value), from anywhere

What cannot be believed (NaN, negative, buckets that fall, a fraction above 1) is left out: unknown, not zero.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import le as not_above

from autoscaler.errors import MetricMissing
from metrics_adapter.engines import CONCEPTS, Engine, Row
from metrics_adapter.text import MOST_SERIES, PageError, Sample, Series, TextReader

# A share above 1 by no more than this is rounding.
ROUNDING = 0.005


@dataclass(frozen=True, slots=True)
class Buckets:
    """A cumulative histogram as printed: `counts[i]` samples <= `upper_bounds[i]`; the last count is that of all samples."""

    upper_bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float | None = None

    @property
    def total(self) -> float:
        """Samples since the process started."""
        return self.counts[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Values by concept (see `engines.CONCEPTS`), cumulative where the concept is; a concept that is not there is unknown.

    `at_finish`: concepts that this engine counts when a request ends, and not when its first token comes out.
    """

    at_seconds: float
    values: Mapping[str, float]
    histograms: Mapping[str, Buckets] = field(default_factory=dict)
    at_finish: frozenset[str] = frozenset()

    def missing(self, engine: Engine, where: str) -> MetricMissing | None:
        """The error that names the first series that a replica of `engine` must have and this one has not."""
        for concept, row in engine.rows.items():
            if row.required and concept not in self.values and concept not in self.histograms:
                return engine.missing(concept, where)
        return None


class EngineReader:
    """Reads pages of one engine; one reader serves all replicas of a pool.  `model` reads only series of that model."""

    def __init__(self, engine: Engine, model: str | None = None) -> None:
        self.engine, self.model = engine, model
        self._wanted = engine.sample_names()
        self._text = TextReader(self._wanted)
        self._plan = _Plan(engine, model)

    def read(self, page: bytes, at_seconds: float) -> Reading:
        """What the page says.  Raises PageError with a sentence."""
        values = self._text.read(page)
        if self._plan.series is not self._text.series or self._plan.known < len(values):
            self._plan.extend(self._text.series)
        return self._plan.reading(values, at_seconds)

    def read_samples(self, samples: Iterable[Sample], at_seconds: float) -> Reading:
        """The same out of samples.  Labels that tell replicas apart must be taken off, or be the same in all of them.

        Raises PageError for one series that comes twice.
        """
        found: dict[Series, float] = {}
        for name, labels, value in samples:
            if name not in self._wanted:
                continue
            series = (name, tuple(sorted(labels.items())))
            if series in found:
                raise PageError(f"the series {name}{dict(labels)!r} comes twice")
            found[series] = value
            if len(found) > MOST_SERIES:
                raise PageError(f"there are more than {MOST_SERIES} of the series that are read")
        plan = _Plan(self.engine, self.model)
        plan.extend(list(found))
        return plan.reading(list(found.values()), at_seconds)


class _Term:
    """One alternative's places in the list of values: of its samples, or of its buckets by bound, sums and counts."""

    __slots__ = ("bounds", "buckets", "counts", "factors", "odd", "plain", "sums")

    def __init__(self) -> None:
        self.plain: list[int] = []
        self.factors: list[float | None] = []  # a number out of a label, in place of the value
        self.buckets: dict[float, list[int]] = {}
        self.bounds: list[float] = []
        self.odd: list[int] = []  # buckets without a bound that is a number
        self.sums: list[int] = []
        self.counts: list[int] = []


class _Plan:
    """Where each concept's values are, worked out once for each series and not for each page."""

    def __init__(self, engine: Engine, model: str | None) -> None:
        self._engine, self._model = engine, model
        self.series: Sequence[Series] = ()
        self.known = 0
        # By concept: the terms that are added, each a list of alternatives.
        self._rows: list[tuple[str, Row, list[list[_Term]]]] = []
        self._targets: dict[str, list[tuple[Row, _Term, str]]] = {}
        self._clear()

    def _clear(self) -> None:
        self._rows, self._targets, self.known = [], {}, 0
        for concept, row in self._engine.rows.items():
            terms = [[_Term() for _ in names] for names in row.terms]
            self._rows.append((concept, row, terms))
            for names, alternatives in zip(row.terms, terms, strict=True):
                for name, term in zip(names, alternatives, strict=True):
                    parts = ("_bucket", "_sum", "_count") if CONCEPTS[concept][0] == "histogram" else ("",)
                    for part in parts:
                        self._targets.setdefault(name + part, []).append((row, term, part))

    def extend(self, series: Sequence[Series]) -> None:
        """Take in what is new in `series`, or all of it if it is another list."""
        if series is not self.series:
            self.series = series
            self._clear()
        for place in range(self.known, len(series)):
            name, labels = series[place]
            named = dict(labels)
            if self._model is not None and named.get(self._engine.model_label or "", self._model) != self._model:
                continue
            for row, term, part in self._targets.get(name, ()):
                if all(named.get(k) in v for k, v in row.where.items()) and not any(
                    named.get(k) in v for k, v in row.unless.items()
                ):
                    _place(term, part, place, named, row)
        self.known = len(series)

    def reading(self, values: Sequence[float | None], at_seconds: float) -> Reading:
        """The concepts out of the values of one page."""
        plain: dict[str, float] = {}
        histograms: dict[str, Buckets] = {}
        for concept, row, terms in self._rows:
            if CONCEPTS[concept][0] == "histogram":
                found = _first_histogram(values, terms[0], row.scale)
                if found is not None:
                    histograms[concept] = found
            else:
                value = _value(values, terms, row)
                if value is not None and concept in ("kv_usage", "awake"):
                    value = min(1.0, value) if value <= 1.0 + ROUNDING else None
                if value is not None:
                    plain[concept] = value
        return Reading(at_seconds=at_seconds, values=plain, histograms=histograms, at_finish=self._engine.at_finish)


def _place(term: _Term, part: str, place: int, labels: Mapping[str, str], row: Row) -> None:
    if part == "":
        term.plain.append(place)
        term.factors.append(None if row.label is None else _float(labels.get(row.label, "")))
    elif part == "_sum":
        term.sums.append(place)
    elif part == "_count":
        term.counts.append(place)
    else:
        bound = _float(labels.get("le", ""))
        if math.isnan(bound):
            term.odd.append(place)
        elif bound in term.buckets:
            term.buckets[bound].append(place)
        else:
            term.buckets[bound] = [place]
            insort(term.bounds, bound)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _value(values: Sequence[float | None], terms: list[list[_Term]], row: Row) -> float | None:
    """The merged value of the first alternative that is there, terms added; None where one of them cannot be believed."""
    total: float | None = None
    for alternatives in terms:
        for term in alternatives:
            places = term.plain
            if row.label is not None:
                found = [f for p, f in zip(places, term.factors, strict=True) if values[p] and f is not None and f == f]
            else:
                found = [v for p in places if (v := values[p]) is not None]
            if found:
                merged = _merged(found, row.merge)
                if not 0.0 <= merged < math.inf:
                    return None
                total = merged if total is None else total + merged
                break
    return None if total is None or total == math.inf else total * row.scale


def _merged(found: list[float], merge: str) -> float:
    if len(found) == 1:
        return found[0]
    if not min(found) >= 0.0 or any(map(math.isnan, found)):
        return math.nan
    if merge == "min":
        return min(found)
    if merge == "max":
        return max(found)
    return sum(found) / len(found) if merge == "mean" else sum(found)


def _first_histogram(values: Sequence[float | None], alternatives: list[_Term], scale: float) -> Buckets | None:
    for term in alternatives:
        if any(values[p] is not None for p in term.odd):
            return None
        for places in term.buckets.values():
            if any(values[p] is not None for p in places):
                return _histogram(values, term, scale)
    return None


def _histogram(values: Sequence[float | None], term: _Term, scale: float) -> Buckets | None:
    """Buckets summed over the engines of one replica; None where they do not make a histogram.

    Every engine must have every bucket: a page that lost one would count fewer samples below it.
    """
    bounds: list[float] = []
    counts: list[float] = []
    engines = 0
    for bound in term.bounds:
        places = term.buckets[bound]
        value = values[places[0]]
        if len(places) == 1:
            if value is None:
                continue
            have = 1
        else:
            found = [v for p in places if (v := values[p]) is not None]
            if not found:
                continue
            value, have = sum(found), len(found)
        engines = engines or have
        if have != engines:
            return None
        bounds.append(bound)
        counts.append(value if value is not None else math.nan)
    if bounds[-1] != math.inf or len(bounds) < 2 or not counts[0] >= 0.0 or not counts[-1] < math.inf:
        return None
    if not all(map(not_above, counts, counts[1:])) or bounds[0] == -math.inf:
        return None
    said = [v for p in term.counts if (v := values[p]) is not None]
    if said and sum(said) != counts[-1]:
        return None
    sums = [v for p in term.sums if (v := values[p]) is not None]
    total = sum(sums) if len(sums) == engines else math.nan
    upper = bounds[:-1] if scale == 1.0 else [b * scale for b in bounds[:-1]]
    return Buckets(tuple(upper), tuple(counts), total * scale if 0.0 <= total < math.inf else None)


def merged(histograms: Iterable[Buckets]) -> Buckets | None:
    """The sum of cumulative histograms; where their bounds differ, on the bounds that all have.  None for none."""
    parts = list(histograms)
    if not parts:
        return None
    bounds = parts[0].upper_bounds
    if any(p.upper_bounds != bounds for p in parts):
        bounds = tuple(sorted(set(bounds).intersection(*(p.upper_bounds for p in parts))))
        if not bounds:
            return None
        parts = [_on(p, bounds) for p in parts]
    sums = [p.sum for p in parts]
    total = None if any(s is None for s in sums) else math.fsum(s for s in sums if s is not None)
    return Buckets(bounds, tuple(map(math.fsum, zip(*(p.counts for p in parts), strict=True))), total)


def _on(histogram: Buckets, bounds: tuple[float, ...]) -> Buckets:
    place = {bound: i for i, bound in enumerate(histogram.upper_bounds)}
    counts = (*(histogram.counts[place[b]] for b in bounds), histogram.counts[-1])
    return Buckets(bounds, counts, histogram.sum)


def per_bucket(counts: Sequence[float]) -> tuple[float, ...]:
    """Counts per bucket out of cumulative ones."""
    return (counts[0], *(max(0.0, b - a) for a, b in pairwise(counts)))
