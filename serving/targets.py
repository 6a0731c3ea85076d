"""Targets in Kubernetes: the counts of what is scaled, and asking for more or fewer by its scale subresource.

target = KubernetesTarget(cluster, settings.target, now=time.time, startup=lambda q: capacity.startup(q))
await target.replicas()
ReadOnly(target)          # for a host whose HPA or ScaledObject does the asking
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

from autoscaler.errors import ConfigError, TargetConflict, TargetError, TargetNotFound
from autoscaler.ports import Target
from autoscaler.settings import TargetSettings
from autoscaler.types import Replicas
from serving.kubernetes import DEPLOYMENT, STATEFUL_SET, Kind, Kubernetes, KubernetesError
from serving.kubernetes_objects import Pod, Scale

LEADER_WORKER_SET = Kind(group="leaderworkerset.x-k8s.io", version="v1", plural="leaderworkersets")
QUANTILES = (0.5, 0.9, 0.95, 0.99)
CONFLICTS = 5  # tries of one write
UNREADY_SECONDS = 30  # a replica that was ready and is not: shorter is a missed probe, longer is sick

Startup = Callable[[float], float | None]
"""Seconds from order to ready at a quantile, as it is believed now; None where nothing is."""


def scaled_object_of(settings: TargetSettings) -> tuple[Kind, str]:
    """(kind, name) of the object with the scale.  Raises ConfigError for a target that is none of Kubernetes'."""
    if settings.kind == "inference_service":  # an InferenceService has no scale; its predictor's Deployment has
        return DEPLOYMENT, f"{settings.name}-predictor"
    kinds = {"deployment": DEPLOYMENT, "statefulset": STATEFUL_SET, "leader_worker_set": LEADER_WORKER_SET}
    if settings.kind not in kinds:
        raise ConfigError("target.kind", f"{settings.kind!r} must be one of inference_service, {', '.join(kinds)}")
    return kinds[settings.kind], settings.name


def object_kind(kind: Kind) -> str:
    """How an HPA names it."""
    return {STATEFUL_SET: "StatefulSet", LEADER_WORKER_SET: "LeaderWorkerSet"}.get(kind, "Deployment")


class KubernetesTarget:
    """One object with a scale.  `now`: Unix seconds.  `startup`: what is believed of starts, for when they should end.

    A pod that crashes in a loop, cannot get its image, or was ready and is not for `UNREADY_SECONDS` is unhealthy.  One
    that no node takes is starting, and nobody knows until when.
    """

    def __init__(
        self,
        cluster: Kubernetes,
        settings: TargetSettings,
        *,
        now: Callable[[], float],
        startup: Startup | None = None,
    ) -> None:
        self.settings, self.startup = settings, startup
        self.kind, self.name = scaled_object_of(settings)
        self._cluster, self._now = cluster, now
        self._scale: Scale | None = None
        self._was_ready: dict[
            str, tuple[int, float]
        ] = {}  # by name: the start that was ready, and when that was seen last

    def __str__(self) -> str:
        return f"{self.kind.plural}/{self.settings.namespace}/{self.name}"

    async def replicas(self) -> Replicas:
        """Counts now.  Raises TargetNotFound or TargetError."""
        try:
            self._scale = await self._read()
            if not self._scale.selector:
                raise TargetError(f"{self}: its scale has no selector, so that its pods cannot be found")
            pods = await self._cluster.pods(self.settings.namespace, self._scale.selector)
        except KubernetesError as error:
            self._give_up(error)
        return self._counted(self._scale, pods)

    async def scale(self, replicas: int) -> None:
        """Ask for `replicas`; TargetConflict where somebody wrote the number since the counts were read."""
        seen = self._scale
        try:
            if seen is None:
                seen = await self._read()
            self._scale = await self._write(replicas, seen)
        except KubernetesError as error:
            self._scale = None
            self._give_up(error)

    async def _read(self) -> Scale:
        return await self._cluster.scale(self.kind, self.settings.namespace, self.name)

    async def _write(self, replicas: int, seen: Scale) -> Scale:
        """Write the number if it is still the one that was seen.

        Whatever changes of the object is a conflict for the API server, also each pod that comes up: the number decides.
        """
        for _ in range(CONFLICTS):
            try:
                return await self._set(replicas, seen)
            except KubernetesError as error:
                now = await self._read() if error.conflict else seen
                if not error.conflict or now.replicas != seen.replicas:
                    raise
                seen = now
        return await self._set(replicas, seen)

    async def _set(self, replicas: int, seen: Scale) -> Scale:
        return await self._cluster.set_scale(
            self.kind, self.settings.namespace, self.name, replicas, seen.resource_version
        )

    async def other_scalers(self) -> list[str]:
        """Who else scales this object, as kind/name: for refusing to be the second writer."""
        try:
            return await self._cluster.scalers_of(object_kind(self.kind), self.settings.namespace, self.name)
        except KubernetesError as error:
            self._give_up(error)

    def _give_up(self, error: KubernetesError) -> NoReturn:
        kind = TargetNotFound if error.not_found else TargetConflict if error.conflict else TargetError
        raise kind(f"{self}: {error}") from None

    def _counted(self, scale: Scale, pods: list[Pod]) -> Replicas:
        now = self._now()
        here = [p for p in pods if not p.finished]
        alive = [p for p in here if not p.terminating]
        ready = [p for p in alive if p.ready]
        self._was_ready = {
            **{p.name: seen for p in alive if (seen := self._was_ready.get(p.name)) is not None},
            **{p.name: (p.since_seconds, now) for p in ready},
        }
        rest = [p for p in alive if not p.ready]
        unhealthy = [p for p in rest if p.broken or self._sick(p, now)]
        starting = [p for p in rest if p not in unhealthy]
        return Replicas(
            desired=scale.replicas,
            ready=len(ready),
            starting=len(starting),
            draining=len(here) - len(alive),
            unhealthy=len(unhealthy),
            starting_ready_at_seconds=self._ready_at(starting, now),
            oldest_start_at_seconds=min((p.since_seconds for p in starting if not self._was(p)), default=None),
        )

    def _sick(self, pod: Pod, now: float) -> bool:
        """Whether this very start of it was ready, and has not been for a while."""
        since, seen = self._was_ready.get(pod.name, (None, now))
        return since == pod.since_seconds and now - seen > UNREADY_SECONDS

    def _was(self, pod: Pod) -> bool:
        """Whether this very start of it has been ready: it is not starting, whatever it does now."""
        return self._was_ready.get(pod.name, (None,))[0] == pod.since_seconds

    def _ready_at(self, starting: Iterable[Pod], now: float) -> tuple[int, ...]:
        waits = (p for p in starting if not p.unschedulable and p.name not in self._was_ready)
        expected = (expected_ready(p.since_seconds, now, self.startup) for p in waits)
        return tuple(sorted(at for at in expected if at is not None))


def expected_ready(since_seconds: int, now: float, startup: Startup | None) -> int | None:
    """When a start from `since_seconds` should end, as it has not yet: the first quantile of start-up times that is ahead.

    None beyond the last one: a start that goes on for ever must not count as coming for ever.

    >>> expected_ready(100, 150.0, lambda q: {0.5: 60.0, 0.9: 90.0}.get(q))
    160
    >>> expected_ready(100, 170.0, lambda q: {0.5: 60.0, 0.9: 90.0}.get(q))
    190
    """
    for quantile in QUANTILES:
        seconds = None if startup is None else startup(quantile)
        if seconds is not None and since_seconds + seconds >= now:
            return round(since_seconds + seconds)
    return None


class ReadOnly:
    """A target that is read and never written, for a host whose numbers others act on."""

    def __init__(self, target: Target) -> None:
        self.target = target

    async def replicas(self) -> Replicas:
        """Counts now."""
        return await self.target.replicas()

    async def scale(self, replicas: int) -> None:
        """Nothing: who reads our number does it."""
