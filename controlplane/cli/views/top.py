"""The live view of `tritonctl top`."""

import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.cli.output import ago
from controlplane.cli.views.deployment_list import expiry
from controlplane.cli.views.memory import bar, figures, held, needs, state
from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError
from controlplane.client.memory import ServerMemory
from controlplane.client.models import ModelMemory

Order = Literal["memory", "used", "rate", "name"]
KEYS: dict[str, Order] = {"m": "memory", "u": "used", "r": "rate", "n": "name"}
_HELP = "m memory · u last use · r rate · n name · q quit"
_NEVER = datetime.min.replace(tzinfo=UTC)


def ordered(servers: Sequence[ServerMemory], order: Order) -> list[tuple[str, ModelMemory]]:
    """Return the models of all servers in the requested order."""
    by_order: dict[Order, Callable[[ModelMemory], tuple[object, ...]]] = {
        "memory": lambda model: (-model.held_bytes, model.model),
        "used": lambda model: (-(model.last_used_at or _NEVER).timestamp() if model.last_used_at else 0.0, model.model),
        "rate": lambda model: (-model.rate_per_second, model.model),
        "name": lambda model: (model.model,),
    }
    key = by_order[order]
    pairs = [(one.server, model) for one in servers for model in one.models]
    return sorted(pairs, key=lambda pair: key(pair[1]))


def screen(servers: Sequence[ServerMemory], order: Order, *, height: int = 0, trouble: str = "") -> RenderableType:
    """Draw one screen: devices, then as many models as fit.

    Args:
        servers: The ledgers.
        order: How the models are sorted.
        height: Number of lines available; 0 for no limit.
        trouble: Why the figures are old.
    """
    lines: list[RenderableType] = []
    for one in servers:
        for device in one.devices:
            lines.append(Text.assemble((f"{one.server} {device.device}  ", "bold"), bar(device)))
            lines.append(figures(device))
    loaded = sum(model.state == "loaded" for one in servers for model in one.models)
    waiting = sum(len(one.queue) for one in servers)
    pairs = ordered(servers, order)
    lines.append(Text(f"{loaded} of {len(pairs)} models loaded, {waiting} loads waiting, sorted by {order}"))
    if trouble:
        lines.append(Text(trouble, style="yellow"))
    room = max(height - len(lines) - 3, 1) if height else len(pairs)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("MODEL", "SERVER", "MODE", "STATE", "MEMORY", "NEEDS", "RATE/S", "PENDING", "LAST USED", "EXPIRES"):
        table.add_column(column, no_wrap=True)
    for server, model in pairs[:room]:
        table.add_row(
            Text(model.model),
            Text(server),
            model.mode,
            state(model),
            held(model),
            needs(model),
            f"{model.rate_per_second:.2g}" if model.rate_per_second >= 0.005 else "-",
            str(model.pending or "-"),
            ago(model.last_used_at),
            expiry(model),
        )
    more = [Text(f"… and {len(pairs) - room} more", style="dim")] if len(pairs) > room else []
    return Group(*lines, table, *more)


def live(read: Callable[[], list[ServerMemory]], *, order: Order, interval: float) -> None:
    """Show the screen until the user presses q."""
    console = Console(highlight=False, emoji=False)
    servers, trouble = read(), ""
    with _keys() as next_key, Live(console=console, screen=True, auto_refresh=False) as view:
        due = time.monotonic() + interval
        while True:
            picture = screen(servers, order, height=console.size.height - 1, trouble=trouble)
            view.update(Group(picture, Text(_HELP, style="dim")), refresh=True)
            key = next_key(max(0.0, due - time.monotonic()))
            if key in {"q", "Q", "\x03", "\x04"}:
                return
            order = KEYS.get(key, order)
            if time.monotonic() >= due:
                try:
                    servers, trouble = read(), ""
                except (NotRunningError, WaitTimeoutError, ClientError) as error:
                    trouble = (
                        f"last known state: {error.message}"  # a restart of the control plane is no reason to stop
                    )
                due = time.monotonic() + interval


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Provide single keys as they are pressed; the terminal is restored afterwards."""
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)

    def next_key(seconds: float) -> str:
        ready, _, _ = select.select([number], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        yield next_key
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
