"""Two HPAs on what one pool scales are told of, once, and when it is over."""

from __future__ import annotations

import logging

import pytest

from metrics_adapter.serve_rivals import rivals, tell
from metrics_adapter.wva import Variant
from serving.kubernetes_objects import Hpa


def variant(pool: str, name: str) -> Variant:
    hpa = Hpa(namespace="llm", name=name, target_kind="Deployment", target_name=pool, external=())
    return Variant(pool=pool, name=name, hpa=hpa)


def test_two_on_one_object_are_named_once(caplog: pytest.LogCaptureFixture):
    one = [variant("chat", "chat"), variant("code", "code")]
    two = [*one, variant("chat", "cpu")]
    assert rivals(one) == {}
    assert rivals(two) == {"chat": ("llm/chat", "llm/cpu")}
    with caplog.at_level(logging.INFO, logger="autoscaler.serve"):
        before: dict[str, tuple[str, ...]] = {}
        for seen in (one, two, two, one):
            now = rivals(seen)
            tell(now, before)
            before = now
    assert [r.getMessage() for r in caplog.records] == [
        "pool chat: 2 HPAs scale it and will fight, leave one: llm/chat, llm/cpu",
        "pool chat: one HPA scales it now",
    ]
