"""The assembly of ``tritonctl``. Imports are kept few here, because ``--help`` and completion must be fast."""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from controlplane.cli.session import (
    ActorOption,
    CaFileOption,
    ClientCertOption,
    DataDirOption,
    DebugOption,
    KeyFileOption,
    OutputOption,
    UrlOption,
    current,
)

_HELP = """Control plane for NVIDIA Triton: model registry, verified conversions, deployments proved by golden samples.

A reference names a version: [bold]name[/bold] (the newest), [bold]name:7[/bold] (a number) or \
[bold]name@alias[/bold] (an alias).
"""

_EPILOG = """[bold]First steps[/bold]

[dim]$[/dim] tritonctl up --detach

[dim]$[/dim] tritonctl push model.onnx

[dim]$[/dim] tritonctl deploy model --wait

[dim]$[/dim] tritonctl infer model --sample

[bold]Exit codes[/bold]

0 success · 1 other failure · 2 invalid command line · 3 not found · 4 unreachable · 5 conflict · 6 invalid input · \
7 conversion, deployment, inference or check failed · 8 timeout · 9 not allowed · 130 interrupted
"""

COMMANDS = {
    "local": ("up", "down", "serve"),
    "agent": ("agent",),
    "setup": ("setup",),
    "push": ("push",),
    "importing": ("import",),
    "adopting": ("adopt",),
    "conversions": ("convert", "validate"),
    "text_pipelines": ("text-pipeline",),
    "models": ("models", "versions", "show", "report", "alias", "rm", "history"),
    "comparing": ("label", "compare"),
    "pull": ("pull",),
    "exporting": ("export",),
    "sign": ("sign", "verify"),
    "deploy": ("deploy",),
    "deployments": ("rollback", "undeploy", "load", "unload", "ps", "wait", "health"),
    "declarations": ("apply", "diff", "get"),
    "rollouts": ("rollout",),
    "samples": ("samples",),
    "tuning": ("tune",),
    "memory": ("memory", "top", "explain", "why", "hold", "plan"),
    "placement": ("defrag",),
    "monitoring": ("metrics",),
    "inference": ("infer",),
    "servers": ("servers", "events"),
    "cordons": ("cordon", "drain", "uncordon"),
    "gateway": ("gateway",),
    "page": ("ui",),
    "devices": ("devices",),
    "maintenance": ("gc", "version"),
    "keys": ("keys",),
    "audit": ("audit",),
    "doctor": ("doctor",),
    "checking": ("fsck",),
    "demo": ("demo",),
}
"""The commands by the module that defines them, in the order of the help. A command needs only its own module."""
_registered: set[str] = set()

app = typer.Typer(
    name="tritonctl",
    help=_HELP,
    epilog=_EPILOG,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tritonctl {version('triton-control-plane')}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    output: OutputOption = None,
    actor: ActorOption = None,
    debug: DebugOption = False,
    api_key_file: KeyFileOption = None,
    ca_file: CaFileOption = None,
    client_cert: ClientCertOption = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    given = {
        "url": url,
        "data_dir": data_dir,
        "output": output,
        "actor": actor,
        "debug": debug,
        "api_key_file": api_key_file,
        "ca_file": ca_file,
        "client_cert": client_cert,
    }
    current().merge(given, context)


def register(modules: Iterable[str]) -> None:
    """Add the commands of these modules to the app."""
    for name in modules:
        if name not in _registered:
            _registered.add(name)
            import_module(f"controlplane.cli.commands.{name}").register(app)


def module_of(arguments: Sequence[str]) -> str | None:
    """Return the module that a command line needs; None if it may need any, for example for the list of commands."""
    first = arguments[0] if arguments else ""
    return next((module for module, commands in COMMANDS.items() if first in commands), None)


_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the CLI. Every failure ends in a one-line message and an exit code for its kind."""
    completing = any(name.startswith("_TRITONCTL_COMPLETE") for name in os.environ)
    module = None if completing else module_of(sys.argv[1:])
    register(COMMANDS if module is None else (module,))
    _skip_unused_imports()
    try:
        app(prog_name="tritonctl", standalone_mode=True)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            # Exit immediately: a thread that is blocked in a connection must not delay the exit.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        raise
    except BrokenPipeError:
        # `tritonctl … | head` is not a failure. Python would report the error again when it flushes at exit.
        sys.stdout = None
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the outermost edge: no traceback reaches a user unasked
        sys.exit(_report(error))
    sys.exit(0)


def _skip_unused_imports() -> None:
    """Keep libraries from importing what no command needs, which takes as long as all the rest of a start.

    httpx imports its own command line if it can, with pygments, rich and click. Typer imports rich's renderers of
    Markdown and of tracebacks; help texts here use rich's own markup, and tracebacks are Python's.
    """
    from types import ModuleType

    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    for module, name in (("rich.markdown", "Markdown"), ("rich.traceback", "Traceback")):
        stand_in = ModuleType(module)
        setattr(stand_in, name, type(name, (), {}))
        sys.modules.setdefault(module, stand_in)


def _report(error: Exception) -> int:
    from controlplane.cli.exit_codes import ExitCode, error_code, exit_code
    from controlplane.cli.output import Output, error_line
    from controlplane.errors import ControlPlaneError

    if current().debug:
        import traceback

        traceback.print_exception(error)
    error = _settings_error(error) or error
    if isinstance(error, ControlPlaneError):
        code = exit_code(error)
        error_line(error.message)
        document = {"code": error_code(error), "message": error.message, "details": error.details}
        # A report that shows the failure is the only document; names have no form for an error.
        if not Output.printed and current().output != "name":
            Output(current().output).result({"error": document | {"exit_code": int(code)}})
        return int(code)
    if isinstance(error, OSError) and error.filename:
        error_line(f"{error.filename}: {error.strerror}")
        return int(ExitCode.FAILURE)
    hint = "" if current().debug else " (this is a bug; run the command again with --debug for the traceback)"
    error_line(f"unexpected {type(error).__name__}: {error}{hint}")
    return int(ExitCode.FAILURE)


def _settings_error(error: Exception) -> Exception | None:
    """Return an error that names the environment variable of an invalid setting."""
    from pydantic import ValidationError

    from controlplane.domain.validation import sentence
    from controlplane.errors import InvalidInputError

    if type(error).__name__ == "ConfigFileError":  # by name: settings are slow to import
        return InvalidInputError(str(error))
    if type(error).__name__ == "SettingsError":
        field = str(error).partition('"')[2].partition('"')[0]
        return InvalidInputError(
            f"a variable of the setting {field} (CONTROLPLANE_{field.upper()}…) is not valid JSON, which lists and "
            "mappings must be"
        )
    if not isinstance(error, ValidationError) or error.title != "Settings":
        return None
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    variable = "CONTROLPLANE_" + "__".join(path).upper()
    return InvalidInputError(f"the setting {'.'.join(path)} ({variable}) is invalid: it {sentence(first)}")


if __name__ == "__main__":
    main()
