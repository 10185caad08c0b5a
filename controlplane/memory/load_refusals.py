"""Evaluates Triton's refusals of loads with respect to memory and GPUs. Mutable; owned by the scheduler.

A refusal is also evidence: Triton had less memory than the ledger assumed, or does not use a GPU that the driver
reports.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from controlplane.domain.deployment import Mode
from controlplane.domain.names import candidate_name
from controlplane.errors import LoadRefusedError
from controlplane.lifecycle.actions import Load
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.executor import Outcome
from controlplane.memory.gpu_refusals import unusable_gpus
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.model_state import ModelMemoryState
from controlplane.memory.policy.types import ModelMemory
from controlplane.memory.sizing import FootprintResolver

_ALL = 0.98
"""Upper limit, as a share of what could be freed, of a forced reservation; the freeable size fluctuates slightly."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|cannot allocate memory|failed to allocate|unable to allocate|memoryerror"
    r"|insufficient memory|not enough memory",
    re.IGNORECASE,
)


class LoadRefusals:
    """Evaluates the refusals of one server.

    Args:
        accounts: Its ledger.
        sizes: What versions need; corrected here.
        models: The models as the policies see them.
        counters: Event counts.
    """

    def __init__(
        self, accounts: LedgerSync, sizes: FootprintResolver, models: Mapping[str, ModelMemory], counters: Counter[str]
    ) -> None:
        self._accounts = accounts
        self._sizes = sizes
        self._models = models
        self._counters = counters

    def gpus(self, model_state: ModelMemoryState, outcome: Outcome, now: datetime) -> str | None:
        """Learn from a refused load which GPUs Triton does not use.

        Returns:
            The message to report; empty if it is already known. None if the failure is the model's own, including a
            load that asked for a GPU that was already known as unusable when the load began.
        """
        if not isinstance(outcome.action, Load) or not isinstance(outcome.error, LoadRefusedError):
            return None
        found = unusable_gpus(str(outcome.error), self._accounts.present_gpus)
        news = found - self._accounts.unusable.keys()
        self._accounts.refuse(found, now)
        if not found & model_state.ticket.gpus:
            return None
        return f"Triton does not use {', '.join(sorted(news))}: {outcome.error}" if news else ""

    def out_of_memory(
        self, model_state: ModelMemoryState, desired_deployment: DesiredDeployment | None, outcome: Outcome
    ) -> bool:
        """Return whether Triton ran out of memory for a load that is worth a retry with a larger footprint."""
        action, model = outcome.action, model_state.model
        if not isinstance(action, Load) or not isinstance(outcome.error, LoadRefusedError):
            return False
        if not _OUT_OF_MEMORY.search(str(outcome.error)):
            return False
        prepared = desired_deployment.prepared.get(action.target) if desired_deployment else None
        if prepared is None:
            return False
        size = self._sizes.of(prepared, model, self._accounts)
        self._sizes.correct(size)
        self._counters["out_of_memory"] += 1
        if model_state.ticket.retried_after_oom:
            model_state.ticket.retry_after_oom(retry=False)
            self._sizes.force(size, 0)
            return False
        model_state.ticket.retry_after_oom(retry=True)
        self._sizes.force(size, max((self._more_than_free(model, device) for device in size.devices), default=0))
        return True

    def _more_than_free(self, model: str, device: str) -> int:
        """Return more bytes than the ledger says are free, so that the next attempt evicts a model, if there is one."""
        ledger = self._accounts.ledger
        budget = ledger.budgets[device].bytes - ledger.unaccounted(device)
        fixed = own = 0
        for holding in ledger.holdings:
            if holding.device == device:
                name = holding.slot.triton_name.removesuffix(candidate_name(""))
                known = self._models.get(name)
                own += holding.bytes if name == model else 0
                fixed += holding.bytes if known is not None and known.mode is Mode.PINNED and name != model else 0
        return min(ledger.free(device) + own + 1, int((budget - fixed) * _ALL))
