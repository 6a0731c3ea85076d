"""The source that a pool's config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from autoscaler.errors import ConfigError
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import PoolSettings
from metrics_adapter.door import DoorCounts
from metrics_adapter.engines import load_engine
from metrics_adapter.gpu import GpuState

if TYPE_CHECKING:
    from metrics_adapter.prometheus import PrometheusSource
    from metrics_adapter.scrape import ScrapeSource


def source_of(
    pool: PoolSettings,
    *,
    door: Callable[[], DoorCounts | None] | None = None,
    gpus: Callable[[], Mapping[str, GpuState]] | None = None,
) -> ScrapeSource | PrometheusSource:
    """A MetricsSource for `pool`, which its caller closes.

    `door` and `gpus` are asked at each look of a scrape source.  Raises ConfigError where the pool has no source.
    """
    settings = pool.source
    if settings is None:
        raise ConfigError("source", f"is missing: pool {pool.name!r} does not say where its metrics come from")
    if isinstance(settings, ScrapeSettings):
        from metrics_adapter.scrape import ScrapeSource

        return ScrapeSource(
            pool.name, settings, slo=pool.slo, interval_seconds=pool.interval_seconds, door=door, gpus=gpus
        )
    from metrics_adapter.prometheus import PrometheusSource

    return PrometheusSource(pool.name, settings, slo=pool.slo)


def check_source(pool: PoolSettings) -> None:
    """Refuse a source whose engine is not known.  Raises ConfigError with the path within the pool."""
    if pool.source is not None and pool.source.engine != "none":
        try:
            load_engine(pool.source.engine)
        except ConfigError as error:
            raise error.under("source") from None
