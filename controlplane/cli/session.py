"""The options that all commands share: the address of the control plane and the form of the output.

They are accepted before and after the command's name (``tritonctl -o json ps`` and ``tritonctl ps -o json``), because
both are common. `command` adds them to a function, which gets a `Session` as its first argument in their place. The
help of a command shows ``--output`` of them, and ``tritonctl --help`` shows all.
"""

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, get_args, get_type_hints

import typer

if TYPE_CHECKING:  # slow to import: only a command that calls the API needs it
    from controlplane.cli.documents import OutputFormat
    from controlplane.cli.output import Output
    from controlplane.client.http import Client
    from controlplane.settings import Settings

_Form = Literal["table", "wide", "json", "yaml", "name"]
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
    _Form | None,
    typer.Option(
        "--output",
        "-o",
        help="`table` (default), `wide` (more columns), `json`, `yaml`, or `name`: one name a line.",
        rich_help_panel=_PANEL,
    ),
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
    output: "OutputFormat" = "table"
    actor: str | None = None
    debug: bool = False
    api_key_file: Path | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    stream: bool = field(default=False, init=False)
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

        return Output(self.output, stream=self.stream)


def current() -> Session:
    """Return the session of this process; there is one per run."""
    return _SESSION


_SESSION = Session()


def command(
    app: typer.Typer,
    name: str | None,
    *,
    panel: str,
    examples: tuple[str, ...] = (),
    hidden: bool = False,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    watch: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as a command with the common options; it gets a `Session` as its first argument.

    Args:
        app: Where to register it.
        name: The command's name; None: what a group of commands does without a subcommand.
        panel: The heading under which ``--help`` lists it.
        examples: Command lines that its help shows, at least two.
        hidden: Whether the help omits the command; for an earlier name that still works.
        groups: Headings in its help for the options of a long command, with the names of the function's parameters.
        watch: Whether the command gets ``--watch``, which shows its output again and again.
    """

    def register(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())[1:]
        hints = get_type_hints(function, include_extras=True)
        for heading, names in (groups or {}).items():
            hints |= {key: _option(hints[key], rich_help_panel=heading) for key in names}

        @functools.wraps(function)
        def run(*, context: typer.Context, **values: Any) -> None:
            _SESSION.merge({key: values.pop(key) for key in _COMMON}, context)
            if context.invoked_subcommand is not None:
                return
            watched, interval = values.pop("watch_", False), values.pop("interval_", 0.0)
            if watched:
                from controlplane.cli.watching import watch as again

                _SESSION.stream = True
                screen = sys.stdout.isatty() and _SESSION.output in {"table", "wide"}
                again(lambda: function(_SESSION, **values), interval, screen=screen)
            else:
                function(_SESSION, **values)

        added: dict[str, tuple[Any, Any]] = {
            key: (annotation, False if key == "debug" else None) for key, annotation in _IN_COMMANDS.items()
        }
        if watch:
            added |= {"watch_": (_WatchOption, False), "interval_": (_IntervalOption, 1.0)}
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(kind=keyword, annotation=hints[p.name]) for p in own]
        parameters += [
            inspect.Parameter(key, keyword, default=default, annotation=annotation)
            for key, (annotation, default) in added.items()
        ]
        parameters.append(inspect.Parameter("context", keyword, annotation=typer.Context))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__doc__ = _help(function.__doc__ or "", examples)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # Typer would otherwise use the function's own signature
        if name is None:
            app.callback(invoke_without_command=True, epilog=_EPILOG)(run)
        else:
            app.command(name, hidden=hidden, rich_help_panel=panel, epilog=_EPILOG)(run)
        return function

    return register


def _help(text: str, examples: tuple[str, ...]) -> str:
    """Return the help: the terminal's width decides where lines break, not the source's, and examples follow."""
    paragraphs = [" ".join(paragraph.split("\n")) for paragraph in inspect.cleandoc(text).split("\n\n")]
    if examples:
        paragraphs += ["[bold]Examples[/bold]", *(f"[dim]$[/dim] {example}" for example in examples)]
    return "\n\n".join(paragraphs)


def _option(annotation: Any, **changes: Any) -> Any:
    """Return the annotation of an option with other attributes."""
    kind, option = get_args(annotation)
    changed = copy.copy(option)
    for key, value in changes.items():
        setattr(changed, key, value)
    return Annotated[kind, changed]


_EPILOG = "Options of every command (--url, --api-key-file, …): tritonctl --help"
_WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.", show_default=False)
]
_IntervalOption = Annotated[
    float, typer.Option("--interval", min=0.1, help="With --watch: seconds between two updates.")
]

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
_IN_COMMANDS = {key: one if key == "output" else _option(one, hidden=True) for key, one in _COMMON.items()}
