"""Rollouts by evidence: display and manual decisions."""

from typing import Annotated

import typer

from controlplane.cli import completion
from controlplane.cli.commands.deployments import PANEL
from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command

_VERBS = ("promote", "abort", "pause", "resume")


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "rollout",
        panel=PANEL,
        examples=(
            "tritonctl rollout resnet",
            "tritonctl rollout resnet --watch",
            'tritonctl rollout abort resnet --reason "wrong labels"',
            "tritonctl rollout promote resnet",
        ),
    )(rollout)


def rollout(
    session: Session,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[promote|abort|pause|resume] NAME",
            help="A deployed model, after the action to take on its rollout; without an action, show the rollout.",
            autocompletion=completion.deployments,
        ),
    ],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show the rollout live until it ends.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two updates.")] = 1.0,
    reason: ReasonOption = "",
) -> None:
    """Show a rollout, the new version beside the old one, or promote, abort, pause or resume it.

    With `--watch`, the command runs until the rollout ends: exit code 0 if the version was promoted, 7 if it was
    withdrawn. `tritonctl history` lists every decision with its figures.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.views.rollout import screen
    from controlplane.cli.views.rollout import watch as follow
    from controlplane.client.http import segment
    from controlplane.client.rollouts import Rollout
    from controlplane.errors import InvalidInputError

    verb, name = (words[0], words[1]) if len(words) == 2 else ("", words[0])
    if len(words) > 2 or (verb and verb not in _VERBS):
        raise InvalidInputError(f"give a model's name, optionally preceded by one of {', '.join(_VERBS)}")
    path = f"/v1/rollouts/{segment(name)}"
    out = session.out()
    with session.client() as client:
        if verb:
            client.post(f"{path}/{verb}", {"reason": reason})
        found = client.fetch(Rollout, path)
        if watch:
            found = follow(lambda: client.fetch(Rollout, path), out, interval=interval)
    out.result(found)
    out.show(screen(found))
    if watch and found.phase == "aborted":
        raise typer.Exit(ExitCode.FAILED)
