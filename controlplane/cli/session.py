"""The options that all commands share: the address of the control plane and the form of the output.

They are accepted before and after the command's name (``tritonctl -o json ps`` and ``tritonctl ps -o json``), because
both are common. `command` adds them to a function, which gets a `Session` as its first argument in their place.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:  # slow to import: only a command that calls the API needs it
    from controlplane.cli.output import Output
    from controlplane.client.http import Client
    from controlplane.settings import Settings

OutputFormat = Literal["table", "json"]
_PANEL = "Options of every command"
Function = TypeVar("Function", bound=Callable[..., None])

UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="TRITONCTL_URL", help="URL of the control plane's API.", rich_help_panel=_PANEL),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar=["TRITONCTL_DATA_DIR", "CONTROLPLANE_DATA_DIR"],
        help="Data folder of the `tritonctl up` on this machine; without --url, selects the control plane.",
        rich_help_panel=_PANEL,
    ),
]
OutputOption = Annotated[
    OutputFormat | None,
    typer.Option("--output", "-o", help="Output format: `table` (default) or `json`.", rich_help_panel=_PANEL),
]
ActorOption = Annotated[
    str | None,
    typer.Option(
        "--actor",
        envvar="TRITONCTL_ACTOR",
        help="Your name in the history. Default: user@host.",
        rich_help_panel=_PANEL,
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        envvar="TRITONCTL_API_KEY_FILE",
        help="File with the API key. Alternatively, set TRITONCTL_API_KEY to the key itself.",
        rich_help_panel=_PANEL,
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="TRITONCTL_CA_FILE",
        help="CA certificates (PEM) to trust instead of the system's.",
        rich_help_panel=_PANEL,
    ),
]
ClientCertOption = Annotated[
    Path | None,
    typer.Option(
        "--client-cert",
        envvar="TRITONCTL_CLIENT_CERT",
        help="Client certificate and private key (PEM, one file), for a control plane that requires one.",
        rich_help_panel=_PANEL,
    ),
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL, show_default=False)
]


class ParameterSources(Protocol):
    """The part of Typer's context of a command line's level that is needed here."""

    def get_parameter_source(self, name: str, /) -> Enum | None:
        """Return whether a value comes from the command line, the environment or a default."""


@dataclass
class Session:
    """The common options of one run of the CLI, and the objects made from them."""

    url: str | None = None
    data_dir: Path | None = None
    output: OutputFormat = "table"
    actor: str | None = None
    debug: bool = False
    api_key_file: Path | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    _flags: set[str] = field(default_factory=set, init=False, repr=False)

    def merge(self, given: Mapping[str, Any], context: ParameterSources) -> None:
        """Apply the common options of one level of the command line.

        A flag takes precedence over an environment variable, in both positions, and a flag after the command's name
        over one before it. ``--data-dir`` as a flag also takes precedence over ``TRITONCTL_URL``: both select the
        control plane.

        Args:
            given: Values of the options by name; those that are not given are None or False.
            context: Typer's context of that level, which knows where each value comes from.

        Raises:
            typer.BadParameter: An option is given with an empty value, as an unset variable of a shell leaves it.
        """
        for name, value in given.items():
            source = context.get_parameter_source(name)
            is_flag = source is not None and source.name == "COMMANDLINE"
            if is_flag and value == "":
                flag = "--" + name.replace("_", "-")
                raise typer.BadParameter("the value is empty; set a value, or omit the option", param_hint=flag)
            if is_flag:
                self._flags.add(name)
            elif name in self._flags:
                continue
            if value:
                setattr(self, name, value)
        if "data_dir" in self._flags and "url" not in self._flags:
            self.url = None

    def folder(self) -> Path:
        """Return the data folder: the given one, or else the default of the settings."""
        if self.data_dir is not None:
            return self.data_dir.expanduser().absolute()
        from controlplane.defaults import DATA_DIR

        return DATA_DIR

    def find_url(self) -> str:
        """Return the API's address: ``--url``, or else that of the running ``up``.

        Raises:
            NotRunningError: There is neither.
        """
        if self.url:
            return self.url if "://" in self.url else f"http://{self.url}"
        from controlplane.client.discovery import UpRecord
        from controlplane.client.errors import NotRunningError

        record = UpRecord.read(self.folder())
        if record is None:
            raise NotRunningError(
                f"no control plane is running with the data folder {self.folder()}; start one with `tritonctl up`, or "
                "set the address of a running one with --url or TRITONCTL_URL"
            )
        return record.url

    def client(self) -> "Client":
        """Return a client of the control plane; use it as a context manager."""
        from controlplane.client.credentials import credentials
        from controlplane.client.http import Client

        url = self.find_url()
        return Client(url, actor=self.actor, credentials=credentials(self, url))

    def settings(self, *, store: str | None, endpoint: str | None) -> "Settings":
        """Return the settings of this machine's control plane, with ``--store`` and ``--endpoint`` if given."""
        from controlplane.settings import Settings

        given = {"url": store, "endpoint_url": endpoint}
        chosen: dict[str, Any] = {
            "data_dir": self.folder(),
            "store": {key: value for key, value in given.items() if value is not None},
        }
        return Settings(**chosen)

    def out(self) -> "Output":
        """Return the output of this run."""
        from controlplane.cli.output import Output

        return Output(json_wanted=self.output == "json")


def current() -> Session:
    """Return the session of this process; there is one per run."""
    return _SESSION


_SESSION = Session()


def command(
    app: typer.Typer, name: str, *, panel: str, examples: tuple[str, ...] = (), hidden: bool = False
) -> Callable[[Function], Function]:
    """Register a function as a command with the common options; it gets a `Session` as its first argument.

    Args:
        app: Where to register it.
        name: The command's name.
        panel: The heading under which ``--help`` lists it.
        examples: Command lines shown at the end of its help.
        hidden: Whether the help omits the command; for an earlier name that still works.
    """

    def register(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())[1:]
        hints = get_type_hints(function, include_extras=True)

        @functools.wraps(function)
        def run(*, context: typer.Context, **values: Any) -> None:
            _SESSION.merge({key: values.pop(key) for key in _COMMON}, context)
            function(_SESSION, **values)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own]
        parameters += [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if key == "debug" else None,
                annotation=annotation,
            )
            for key, annotation in _COMMON.items()
        ]
        parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__doc__ = _reflow(function.__doc__ or "")
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # Typer would otherwise use the function's own signature
        epilog = "\n\n".join(["[bold]Examples[/bold]", *(f"[dim]$[/dim] {example}" for example in examples)])
        app.command(name, hidden=hidden, rich_help_panel=panel, epilog=epilog if examples else None)(run)
        return function

    return register


def _reflow(text: str) -> str:
    """Join the lines of each paragraph: the terminal's width decides where they break, not the source's."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


_COMMON: dict[str, Any] = {
    "url": UrlOption,
    "data_dir": DataDirOption,
    "output": OutputOption,
    "actor": ActorOption,
    "debug": DebugOption,
    "api_key_file": KeyFileOption,
    "ca_file": CaFileOption,
    "client_cert": ClientCertOption,
}
