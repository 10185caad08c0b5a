"""Finds the deployments whose desired state must be read again, at a cost proportional to the number of changes.

The first call reads all deployments. After that the change feed names the deployments and the models that changed.
Deployments that could not be read, or whose target cannot be acted on, are retried without a feed entry, a few at each
call. Everything here blocks.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from controlplane.domain.names import Reference
from controlplane.errors import (
    ControlPlaneError,
    DamagedRevisionError,
    NotFoundError,
    StoreWentBackwardsError,
)
from controlplane.lifecycle.desired import DesiredDeployment, DesiredStateResolver
from controlplane.registry.registry import Registry
from controlplane.storage.base import parallel_reads

logger = logging.getLogger(__name__)

_BATCH = 250
_PARALLEL_READS = 8
_AGAIN_AT_ONCE = 20
_MODELS, _DEPLOYMENTS = "models/", "deployments/"

Read = dict[str, DesiredDeployment]
Unread = dict[str, str]


class DesiredChanges:
    """Reads what changed since the last call. For one thread at a time.

    Args:
        registry: The bucket.
        desired_state: Reads one deployment.
        follow: Updates a deployment whose alias has moved, if this process may.
    """

    def __init__(
        self,
        registry: Registry,
        desired_state: DesiredStateResolver,
        *,
        follow: Callable[[DesiredDeployment], DesiredDeployment],
    ) -> None:
        self._registry = registry
        self._desired_state = desired_state
        self._follow = follow
        self._listener = registry.feed.listen()
        self._generation = 0
        self._again: dict[str, None] = {}
        self._unsettled: set[str] = set()

    def read_again(self, model: str) -> None:
        """Read a deployment at the next call even without a feed entry."""
        self._again[model] = None

    def read(self, *, aliased: bool, ready: Callable[[Read], None]) -> tuple[Read, Unread]:
        """Return the desired states that changed, and the reasons why others cannot be read now.

        Args:
            aliased: Whether to read every deployment that follows an alias as well.
            ready: Called with the desired states read so far, if there are many.

        Raises:
            StoreError: The store failed; the next call reads what this one has not.
        """
        self._registry.feed.poll()
        if self._generation != self._registry.feed.generation:
            return self._read_all(ready)
        changed = self._listener.take() | self._unsettled
        again = list(self._again)[:_AGAIN_AT_ONCE]
        for name in again:
            del self._again[name]
        deployments = {chain.removeprefix(_DEPLOYMENTS) for chain in changed if chain.startswith(_DEPLOYMENTS)}
        followers = self._followers(chain.removeprefix(_MODELS) for chain in changed if chain.startswith(_MODELS))
        names = deployments | followers | set(again)
        if aliased:
            names |= self._followers(self._registry.deployments.known())
        self._unsettled = {f"{_DEPLOYMENTS}{name}" for name in deployments} | {f"{_MODELS}{name}" for name in followers}
        try:
            return self._read(sorted(names))
        except BaseException:
            self._again.update(dict.fromkeys(names))
            raise
        finally:
            # An entry precedes its commit: the chain is read until the commit exists or can no longer appear.
            self._unsettled = {chain for chain in self._unsettled if not self._registry.is_settled(chain)}

    def _read_all(self, ready: Callable[[Read], None]) -> tuple[Read, Unread]:
        generation, feed = self._registry.feed.generation, self._registry.feed
        self._listener.take()
        self._registry.model_sweep.run(lambda count: logger.info("read the heads of %d models", count))
        self._registry.deployments.read_all(lambda count: logger.info("read the heads of %d deployments", count))
        self._registry.footprints.survey()
        names = sorted(self._registry.deployments.known())
        unread: Unread = {}
        read: Read = {}
        for first in range(0, len(names), _BATCH):
            if first:
                ready(read)
                logger.info("read %d of %d deployments", first, len(names))
            read, failed = self._read(names[first : first + _BATCH])
            unread |= failed
        self._registry.footprints.end_survey()
        self._generation = generation
        if generation != feed.generation:
            logger.info("the change feed was interrupted while reading the deployments; reading them again")
        return read, unread

    def _followers(self, models: Iterable[str]) -> set[str]:
        """Return the models whose deployment follows an alias."""
        found = set()
        for model in models:
            spec = self._registry.deployments.known_spec(model)
            if spec is not None and not spec.deleted and Reference.parse(spec.reference).alias is not None:
                found.add(model)
        return found

    def _read(self, names: list[str]) -> tuple[Read, Unread]:
        if not names:
            return {}, {}
        parallel = parallel_reads(self._registry.store, _PARALLEL_READS)
        with ThreadPoolExecutor(min(parallel, len(names)), thread_name_prefix="deployments") as pool:
            found = dict(zip(names, pool.map(self._one, names), strict=True))
        read = {name: one for name, one in found.items() if isinstance(one, DesiredDeployment)}
        unread = {name: one for name, one in found.items() if isinstance(one, str)}
        for name, desired_deployment in read.items():
            if desired_deployment.problem or desired_deployment.trial_problem:
                self.read_again(name)
        for name in unread:
            self.read_again(name)
        return read, unread

    def _one(self, name: str) -> DesiredDeployment | str | None:
        """Return a desired state, the reason why it cannot be read, or None if the model was never deployed."""
        try:
            # While a commit is pending, a cached head may be too old.
            fresh = not self._registry.deployments.is_settled(name)
            revision = self._registry.deployments.get(name, fresh=fresh, deleted=True)
        except NotFoundError:
            return None
        except (DamagedRevisionError, StoreWentBackwardsError) as error:
            return error.message
        try:
            return self._follow(self._desired_state.of(revision))
        except ControlPlaneError as error:
            return f"failed to read revision {revision.number}: {error}"
