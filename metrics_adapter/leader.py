"""One of several adapters leads: it alone runs the loops, and the others repeat its last Steps and are ready to go on.

    election = Election(cluster, namespace="autoscaler", name="autoscaler", address="http://10.0.0.7:8080")
    await take_turns(election, follower, lead)

`lead(memories)` runs while we lead, and is cancelled as soon as we may no more; it leaves there what it then knows.  Who
leads is written in a Lease.  A leader that cannot renew it stops before anybody else may begin; its expiry is reckoned on
each one's own clock from when it saw the Lease change, so that clocks need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from autoscaler.errors import ConfigError, TargetError
from autoscaler.ports import Target
from autoscaler.types import Memory, Replicas
from serving.kubernetes import Kubernetes, KubernetesError
from serving.kubernetes_objects import Lease, micro_time

logger = logging.getLogger("autoscaler.leader")

ADDRESS, KEY = "replicast.dev/address", "replicast.dev/key"
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads, where its second port is, and the key that it shows its past for."""

    holder: str
    address: str
    key: str


class Election:
    """Stands for election for as long as `run` runs.

    `duration_seconds`: others may take a Lease that has not changed for so long.  A leader renews it every
    `renew_seconds`, and leads no more `give_up_seconds` after the last time that it could.
    """

    def __init__(
        self,
        cluster: Kubernetes,
        *,
        namespace: str,
        name: str,
        address: str,
        identity: str | None = None,
        duration_seconds: int = 10,
        renew_seconds: float = 2.0,
        give_up_seconds: float = 7.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < renew_seconds < give_up_seconds < duration_seconds:
            raise ConfigError(
                "lease", f"{renew_seconds} < {give_up_seconds} < {duration_seconds} must hold: renew, give up, duration"
            )
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self.identity = f"{identity or 'autoscaler'}_{secrets.token_hex(4)}"  # one that starts anew is another one
        self.me = Leader(holder=self.identity, address=address, key=secrets.token_urlsafe(24))
        self._duration, self._renew, self._give_up, self._clock = (
            duration_seconds,
            renew_seconds,
            give_up_seconds,
            clock,
        )
        self._renewed_at: float | None = None
        self._seen: tuple[object, ...] = ()
        self._seen_at = 0.0
        self._other: Leader | None = None
        self._said = ""

    @property
    def leads(self) -> bool:
        """Whether we lead at this very moment."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._give_up

    @property
    def leader(self) -> Leader | None:
        """Who leads as far as we know: we, another one, or nobody."""
        return self.me if self.leads else self._other

    async def run(self) -> None:
        """Stand, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._give_up / 2):
                    await self.stand()
                self._said = ""
            except (KubernetesError, TimeoutError) as error:
                text = str(error) or "the API server is slow"
                if text != self._said:
                    self._said = text
                    logger.warning("election: %s", text)
            # Unequal waits: those who lost a race do not meet again.
            await asyncio.sleep(self._renew if self.leads else self._renew / 2 * (1.0 + random.random() / 4))

    async def stand(self) -> None:
        """Renew, take or watch the Lease, once.  Raises KubernetesError."""
        asked_at = self._clock()
        lease = await self._cluster.lease(self._namespace, self._name)
        if lease is None:
            lease = Lease(namespace=self._namespace, name=self._name)
        version = (lease.holder, lease.renewed, lease.transitions)
        if version != self._seen:
            self._seen, self._seen_at = version, self._clock()
        ours = lease.holder == self.identity
        if not ours:
            self._lost()
            if lease.holder and self._clock() - self._seen_at < lease.duration_seconds:
                self._other = _leader_of(lease)
                return
            self._other = None
        try:
            await self._cluster.write_lease(self._mine(lease, ours))
        except KubernetesError as error:
            if error.conflict:  # somebody wrote in between: the next look tells whether he leads
                return
            raise
        if self._renewed_at is None:
            logger.info("election: %s leads", self.identity)
        self._renewed_at, self._other = asked_at, None

    def _mine(self, lease: Lease, ours: bool) -> Lease:
        now = micro_time(time.time())
        notes = {**lease.annotations, ADDRESS: self.me.address, KEY: self.me.key}
        return replace(
            lease,
            holder=self.identity,
            duration_seconds=self._duration,
            acquired=lease.acquired if ours else now,
            renewed=now,
            transitions=lease.transitions + (not ours and bool(lease.resource_version)),
            annotations=notes,
        )

    def _lost(self) -> None:
        if self._renewed_at is not None:
            logger.warning("election: %s leads no more", self.identity)
        self._renewed_at = None

    async def resign(self) -> None:
        """Give the Lease back, so that another one need not wait for its expiry."""
        self._renewed_at, led = None, self._renewed_at is not None
        if not led:
            return
        with suppress(KubernetesError):
            lease = await self._cluster.lease(self._namespace, self._name)
            if lease is not None and lease.holder == self.identity:
                await self._cluster.write_lease(replace(lease, holder="", duration_seconds=1))


def _leader_of(lease: Lease) -> Leader:
    return Leader(holder=lease.holder, address=lease.annotations.get(ADDRESS, ""), key=lease.annotations.get(KEY, ""))


class Follows(Protocol):
    """Who repeats what a leader says."""

    @property
    def memories(self) -> MutableMapping[str, Memory]:
        """What is known of each pool, of a leader or of our own turns."""

    async def run(self, leader: Callable[[], Leader | None]) -> None:
        """Repeat whomever `leader` names, for ever."""


Lead = Callable[[MutableMapping[str, Memory]], Awaitable[None]]


async def take_turns(election: Election, follower: Follows, lead: Lead) -> None:
    """Follow while another one leads, lead while we do, for ever.

    `lead` gets what the follower knows of each pool, and changes it: who loses the Lease and gets it back, as nobody else
    could take it either, goes on from there.  Where it ends or fails, so does this.  When this ends or is
    cancelled the Lease is given back.
    """
    standing = asyncio.create_task(election.run())
    try:
        while True:
            other = follower.run(lambda: None if election.leads else election.leader)
            await _while(lambda: not election.leads, other, standing)
            leading = asyncio.ensure_future(lead(follower.memories))
            if await _while(lambda: election.leads, leading, standing):
                return
    finally:
        standing.cancel()
        await asyncio.gather(standing, return_exceptions=True)
        await election.resign()


async def _while(condition: Callable[[], bool], work: Awaitable[None], *others: asyncio.Task[None]) -> bool:
    """Do `work` while `condition` holds; whether it ended by itself.  Raises what it, or one of the others, raised."""
    task = asyncio.ensure_future(work)
    try:
        while condition():
            await asyncio.wait((task, *others), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for done in (task, *others):
                if done.done():
                    await done
                    return True
        return False
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Fenced:
    """A target that is neither read nor written when we do not lead: whatever wakes up late does nothing."""

    def __init__(self, target: Target, leads: Callable[[], bool]) -> None:
        self.target, self._leads = target, leads

    async def replicas(self) -> Replicas:
        """Counts now.  Raises TargetError when we do not lead."""
        self._check()
        found = await self.target.replicas()
        self._check()
        return found

    async def scale(self, replicas: int) -> None:
        """Ask for `replicas`.  Raises TargetError when we do not lead."""
        self._check()
        await self.target.scale(replicas)

    def _check(self) -> None:
        if not self._leads():
            raise TargetError("another adapter leads")
