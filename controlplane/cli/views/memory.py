"""Output of ledgers, explanations and plans."""

from collections.abc import Mapping, Sequence

from rich.text import Text

from controlplane.cli.output import Output, ago, size, span
from controlplane.cli.views.deployment_list import expiry
from controlplane.client.memory import DeviceMemory, Explanation, MemoryHolder, Plan, ServerMemory, ServerPlan
from controlplane.client.models import Footprint, ModelMemory

BAR_WIDTH = 40
_PARTS = (
    # A different character for each part, so that they differ without colours as well.
    ("resident", "█", "green"),
    ("loading", "▓", "cyan"),
    ("reserved", "▒", "blue"),
    ("unloading", "▞", "magenta"),
    ("unaccounted", "░", "yellow"),
    ("free", "·", "dim"),
)
_STATE_STYLES = {"loaded": "green", "loading": "cyan", "queued": "yellow", "failed": "red", "unloaded": "dim"}
_SHOWN_EVICTIONS = 5


def bar(device: DeviceMemory, width: int = BAR_WIDTH) -> Text:
    """Draw how a device's budget is used. Each part that is not zero gets at least one cell."""
    sizes = {name: max(0, getattr(device, f"{name}_bytes")) for name, _, _ in _PARTS}
    total = max(device.budget_bytes, sum(sizes.values()), 1)
    cells = {name: max(round(count * width / total), 1) if count else 0 for name, count in sizes.items()}
    cells["free"] = 0
    while sum(cells.values()) > width:
        cells[max(cells, key=lambda name: cells[name])] -= 1
    cells["free"] = width - sum(cells.values())
    return Text.assemble(*((sign * cells[name], style) for name, sign, style in _PARTS if cells[name]))


def figures(device: DeviceMemory) -> Text:
    """Return a device's figures without those that are 0; the free bytes are always included."""
    parts = [Text(f"{size(device.budget_bytes)} budget of {size(device.total_bytes)}")]
    for name, sign, style in _PARTS:
        count = getattr(device, f"{name}_bytes")
        if count or name in {"resident", "free"}:
            parts.append(Text.assemble((sign, style), f" {name} {size(max(count, 0))}"))
    return Text("  ").join(parts)


def show_devices(out: Output, servers: Sequence[ServerMemory]) -> None:
    """Print a bar for each device."""
    rows = [(one.server, device) for one in servers for device in one.devices]
    names = [f"{server}  {device.device}" for server, device in rows]
    widest = max(map(len, names), default=0)
    for name, (_, device) in zip(names, rows, strict=True):
        out.line(Text.assemble((name.ljust(widest), "bold"), "  ", bar(device)))
        out.line(Text.assemble(" " * (widest + 2), figures(device)))
    for one in servers:
        if not one.devices:
            out.note(f"{one.server}: no device with a budget is known yet", style="yellow")


def show_memory(out: Output, servers: Sequence[ServerMemory]) -> None:
    """Print devices, models, waiting loads, and evictions."""
    if not servers:
        out.note("this control plane has no Triton servers")
        return
    show_devices(out, servers)
    models = [(one.server, model) for one in servers for model in one.models]
    if models:
        out.line()
        out.table(
            ("model", "version", "server", "mode", "state", "memory", "needs", "last used", "expires", "why"),
            (
                (
                    model.model,
                    model.version,
                    server,
                    model.mode,
                    state(model),
                    held(model),
                    needs(model),
                    ago(model.last_used_at),
                    expiry(model),
                    model.why,
                )
                for server, model in sorted(models, key=lambda pair: -pair[1].held_bytes)
            ),
        )
    _show_moves(out, servers)


def _show_moves(out: Output, servers: Sequence[ServerMemory]) -> None:
    for one in servers:
        if one.queue:
            out.line()
            out.line(f"{one.server}: waiting loads, next first", style="bold")
            out.table(
                ("model", "priority", "waiting for", "deadline", "why"),
                ((w.model, w.priority, ago(w.since).removesuffix(" ago"), ago(w.deadline), w.why) for w in one.queue),
            )
        if one.evictions:
            out.line()
            out.line(f"{one.server}: latest evictions", style="bold")
            out.table(
                ("when", "model", "freed", "for", "why"),
                ((ago(e.at), e.victim, sizes(e.bytes), e.for_model, e.why) for e in one.evictions[:_SHOWN_EVICTIONS]),
            )
        if one.leak is not None and (one.leak.why or one.leak.restarts):
            out.line()
            out.line(leaking(one), style="yellow" if one.leak.why else "")
        if one.next_victims:
            out.line()
            out.line(f"{one.server}: next evictions, if memory is needed ({one.policy}): {', '.join(one.next_victims)}")


def leaking(server: ServerMemory) -> str:
    """Return what is done about memory that a server has leaked."""
    leak = server.leak
    assert leak is not None
    action = {"watching": "", "draining": "draining before a restart: ", "restarting": "restarting: "}
    text = f"{server.server}: {action.get(leak.state, '')}{leak.why or 'no leaked memory'}"
    times = "once" if leak.restarts == 1 else f"{leak.restarts} times"
    return text + (f" (restarted {times} because of leaked memory, {ago(leak.restarted_at)})" if leak.restarts else "")


def show_why(out: Output, why: Explanation) -> None:
    """Print the explanation of a model's state and placement."""
    if not why.servers:
        out.line(f"no state of {why.model} is known yet")
    if why.placement is not None:
        from controlplane.cli.views.placement import show_placement

        show_placement(out, why.model, why.placement)
    elsewhere = [one for one in why.servers if one.model.state == "assigned-elsewhere"]
    for number, one in enumerate(one for one in why.servers if one.model.state != "assigned-elsewhere"):
        if number:
            out.line()
        model = one.model
        out.line(
            Text.assemble(
                (f"{why.model}:{model.version}", "bold cyan"), " is ", state(model), f" on {one.server}: {model.why}"
            )
        )
        if one.next:
            out.line(f"next: {one.next}")
        out.line()
        out.facts(
            (
                ("mode", model.mode + (f", priority {model.priority}" if model.priority else "")),
                ("memory", "\n".join(map(_footprint, model.footprint))),
                ("loaded", ago(model.loaded_at) if model.loaded_at else None),
                ("last used", _use(model)),
                ("expires", ago(model.expires_at) if model.expires_at else None),
                ("held", f"until {ago(model.held_until)}" if model.held_until else None),
                ("last load", span(model.load_seconds) if model.load_seconds else None),
                ("on this server", f"{model.loads} loads, {model.evictions} evictions"),
                ("a load needs", sizes(one.needed)),
                ("free", sizes(one.free)),
                ("could be freed", sizes(one.could_be_freed)),
            )
        )
        show_holders(out, one.holders)
        for record in one.evictions[:_SHOWN_EVICTIONS]:
            out.line(f"{ago(record.at)}: {record.victim} was evicted ({sizes(record.bytes)}): {record.why}")
    if elsewhere:
        out.line()
        out.line(f"not on {', '.join(one.server for one in elsewhere)}: {elsewhere[0].model.why}")


def show_holders(out: Output, holders: Sequence[MemoryHolder]) -> None:
    """Print what prevents a load from getting memory."""
    if holders:
        out.line()
        out.table(
            ("used by", "device", "memory", "why it stays"),
            ((one.model or "(unaccounted)", one.device, size(one.bytes), one.why) for one in holders),
        )


_DECISIONS = {
    "nothing": ("nothing to do", "green"),
    "admit": ("can load now", "green"),
    "evict": ("can load after evictions", "yellow"),
    "queue": ("must wait", "yellow"),
    "refuse": ("not possible", "red"),
}


def show_plan(out: Output, plan: Plan) -> None:
    """Print what a load would do."""
    for number, one in enumerate(plan.servers):
        if number:
            out.line()
        decision, style = _DECISIONS.get(one.decision, (one.decision, ""))
        if one.decision == "admit" and one.beside is False:
            decision, style = "can load after the old version is unloaded", "yellow"
        out.line(Text.assemble((f"{plan.model}:{plan.version}", "bold cyan"), f" on {one.server}: ", (decision, style)))
        if one.why:
            out.line(one.why)
        out.facts(
            (
                ("placed", _placed(one)),
                ("needs", sizes(one.needed)),
                ("free", sizes(one.free)),
                ("could be freed", sizes(one.could_be_freed)),
                ("bytes to fetch", size(one.fetch_bytes) if one.decision != "nothing" else None),
                ("takes", f"{span(one.seconds)}: {one.seconds_why}" if one.seconds_why else None),
                ("switch", _switch(one)),
            )
        )
        if one.evictions:
            out.line()
            out.table(
                ("evicted", "frees", "why"), ((gone.model, sizes(gone.bytes), gone.why) for gone in one.evictions)
            )
        show_holders(out, one.holders)


def _placed(one: ServerPlan) -> str | None:
    """Return the devices that would be used; None if there is no choice."""
    if not one.devices or one.devices == ("host",):
        return None
    devices = ", ".join(one.devices)
    return one.placed_why if devices in one.placed_why else f"{devices}: {one.placed_why}".removesuffix(": ")


def _switch(one: ServerPlan) -> str | None:
    if one.beside is None:
        return None
    if one.beside:
        return "the new version loads beside the old one: no interruption"
    return f"the old version is unloaded first: unavailable for about {span(one.gap_seconds)}"


def state(model: ModelMemory) -> Text:
    """Return a model's state."""
    return Text(model.state, style=_STATE_STYLES.get(model.state, ""))


def held(model: ModelMemory) -> str:
    """Return what the ledger counts for a model."""
    return size(model.held_bytes) if model.held_bytes else "-"


def needs(model: ModelMemory) -> str:
    """Return what a model's version needs, and whether that is an estimate."""
    if not model.footprint:
        return "-"
    guessed = "about " if any(one.source == "estimate" for one in model.footprint) else ""
    return guessed + size(sum(one.bytes for one in model.footprint))


def sizes(by_device: Mapping[str, int]) -> str:
    """Return bytes by device as text."""
    return ", ".join(f"{size(count)} on {device}" for device, count in by_device.items())


def _footprint(one: Footprint) -> str:
    known = f"needs {size(one.bytes)} ({one.source}"
    known += f", at most {size(one.error_bytes)} more)" if one.error_bytes else ")"
    peak = f", {size(one.load_peak_bytes)} during the load" if one.load_peak_bytes > one.bytes else ""
    peak += f", peak {size(one.inference_peak_bytes)} during inference" if one.inference_peak_bytes > one.bytes else ""
    peak += f", {size(one.left_bytes)} not released by an unload" if one.left_bytes else ""
    now = f", holds {size(one.held_bytes)}" if one.held_bytes else ""
    return f"{one.device}: {known}{peak}{now}"


def _use(model: ModelMemory) -> str:
    used = ago(model.last_used_at) if model.last_used_at else "never, as far as known"
    rate = f", {model.rate_per_second:.2g} requests/s" if model.rate_per_second >= 0.005 else ""
    return used + rate + (f", {model.pending} pending" if model.pending else "")
