"""GPUs, MIG instances and hosts of the Triton servers."""

from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.session import Session, command

if TYPE_CHECKING:
    from controlplane.domain.devices import Device

PANEL = "Operate"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "devices",
        panel=PANEL,
        examples=("tritonctl devices", "tritonctl devices -o json | jq '.[].devices[] | {name, used_bytes}'"),
        watch=True,
    )(devices)


def devices(
    session: Session,
    server: Annotated[str | None, typer.Option("--server", "-s", help="Show only this server.")] = None,
) -> None:
    """Show the GPUs, MIG instances and hosts of the servers: memory, budget, load and health."""
    from controlplane.cli.output import size
    from controlplane.domain.devices import ServerDevices

    out = session.out()
    with session.client() as client:
        documents = client.get("/v1/devices", server=server)["items"]
        found = [client.read(ServerDevices, item) for item in documents]
    out.result(documents)
    out.table(
        ("server", "device", "product", "total", "used", "free", "budget", "load", "temp", "power", "state"),
        (
            (
                one.server,
                device.name,
                device.product,
                size(device.total_bytes) if device.total_bytes else "-",
                "-" if device.used_bytes is None else size(device.used_bytes),
                "-" if device.free_bytes is None else size(device.free_bytes),
                size(device.budget_bytes),
                "-" if device.utilisation is None else f"{device.utilisation:.0%}",
                "-" if device.temperature_celsius is None else f"{device.temperature_celsius:.0f} °C",
                _power(device),
                _state(device, one.error),
            )
            for one in found
            for device in one.devices
        ),
        empty="no server reports its devices",
        wide=("budget", "temp", "power"),
    )
    for one in found:
        if one.error:
            out.note(f"{one.server}: {one.error}", style="yellow")


def _power(device: "Device") -> str:
    if device.power_watts is None:
        return "-"
    limit = "" if device.power_limit_watts is None else f" of {device.power_limit_watts:.0f}"
    return f"{device.power_watts:.0f}{limit} W"


def _state(device: "Device", stale: str) -> str:
    """Return the most important facts about a device's state, the worst first."""
    if device.error:
        return f"{'lost' if device.lost else 'not readable'}: {device.error}"
    facts = []
    if device.ecc_uncorrected:
        facts.append(f"{device.ecc_uncorrected} uncorrected memory errors")
    if device.throttle_reasons:
        facts.append(f"throttled: {', '.join(device.throttle_reasons)}")
    if not device.allocatable:
        facts.append("in MIG mode")
    if stale:
        facts.append("last known state")
    return "; ".join(facts) or "ok"
