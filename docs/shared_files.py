"""The files of ``share/``, which the wheel installs: the manual page, and the shell completions."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import typer

_MARKUP = re.compile(r"\[/?(?:bold|dim|italic)\]")
_SHELLS = {
    "bash": "bash-completion/completions/tritonctl",
    "zsh": "zsh/site-functions/_tritonctl",
    "fish": "fish/vendor_completions.d/tritonctl.fish",
}


def manual(commands: Iterable[tuple[tuple[str, ...], Any]], root: Any, own: Callable[[Any], list[Any]]) -> str:
    """Return the manual page in the format of ``man``.

    Args:
        commands: The commands by their names.
        root: The command line as a whole.
        own: Returns the options of a command without those that every command has.
    """
    description, *more = _paragraphs(root.help)
    lines = ['.TH TRITONCTL 1 "" "triton-control-plane" "User Commands"', ".SH NAME"]
    lines += [f"tritonctl \\- {_roff(description.rstrip('.'))}", ".SH SYNOPSIS"]
    lines += [".B tritonctl", "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]", ".SH DESCRIPTION"]
    lines += [_roff(text) for text in more]
    lines += [".SH OPTIONS", "They may stand before and after the command.", *_options(root.params)]
    lines.append(".SH COMMANDS")
    for names, command in commands:
        lines += [f'.SS "tritonctl {" ".join(names)}{_arguments(command)}"']
        examples = False
        for text in _paragraphs(command.help):
            if text == "Examples":
                examples = True
                lines += [".PP", "Examples:"]
            elif examples:
                lines += [".nf", f".RS 4\n{_roff(text.removeprefix('$ '))}\n.RE", ".fi"]
            else:
                lines += [".PP", _roff(text)]
        lines += _options(own(command))
    lines += [".SH EXIT STATUS", *(_roff(text) for text in _paragraphs(root.epilog)[-1:])]
    lines += [".SH ENVIRONMENT"]
    for one in root.params:
        variables = getattr(one, "envvar", None)
        for variable in [variables] if isinstance(variables, str) else variables or ():
            lines += [".TP", f"\\fB{variable}\\fR", _roff(f"As {one.opts[0]}.")]
    return "\n".join(lines) + "\n"


def completion(shell: str) -> str:
    """Return the completion script of a shell."""
    from typer._completion_shared import get_completion_script

    script: str = get_completion_script(prog_name="tritonctl", complete_var="_TRITONCTL_COMPLETE", shell=shell)
    return script.strip() + "\n"


def files(man: Callable[[], str]) -> dict[str, Callable[[], str]]:
    """Return what makes each file of ``share/``, by its path relative to ``docs/reference``."""
    made: dict[str, Callable[[], str]] = {"../../share/man/man1/tritonctl.1": man}
    for shell, path in _SHELLS.items():
        made[f"../../share/{path}"] = lambda shell=shell: completion(shell)  # type: ignore[misc]
    return made


def root_command() -> Any:
    """Return the command line with all of its commands."""
    from controlplane.cli.main import COMMANDS, app, register

    register(COMMANDS)
    return typer.main.get_command(app)


def _paragraphs(text: str | None) -> list[str]:
    plain = _MARKUP.sub("", (text or "")).replace("\\[", "[")
    return [" ".join(one.split()) for one in plain.split("\n\n") if one.strip()]


def _options(params: Iterable[Any]) -> list[str]:
    lines = []
    for one in params:
        if one.param_type_name != "option" or getattr(one, "hidden", False):
            continue
        names = ", ".join(f"\\fB{_dash(name)}\\fR" for name in (*one.opts, *one.secondary_opts))
        value = "" if one.is_bool_flag else f" \\fI{_roff((one.metavar or one.name.strip('_')).upper())}\\fR"
        lines += [".TP", names + value, _roff(" ".join((one.help or "").split()))]
    return lines


def _arguments(command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    names = [((one.metavar or one.name).upper().strip("[]"), one.required) for one in arguments]
    return "".join(f" {name}" if required else f" [{name}]" for name, required in names)


def _dash(text: str) -> str:
    return text.replace("-", "\\-")


def _roff(text: str) -> str:
    """Escape a line: a backslash, a dash that may be copied, and a control character at its beginning."""
    escaped = _dash(text.replace("\\", "\\e"))
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
