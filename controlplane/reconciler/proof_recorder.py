"""Keeps passed proofs on record. Belongs to the loop.

A version with a passed proof on record (`controlplane.registry.proofs`) is loaded once: see rule 5.3 of the planner. A
failed proof removes the record, in this process at once.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.errors import ControlPlaneError
from controlplane.lifecycle.actions import Prove
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.state import ProofStatus
from controlplane.reconciler.server_state import TrackedServer
from controlplane.reconciler.tasks import TaskRunner
from controlplane.registry.proofs import ProofKey, Proofs

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 30.0
"""Time until a record that could not be deleted is deleted again."""


@dataclass(frozen=True, slots=True)
class _Passed:
    """Where a proof passed."""

    model: str
    version: int
    server: str


class ProofRecorder:
    """Writes and removes records. One write at a time, in order; of several changes of a record the last one counts.

    Args:
        background: Runs the writes.
        proofs: The records.
        leading: Whether this process may write.
    """

    def __init__(self, background: TaskRunner, proofs: Proofs, *, leading: Callable[[], bool]) -> None:
        self._background = background
        self._proofs = proofs
        self._leading = leading
        self._pending: dict[ProofKey, _Passed | None] = {}
        self._writing = False

    def note(self, server: TrackedServer, desired_deployment: DesiredDeployment | None, outcome: Outcome) -> None:
        """Record the result of a proof: of all golden samples if it passed, of any sample if it failed."""
        action, mark, proof = outcome.action, outcome.mark, outcome.proof
        if not isinstance(action, Prove) or mark is None or proof is None or desired_deployment is None:
            return
        passed = mark is ProofStatus.PASSED
        prepared = desired_deployment.prepared.get(action.target)
        if prepared is None or (action.light and not mark.bad) or (passed and not proof.samples):
            return
        key = server.proof_key(desired_deployment.model, prepared)
        if key is None or (passed and self._proofs.known(key)):
            return
        if not passed:
            self._proofs.forget(key)
        if not self._leading():
            return
        where = _Passed(desired_deployment.model, action.target.version, server.name)
        self._pending[key] = where if passed else None
        self._start()

    def _start(self) -> None:
        if self._pending and not self._writing and self._leading():
            self._writing = True
            self._background.spawn(self._write(), "keep proofs")

    async def _write(self) -> None:
        def write(key: ProofKey, passed: _Passed | None) -> None:
            if passed is None:
                self._proofs.remove(key)
            else:
                self._proofs.put(key, model=passed.model, version=passed.version, server=passed.server)

        try:
            while self._pending and self._leading():
                key, passed = next(iter(self._pending.items()))
                del self._pending[key]
                try:
                    await asyncio.to_thread(write, key, passed)
                except ControlPlaneError as error:
                    logger.warning("the proof of %s cannot be recorded: %s", key.content, error)
                    if passed is None:
                        self._pending.setdefault(key, None)
                        asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._start)
                    return
        finally:
            self._writing = False
