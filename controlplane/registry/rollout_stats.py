"""Measurements of a rollout: a pruned chain for each instance, so that a kill loses at most a few seconds."""

import logging

from controlplane.domain.evidence import Evidence
from controlplane.domain.names import validate_model_name
from controlplane.registry.chain import Chain
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "rollouts/"
_KEPT = 2


class RolloutStats:
    """Reads and writes the measurements of instances. Safe to use from several threads.

    Args:
        store: The bucket.
        instance: The id of this process; unique, also after a restart.
    """

    def __init__(self, store: ObjectStore, replica: str) -> None:
        self._store = store
        self._replica = replica

    def put(self, model: str, rollout_id: str, evidence: Evidence) -> None:
        """Store the measurements of this instance since the rollout began.

        Raises:
            StoreError: The store failed.
        """
        chain = self._chain(model, rollout_id, self._replica)
        body = evidence.model_dump(mode="json")
        chain.append(body, after=chain.head(), actor=self._replica, reason="measured")
        chain.prune(_KEPT)

    def others(self, model: str, rollout_id: str) -> Evidence:
        """Return the sum of the measurements of all other instances, including dead ones.

        Raises:
            StoreError: The store failed.
        """
        total = Evidence()
        for replica in self._store.list_folders(self._folder(model, rollout_id)):
            head = self._chain(model, rollout_id, replica).head() if replica != self._replica else None
            if head is not None:
                total = total.plus(Evidence.model_validate(head.body))
        return total

    def forget(self, model: str, rollout_id: str) -> None:
        """Remove a rollout's measurements; the deployment's revision that ended the rollout contains their sum.

        Raises:
            StoreError: The store failed.
        """
        for info in list(self._store.list(self._folder(model, rollout_id))):
            self._store.delete(info.key)

    @staticmethod
    def _folder(model: str, rollout_id: str) -> str:
        return f"{PREFIX}{validate_model_name(model)}/{rollout_id}/"

    def _chain(self, model: str, rollout_id: str, replica: str) -> Chain:
        return Chain(self._store, f"{self._folder(model, rollout_id)}{replica}/", pruned=True)
