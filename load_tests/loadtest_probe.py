"""A look at the server before a load test: its model, what it tells, what it will refuse."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from typing import Any

from autoscaler.errors import ConfigError, SourceUnavailable
from load_tests.loadtest_plan import Plan, Sending

PROBE_SECONDS = 60.0


def first_model(host: str, headers: dict[str, str]) -> str:
    """The first model that the server names."""
    models = ask(f"{host}/v1/models", headers)[1].get("data") or []
    if not models:
        raise SourceUnavailable(f"{host}/v1/models names no model: give --model")
    return str(models[0]["id"])


def refuse_compression(host: str, speed: float, headers: dict[str, str]) -> None:
    """A trace in fast motion is another problem, unless the server's step times and start-ups shrink alike."""
    if speed == 1.0:
        return
    told: float | None = None
    with suppress(SourceUnavailable):
        told = ask(f"{host}/fake_engine", headers)[1].get("speed")
    if told != speed:
        raise ConfigError(
            "--speed",
            f"{speed:g} must be 1: a real server's start-up and step times do not shrink with the trace; cut it with"
            " --window instead (only a fake engine started with the same --speed takes it)",
        )


def ask(url: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer; SourceUnavailable if there is none."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except (OSError, ValueError) as error:
        raise SourceUnavailable(f"{url} does not answer: {error}") from None
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    return status, told if isinstance(told, dict) else {}


def tells_chunk_usage(sending: Sending) -> bool:
    """One small request, which also warms the server: does it take the option that tells the tokens of each chunk?"""
    path = "chat/completions" if sending.api == "chat" else "completions"
    prompt: dict[str, Any] = {"prompt": [1000, 1001]}
    if sending.api == "chat":
        prompt = {"messages": [{"role": "user", "content": "time"}]}
    url, headers = f"{sending.host}/v1/{path}", dict(sending.headers)
    asked = {**prompt, "model": sending.model, "max_tokens": 2, "ignore_eos": True, "stream": True}
    for chunk_usage in (True, False):
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if chunk_usage else {})
        status, told = ask(url, headers, json.dumps({**asked, "stream_options": options}).encode())
        if status == 200:
            return chunk_usage
    error = told.get("error", {})
    said = error.get("message", "") if isinstance(error, dict) else str(error)
    raise SourceUnavailable(f"{url} answers a small request with {status}: {said or 'no reason given'}")


def with_length_note(plan: Plan) -> Plan:
    """A note where the server will refuse requests for their length."""
    _, told = ask(f"{plan.sending.host}/v1/models", dict(plan.sending.headers))
    limits = [m.get("max_model_len") for m in told.get("data") or [] if m.get("id") == plan.sending.model]
    if not limits or not isinstance(limits[0], int):
        return plan
    long = int(((plan.prompt_tokens + plan.output_tokens) > limits[0]).sum())
    if not long:
        return plan
    note = f"{long} requests are longer than the server's max_model_len, {limits[0]}, and will be refused"
    return replace(plan, notes=(*plan.notes, note))
