"""What the front door does, for who asks."""

from controlplane.errors import NotFoundError
from controlplane.gateway.front_door import FrontDoor
from controlplane.gateway.view import GatewayAddress, GatewayView


class Gateway:
    """Tells how the front door stands."""

    def __init__(self, front_door: FrontDoor | None) -> None:
        self._front_door = front_door

    def address(self) -> GatewayAddress | None:
        """Return where it is; None where there is none."""
        return self._front_door.address() if self._front_door else None

    def view(self) -> GatewayView:
        """Return how it stands.

        Raises:
            NotFoundError: It is turned off.
        """
        if self._front_door is None:
            raise NotFoundError(
                "this control plane has no front door: the setting gateway.enabled is off, or HAProxy is not installed"
            )
        return self._front_door.view()
