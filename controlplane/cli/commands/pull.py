"""Download of a version."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.commands.models import RefArgument
from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "pull",
        panel="Publish and convert",
        examples=("tritonctl pull resnet@champion", "tritonctl pull resnet:7 ./resnet-7"),
    )(pull)


def pull(
    session: Session,
    ref: RefArgument,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Target folder. Default: ./NAME-VERSION.", show_default=False)
    ] = None,
) -> None:
    """Download the files of a version and verify them against their digests.

    If a pull is interrupted, run it again to resume it. Files that are present already are not downloaded again.
    """
    from urllib.parse import quote

    from controlplane.cli.output import size
    from controlplane.cli.progress import Bar
    from controlplane.cli.references import fetch_version, version_path
    from controlplane.cli.workflows.pull import download
    from controlplane.domain.names import Reference

    out = session.out()
    with session.client() as client:
        detail = fetch_version(client, ref)
        # Use the number from here on, because an alias may move during the download.
        fixed = Reference(detail.model, version=detail.entry.number)
        target = folder or Path(f"{detail.model}-{detail.entry.number}")
        files = detail.manifest.files
        fetched = 0
        with Bar(out) as bar:
            bar.stage(f"pulling {fixed}", total=sum(file.size_bytes for file in files))
            for file in files:
                fetched += download(
                    client, f"{version_path(fixed)}/files/{quote(file.path)}", file, target / file.path, bar
                )
    total = sum(file.size_bytes for file in files)
    out.result(
        {
            "reference": str(fixed),
            "directory": str(target),
            "files": [file.model_dump(mode="json") for file in files],
            "fetched": fetched,
        }
    )
    kept = len(files) - fetched
    present = f", {kept} of them already present" if kept else ""
    out.line(f"{fixed} is in {target}: {len(files)} file{'s' * (len(files) > 1)}, {size(total)}, verified{present}")
