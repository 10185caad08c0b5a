"""Books a load that is done: each version that came gets what is its own of what was reserved for all together."""

from collections.abc import Mapping
from datetime import datetime

from controlplane.memory.types import HOST, Slot
from controlplane.reconciler.accounts import Accounts, replaced
from controlplane.reconciler.tenants import Need, Tenant


def book_load(
    accounts: Accounts, tenant: Tenant, name: str, need: Need, grown: Mapping[str, int], step: int, now: datetime
) -> dict[str, int]:
    """Take a load that is done into the ledger.

    What the versions had before, under the same name, is on its way out. The new ones count for what is seen of them;
    where nothing is seen, for what a device's use has grown by, where that can be told; else for what was reserved.

    Args:
        accounts: The server's ledger, up to date with a reading from after the load.
        tenant: The model.
        name: The Triton name that was loaded.
        need: What was reserved.
        grown: By how much the use of each device has grown over the load.
        step: The loop's step.
        now: The time.

    Returns:
        By how much the one version that was loaded has made the use of its devices grow; empty where that says nothing
        of it: several came, others moved meanwhile, or what it replaces may have left the same device.
    """
    shares = {
        Slot(name, version): {device: one.reserve_bytes for device, one in by_device.items()}
        for version, by_device in need.versions.items()
    }
    for slot in shares.keys() - {need.slot}:
        accounts.set_aside(slot, tenant.processes.get(slot.version, frozenset()), step, now)
    accounts.ledger = accounts.ledger.divided(need.slot, shares)
    answers = Slot(name, max(need.versions))
    accounts.promise(answers, shares[answers])
    told: dict[str, int] = {}
    for slot, sizes in shares.items():
        seen = {device: accounts.seen_bytes(slot, device) for device in dict.fromkeys((HOST, *sizes))}
        measured = {device: size for device, size in seen.items() if size is not None}
        unseen = {device: grown.get(device, 0) for device in sizes if seen[device] is None}
        left = {holding.device for holding in accounts.ledger.of(replaced(slot))}
        if len(shares) == 1 and tenant.alone and not left & unseen.keys() and all(size > 0 for size in unseen.values()):
            told = unseen
        accounts.ledger = accounts.ledger.resident(slot, measured | told, now)
    return told
