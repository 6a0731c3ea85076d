"""A pool of fixed capacity without a forecast: the arithmetic of a test fits in the head."""

from __future__ import annotations

from typing import Any

from autoscaler.embed import Pool
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.step import Autoscaler
from autoscaler.testing import FixedCapacity, NoForecast


def plain_autoscaler(capacity: FixedCapacity | None = None, **section: Any) -> Autoscaler:
    """Ten requests per second a replica, 60 s to start, no forecast."""
    settings = build(PoolSettings, {"name": "p", "limits": {"max_replicas": 50}, **section})
    return Autoscaler.of(settings, NoForecast(), capacity or FixedCapacity())


def plain_pool(capacity: FixedCapacity | None = None, **section: Any) -> Pool:
    """The same as a Pool."""
    return Pool(plain_autoscaler(capacity, **section))
