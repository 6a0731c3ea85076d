"""The metrics page of a fake engine: names, types, labels and buckets as vLLM 0.32 prints them.

Counters and histograms count as the engine works; gauges are set by `set_gauges` after an engine step and keep their value
in between, as vLLM's do.  Families of features that a fake engine has not (multi-modal and external caches, FLOP estimates)
are there and stay 0.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
GAPS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
    7680.0,
)  # fmt: skip
STEP = (1.0, *(float(2**k) for k in range(3, 15)))
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
PARALLEL = (1.0, 2.0, 5.0, 10.0, 20.0)
OPERATION = (0.01, 0.1, 1.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
HTTP = (0.1, 0.5, 1.0)

SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
REASONS = ("stop", "length", "abort", "error", "repetition")
OPERATIONS = ("sleep", "wake", "release_kv_cache_memory")

Labels = Mapping[str, str]


def lengths(model_len: int) -> tuple[float, ...]:
    """Buckets of token counts: 1, 2, 5 times powers of ten up to the longest request."""
    found: list[float] = []
    for power in range(12):
        for digit in (1, 2, 5):
            if digit * 10**power > model_len:
                return tuple(found)
            found.append(float(digit * 10**power))
    return tuple(found)


def _text(labels: Labels) -> str:
    return ",".join(f'{k}="{_escaped(v)}"' for k, v in sorted(labels.items()))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Value:
    """One series of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Histogram:
    """One series of a histogram; `counts` are per bucket, summed up only when somebody looks."""

    __slots__ = ("_heads", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._heads: tuple[list[str], str] | None = None

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def lines(self, name: str, labels: Labels) -> str:
        """The series of the page."""
        if self._heads is None:
            marks = [*map(str, self.bounds), "+Inf"]
            heads = [f"{name}_bucket{{{_text({**labels, 'le': le})}}} " for le in marks]
            self._heads = heads, f"{{{_text(labels)}}} " if labels else " "
        heads, tail = self._heads
        summed = list(accumulate(self.counts))
        rows = [f"{head}{count}.0" for head, count in zip(heads, summed, strict=True)]
        return "\n".join([*rows, f"{name}_count{tail}{summed[-1]}.0", f"{name}_sum{tail}{self.sum}"])


class Family:
    """A family and its series, by the values of the labels that tell them apart."""

    def __init__(self, kind: str, name: str, text: str, base: Labels, bounds: Sequence[float] = ()) -> None:
        self.kind, self.name, self.text, self.base, self.bounds = kind, name, text, base, bounds
        self.series: dict[tuple[tuple[str, str], ...], tuple[Value | Histogram, float]] = {}
        self._heads: dict[tuple[tuple[str, str], ...], str] = {}

    def value(self, **labels: str) -> Value:
        """The series of a counter or gauge under these further labels, made if it is new."""
        found = self._find(labels)
        assert isinstance(found, Value)
        return found

    def histogram(self, **labels: str) -> Histogram:
        """The same for a histogram."""
        found = self._find(labels)
        assert isinstance(found, Histogram)
        return found

    def _find(self, labels: Labels) -> Value | Histogram:
        key = tuple(labels.items())
        if key not in self.series:
            made = Histogram(self.bounds) if self.kind == "histogram" else Value()
            self.series[key] = made, time.time()
            self._heads[key] = f"{{{_text({**self.base, **labels})}}} " if (self.base or labels) else " "
        return self.series[key][0]

    def render(self, out: list[str]) -> None:
        """Append the family's text."""
        if not self.series:
            return
        out.append(f"# HELP {self.name} {self.text}\n# TYPE {self.name} {self.kind}")
        for key, (one, _) in self.series.items():
            if isinstance(one, Histogram):
                out.append(one.lines(self.name, {**self.base, **dict(key)}))
            else:
                out.append(f"{self.name}{self._heads[key]}{one.value}")
        if self.kind in ("counter", "histogram"):
            created = self.name.removesuffix("_total") if self.kind == "counter" else self.name
            out.append(f"# HELP {created}_created {self.text}\n# TYPE {created}_created gauge")
            out.extend(f"{created}_created{self._heads[key]}{at}" for key, (_, at) in self.series.items())


class Metrics:
    """All families of one fake engine."""

    def __init__(self, model: str, model_len: int, cache_config: Labels) -> None:
        self._families: list[Family] = []
        self._base: Labels = {"engine": "0", "model_name": model}
        self._model = model
        self._processes()
        self._state(cache_config)
        self._work()
        self._sizes(lengths(model_len))
        self._latencies()
        self._outside()

    def page(self) -> bytes:
        """The text of GET /metrics."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.cpu_seconds.value = used.ru_utime + used.ru_stime
        self.resident_bytes.value = _resident_bytes()
        out: list[str] = []
        for family in self._families:
            family.render(out)
        out.append("")
        return "\n".join(out).encode()

    def set_gauges(self, *, running: int, waiting: int, kv_fraction: float) -> None:
        """What an engine step reports."""
        self.running.value = float(running)
        self.waiting.value = self.waiting_capacity.value = float(waiting)
        self.kv_usage.value = kv_fraction

    def set_sleep(self, level: int | None) -> None:
        """Sleep level, None when awake; level 0 is none of the three states."""
        for state, on in zip(SLEEP_STATES, (level is None, level == 1, level == 2), strict=True):
            self._sleep.value(sleep_state=state).value = float(on)

    def operation(self, name: str) -> tuple[Value, Histogram]:
        """In-flight gauge and duration of a sleep-mode operation; the families appear with the first."""
        return self._operations.value(operation=name), self._operation_seconds.histogram(operation=name)

    def _add(self, kind: str, name: str, text: str, *, base: Labels | None = None, le: Sequence[float] = ()) -> Family:
        family = Family(kind, name, text, self._base if base is None else base, le)
        self._families.append(family)
        return family

    def _counter(self, name: str, text: str) -> Value:
        return self._add("counter", f"vllm:{name}_total", text).value()

    def _by(self, name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Value]:
        family = self._add("counter", f"vllm:{name}_total", text)
        return {value: family.value(**{label: value}) for value in values}

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        return self._add("histogram", f"vllm:{name}", text, le=bounds).histogram()

    def _processes(self) -> None:
        def gauge(name: str, text: str, kind: str = "gauge") -> Value:
            family = Family(kind, name, text, {})
            self._families.append(family)
            return family.value()

        self.resident_bytes = gauge("process_resident_memory_bytes", "Resident memory in bytes.")
        gauge("process_start_time_seconds", "Unix time of the start of the process.").value = time.time()
        self.cpu_seconds = gauge("process_cpu_seconds_total", "CPU time of the process in seconds.", "counter")

    def _state(self, cache_config: Labels) -> None:
        for name in ("flops", "read_bytes", "write_bytes"):
            self._counter(f"estimated_{name}_per_gpu", "Estimate per GPU; not modelled.")
        self.running = self._add("gauge", "vllm:num_requests_running", "Requests in the running batch.").value()
        self.waiting = self._add("gauge", "vllm:num_requests_waiting", "Requests in the queue.").value()
        reasons = self._add("gauge", "vllm:num_requests_waiting_by_reason", "Requests in the queue by reason.")
        self.waiting_capacity = reasons.value(reason="capacity")
        reasons.value(reason="deferred")
        self._sleep = self._add("gauge", "vllm:engine_sleep_state", "1 for the sleep state of the engine.")
        self.set_sleep(None)
        self.kv_usage = self._add("gauge", "vllm:kv_cache_usage_perc", "KV cache in use, from 0 to 1.").value()
        config = self._add("gauge", "vllm:cache_config_info", "Configuration of the cache.", base={"engine": "0"})
        config.value(**cache_config).value = 1.0

    def _work(self) -> None:
        self.cache_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self.cache_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        for name in (
            "external_prefix_cache_queries",
            "external_prefix_cache_hits",
            "mm_cache_queries",
            "mm_cache_hits",
        ):
            self._counter(name, "Not modelled.")
        self.preemptions = self._counter("num_preemptions", "Preemptions.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests whose prefill is over.")
        by_source = self._by(
            "prompt_tokens_by_source", "Prompt tokens by source.", "source",
            ("local_compute", "local_cache_hit", "external_kv_transfer"),
        )  # fmt: skip
        self.prompt_computed, self.prompt_hit = by_source["local_compute"], by_source["local_cache_hit"]
        self.prompt_cached = self._counter("prompt_tokens_cached", "Prompt tokens that were not computed.")
        tiers = ("device", "host", "p2p", "disk", "external_unspecified")
        self.prompt_tiers = self._by(
            "prompt_tokens_cached_by_source", "Prompt tokens not computed, by cache tier.", "source", tiers
        )
        self.generation_tokens = self._counter("generation_tokens", "Output tokens.")
        self.success = self._by("request_success", "Finished requests by reason.", "finished_reason", REASONS)
        rejections = self._add(
            "counter", "vllm:admission_rejections_total", "Requests turned away at a queue limit.",
            base={"model_name": self._model},
        )  # fmt: skip
        self.rejections = {
            limit: rejections.value(reason=limit) for limit in ("max_num_queued_reqs", "max_num_queued_tokens")
        }

    def _sizes(self, tokens: tuple[float, ...]) -> None:
        self.prompt_length = self._histogram("request_prompt_tokens", "Prompt length.", tokens)
        self.output_length = self._histogram("request_generation_tokens", "Output length.", tokens)
        self.step_tokens = self._histogram("iteration_tokens_total", "Tokens of an engine step.", STEP)
        self.max_generation = self._histogram("request_max_num_generation_tokens", "Most output tokens asked.", tokens)
        self.parallel = self._histogram("request_params_n", "Parameter n of a request.", PARALLEL)
        self.max_tokens = self._histogram("request_params_max_tokens", "Parameter max_tokens of a request.", tokens)

    def _latencies(self) -> None:
        self.ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", TTFT)
        self.itl = self._histogram("inter_token_latency_seconds", "Between two tokens of a request.", GAPS)
        self.tpot = self._histogram("request_time_per_output_token_seconds", "Mean gap of a request.", GAPS)
        self.e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", REQUEST)
        self.queue_time = self._histogram("request_queue_time_seconds", "From queued to scheduled.", REQUEST)
        self.inference = self._histogram("request_inference_time_seconds", "From scheduled to the last token.", REQUEST)
        self.prefill = self._histogram("request_prefill_time_seconds", "From scheduled to the first token.", REQUEST)
        self.decode = self._histogram("request_decode_time_seconds", "From the first to the last token.", REQUEST)
        self.request_preemptions = self._histogram("request_num_preemptions", "Preemptions of a request.", PREEMPTIONS)
        self.computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens computed.", self.prompt_length.bounds
        )

    def _outside(self) -> None:
        self.http_requests = self._add("counter", "http_requests_total", "HTTP answers by route and status.", base={})
        self.http_seconds = self._add(
            "histogram", "http_request_duration_seconds", "Duration of an HTTP answer by route.", base={}, le=HTTP
        )
        self._operation_seconds = self._add(
            "histogram", "vllm:sleep_mode_operation_duration_seconds", "Duration of a sleep-mode operation.",
            base={}, le=OPERATION,
        )  # fmt: skip
        self._operations = self._add(
            "gauge", "vllm:sleep_mode_operations_in_flight", "Sleep-mode operations under way.", base={}
        )


def _resident_bytes() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as told:
            return float(int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
