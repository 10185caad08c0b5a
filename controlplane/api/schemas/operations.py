"""Operations and events."""

from pydantic import BaseModel, Field

from controlplane.domain.states import Event
from controlplane.services.operations import Operation


class OperationPage(BaseModel):
    """A page of operations, newest first."""

    items: list[Operation] = Field(description="The operations.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")


class EventList(BaseModel):
    """Events of this instance."""

    items: list[Event] = Field(description="The events, oldest first.")
    last_id: int = Field(description="Pass it as `after` to get the events that follow.")
