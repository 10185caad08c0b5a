"""Rollouts by evidence: every instance splits the traffic and measures; the leader decides and records the decision."""

import asyncio
import logging
import time
from datetime import UTC, datetime

from controlplane.domain.deployment import DeploymentSpec, Rollout
from controlplane.domain.evidence import Evidence
from controlplane.domain.names import validate_model_name
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.decision import RolloutAction, RolloutDecision
from controlplane.errors import ConflictError, ControlPlaneError, NotFoundError
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.reconciler.controller import Reconciler
from controlplane.reconciler.rollout_readiness import RolloutReadiness
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.registry.rollout_stats import RolloutStats
from controlplane.services.deployments import Deployments
from controlplane.services.rollout_view import RolloutView, rollout_view

logger = logging.getLogger(__name__)

ACTOR = "rollouts"
_LOOK_SECONDS = 0.25
"""Interval between two evaluations of the evidence. The tests allow any number of them."""
_KEEP_SECONDS = 5.0
"""Interval between two writes of the measurements, which bounds how much a killed instance loses."""


class Rollouts:
    """Use cases for rollouts, and the task that advances them. Used from one event loop.

    Args:
        registry: The registry in the store.
        deployments: Commits decisions.
        reconciler: Reports which versions are ready.
        splits: Split the traffic and measure it.
        instance: Identifies this process.
    """

    def __init__(
        self,
        registry: Registry,
        deployments: Deployments,
        reconciler: Reconciler,
        splits: TrafficSplits,
        *,
        replica: str,
    ) -> None:
        self._registry = registry
        self._deployments = deployments
        self._reconciler = reconciler
        self._splits = splits
        self._log = RolloutStats(registry.store, replica)
        self._others: dict[str, Evidence] = {}
        self._kept: dict[str, Evidence] = {}
        self._kept_at = 0.0
        self._ended: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to advance rollouts."""
        self._task = asyncio.create_task(self._run(), name="rollouts")

    async def stop(self) -> None:
        """Stop, and store the measurements."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            await self._keep(self._reconciler.trials())
        except ControlPlaneError as error:
            logger.warning("failed to store the measurements of rollouts: %s", error)
        await self._splits.close()

    # Public methods

    async def page(self, *, after: str, limit: int) -> list[RolloutView]:
        """Return the newest rollout of every deployment that has one, by model."""
        revisions = await asyncio.to_thread(self._registry.deployments.list)
        chosen = sorted(
            (one for one in revisions if one.spec.rollout is not None and one.spec.model > after),
            key=lambda one: one.spec.model,
        )
        return [await self._view(one) for one in chosen[:limit]]

    async def get(self, model: str) -> RolloutView:
        """Return a model's rollout: the one in progress, or the last one.

        Raises:
            NotFoundError: The model is not deployed, or never had a rollout by evidence.
        """
        validate_model_name(model)
        revision = await asyncio.to_thread(self._registry.deployments.get, model, fresh=True)
        return await self._view(revision)

    def measured(self) -> list[tuple[str, Rollout, float, Evidence]]:
        """Return model, rollout, the new version's share and this instance's measurements, for rollouts in progress."""
        return [(one.model, one.rollout, one.weight, one.meter.evidence()) for one in self._splits.all()]

    async def promote(self, model: str, *, actor: str, reason: str) -> RolloutView:
        """Make the new version active now, regardless of the measurements.

        Raises:
            NotFoundError: The model is not deployed.
            ConflictError: No rollout is in progress.
        """
        return await self._by_hand(model, RolloutAction.PROMOTE, actor, reason)

    async def abort(self, model: str, *, actor: str, reason: str) -> RolloutView:
        """Withdraw the new version now; the old one receives all requests immediately.

        Raises:
            NotFoundError: The model is not deployed.
            ConflictError: No rollout is in progress.
        """
        return await self._by_hand(model, RolloutAction.ABORT, actor, reason)

    async def pause(self, model: str, *, pause: bool, actor: str, reason: str) -> RolloutView:
        """Keep a rollout at its present step, or resume it. A version that proves to be worse is withdrawn even so.

        Raises:
            NotFoundError: The model is not deployed.
            ConflictError: No rollout is in progress.
        """
        why = f"{'paused' if pause else 'resumed'} by {actor}" + (f": {reason}" if reason else "")

        def change(spec: DeploymentSpec) -> tuple[DeploymentSpec, str]:
            return rules.paused(spec, pause=pause, why=why), f"rollout of version {rules.required(spec).version} {why}"

        await self._deployments.change(model, change, actor=actor)
        return await self.get(model)

    async def _by_hand(self, model: str, action: RolloutAction, actor: str, reason: str) -> RolloutView:
        verb = "promoted" if action is RolloutAction.PROMOTE else "aborted"
        why = f"{verb} by {actor}" + (f": {reason}" if reason else "")

        def change(spec: DeploymentSpec) -> tuple[DeploymentSpec, str]:
            rollout = rules.required(spec)
            evidence = self._evidence(model, rollout.id)
            seen = "; ".join(finding.figures for finding in rules.findings(rollout, evidence))
            decision = RolloutDecision(action, f"{why} ({seen})")
            return rules.apply(spec, decision, evidence, _now()), f"rollout of version {rollout.version} {why} ({seen})"

        deployment = await self._deployments.change(model, change, actor=actor)
        if deployment.spec.rollout is not None:
            await self._over(model, deployment.spec.rollout.id)
        return await self.get(model)

    async def _view(self, revision: DeploymentRevision) -> RolloutView:
        spec = revision.spec
        rollout = spec.rollout
        if rollout is None:
            raise NotFoundError(
                f"{spec.model} has had no rollout since revision {revision.number}; deploy a version "
                "with --strategy canary, shadow or pinned",
                model=spec.model,
            )
        if spec.trial is None:
            unloaded = (
                "the model is unloaded; the rollout continues when it is loaded again" if rollout.phase.active else ""
            )
            return rollout_view(revision, rollout, rollout.evidence, ready=False, message=unloaded)
        evidence = self._evidence(spec.model, rollout.id)
        trial = self._reconciler.trials().get(spec.model)
        if trial is None or trial.revision.number < revision.number:
            return rollout_view(revision, rollout, evidence, ready=False, message="not observed yet")
        decision = rules.decide(rollout, evidence, trial.readiness, _now())
        return rollout_view(revision, rollout, evidence, ready=trial.readiness.ready, message=decision.reason)

    # Background task

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except ControlPlaneError as error:
                logger.warning("failed to evaluate the rollouts: %s", error)
            except Exception:
                # An error must not end the loop; the next evaluation may succeed.
                logger.exception("unexpected error in the rollouts loop")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        known = self._reconciler.trials()
        # The reconciler may not know yet that a rollout has ended; the traffic must not return to it.
        self._ended &= {rules.required(trial.revision.spec).id for trial in known.values()}
        trials = {
            model: trial for model, trial in known.items() if rules.required(trial.revision.spec).id not in self._ended
        }
        for split in self._splits.all():
            if split.model in trials:
                continue
            spec = self._reconciler.spec(split.model)
            rollout = spec.rollout if spec is not None else None
            if rollout is not None and rollout.id == split.rollout.id and rollout.phase.active:
                split.servers = ()  # the model is unloaded; its rollout continues when it is loaded again
            else:
                await self._over(split.model, split.rollout.id)
        for model, trial in trials.items():
            rollout = rules.required(trial.revision.spec)
            await self._splits.keep(model, rollout, trial.servers)
        if time.monotonic() - self._kept_at >= _KEEP_SECONDS:
            await self._keep(trials)
            self._kept_at = time.monotonic()
        if self._reconciler.leading:
            for model, trial in trials.items():
                await self._decide(model, trial)

    async def _decide(self, model: str, trial: RolloutReadiness) -> None:
        rollout = rules.required(trial.revision.spec)
        evidence, now = self._evidence(model, rollout.id), _now()
        decision = rules.decide(rollout, evidence, trial.readiness, now)
        if decision.action is RolloutAction.HOLD:
            return

        def change(spec: DeploymentSpec) -> tuple[DeploymentSpec, str]:
            if spec.trial != rollout:
                raise ConflictError(f"the rollout of {model} changed during the decision", model=model)
            return rules.apply(
                spec, decision, evidence, now
            ), f"rollout of version {rollout.version}: {decision.reason}"

        try:
            deployment = await self._deployments.change(model, change, actor=ACTOR)
        except (ConflictError, NotFoundError):
            return  # the next evaluation sees the new state
        if deployment.spec.trial is None:
            await self._over(model, rollout.id)
        else:
            await self._splits.keep(model, deployment.spec.trial, trial.servers)

    async def _over(self, model: str, rollout_id: str) -> None:
        """Stop the split of a rollout that has ended; its measurements are in the revision that ended it."""
        self._ended.add(rollout_id)
        await self._splits.drop(model)
        if not self._reconciler.leading:
            return
        try:
            await asyncio.to_thread(self._log.forget, model, rollout_id)
        except ControlPlaneError as error:
            logger.warning("failed to delete the measurements of an ended rollout of %s: %s", model, error)

    def _evidence(self, model: str, rollout_id: str) -> Evidence:
        return self._splits.evidence(model, rollout_id).plus(self._others.get(rollout_id, Evidence()))

    async def _keep(self, trials: dict[str, RolloutReadiness]) -> None:
        """Store the measurements of this instance, and read those of the others."""
        ids = set()
        for model, trial in trials.items():
            rollout = rules.required(trial.revision.spec)
            ids.add(rollout.id)
            mine = self._splits.evidence(model, rollout.id)
            if mine != self._kept.get(rollout.id, Evidence()):
                await asyncio.to_thread(self._log.put, model, rollout.id, mine)
                self._kept[rollout.id] = mine
            self._others[rollout.id] = await asyncio.to_thread(self._log.others, model, rollout.id)
        for known in (self._kept, self._others):
            for gone in known.keys() - ids:
                del known[gone]


def _now() -> datetime:
    return datetime.now(UTC)
