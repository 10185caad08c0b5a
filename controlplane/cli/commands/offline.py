"""Options of the commands that can work on the store itself, without a control plane."""

from typing import Annotated

import typer

OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Work directly on the store, without a control plane."),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="With --offline: URL of the store. Default: that of the settings."),
]
EndpointOption = Annotated[
    str | None,
    typer.Option("--endpoint", help="With --offline: URL of the S3 endpoint. Default: that of the settings, or AWS."),
]
