"""What Triton's refusal of a load says about memory and GPUs, and what is learnt from it. Mutable; the steward's own.

A refusal is evidence, not only a failure: Triton had less memory than the ledger thought, or does not use a GPU that
the driver tells of.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from controlplane.domain.deployment import Mode
from controlplane.domain.names import candidate_name
from controlplane.errors import LoadRefusedError
from controlplane.memory.types import ModelMemory
from controlplane.reconciler.accounts import Accounts
from controlplane.reconciler.actions import Load
from controlplane.reconciler.executor import Outcome
from controlplane.reconciler.gpu_refusals import unusable_gpus
from controlplane.reconciler.sizing import Sizes
from controlplane.reconciler.tenants import Tenant
from controlplane.reconciler.wishes import Wish

_ALL = 0.98
"""So much of what could be freed is asked for at most, as its figure moves a little all the time."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|cannot allocate memory|failed to allocate|unable to allocate|memoryerror"
    r"|insufficient memory|not enough memory",
    re.IGNORECASE,
)


class Refusals:
    """Takes in the refusals of one server.

    Args:
        accounts: Its ledger.
        sizes: What versions need; corrected here.
        models: The models as the decisions see them.
        counters: What happened how often.
    """

    def __init__(
        self, accounts: Accounts, sizes: Sizes, models: Mapping[str, ModelMemory], counters: Counter[str]
    ) -> None:
        self._accounts = accounts
        self._sizes = sizes
        self._models = models
        self._counters = counters

    def gpus(self, tenant: Tenant, outcome: Outcome, now: datetime) -> str | None:
        """Learn from a refused load which GPUs Triton does not use.

        Returns:
            What there is to tell; empty where that was known by now. None: it is the model's own failure, also where it
            asks for a GPU that did not count any more when its load began.
        """
        if not isinstance(outcome.action, Load) or not isinstance(outcome.error, LoadRefusedError):
            return None
        found = unusable_gpus(str(outcome.error), self._accounts.present_gpus)
        news = found - self._accounts.unusable.keys()
        self._accounts.refuse(found, now)
        if not found & tenant.gpus:
            return None
        return f"Triton does not use {', '.join(sorted(news))}: {outcome.error}" if news else ""

    def out_of_memory(self, tenant: Tenant, wish: Wish | None, outcome: Outcome) -> bool:
        """Whether Triton had no memory for a load, and it is worth another round with a larger footprint."""
        action, model = outcome.action, tenant.model
        if not isinstance(action, Load) or not isinstance(outcome.error, LoadRefusedError):
            return False
        if not _OUT_OF_MEMORY.search(str(outcome.error)):
            return False
        prepared = wish.prepared.get(action.target) if wish else None
        if prepared is None:
            return False
        size = self._sizes.of(prepared, model, self._accounts)
        self._sizes.correct(size)
        self._counters["out_of_memory"] += 1
        if tenant.second_round:
            tenant.second_round = False
            self._sizes.force(size, 0)
            return False
        tenant.second_round = True
        self._sizes.force(size, max((self._more_than_free(model, device) for device in size.devices), default=0))
        return True

    def _more_than_free(self, model: str, device: str) -> int:
        """What is free by the ledger was not there: ask for more, so that somebody goes, if there is anybody."""
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
