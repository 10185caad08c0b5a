"""The rendered pods as processes: the same commands, environment and files, with other paths and ports."""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controlplane.triton.embedded.backend_directory import assemble_backends, python_path
from controlplane.triton.embedded.installation import find_installation
from tests.support.processes import free_port, running


class Cluster:
    """A namespace that the chart is installed in.

    Args:
        folder: An empty folder for volumes and logs.
        documents: The rendered objects.
        secrets: The Secrets, by name.

    Attributes:
        ports: A port of this machine for each address in the cluster, HOST:PORT.
    """

    def __init__(self, folder: Path, documents: list[dict[str, Any]], secrets: dict[str, dict[str, str]]) -> None:
        self._folder = folder
        self._documents = documents
        self._secrets = secrets
        self._places: dict[str, str] = {}
        self.ports = {address: free_port() for address in ("api", "http", "grpc", "metrics", "gateway-health")}
        self.ports |= {name: free_port() for name in ("gateway-http", "gateway-grpc")}

    def pod(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = [one for one in self._documents if one["kind"] == kind and one["metadata"]["name"] == name]
        spec: dict[str, Any] = found["spec"]["template"]["spec"]
        return spec

    @contextlib.contextmanager
    def started(self, pod: dict[str, Any], container: str, changes: dict[str, str]) -> Iterator[Path]:
        """Run a container as a process until the end of the block; yields its log.

        Args:
            pod: The pod's specification.
            container: The name of the container.
            changes: What to replace in its command and environment: addresses of the cluster by those of this machine.
        """
        (found,) = [one for one in pod["containers"] if one["name"] == container]
        replaced = {**changes, **self._volumes(pod, found)}
        environment = self._environment(found)
        words = [*found.get("command", ["tritonctl"]), *found["args"]]
        if container == "triton":
            words[0] = "/bin/sh"
            words += [f"--{name}-port={self.ports[name]}" for name in ("http", "grpc", "metrics")]
            environment["PATH"] = f"{self._triton_program()}:{environment['PATH']}"
        else:
            words[0] = str(Path(sys.executable).with_name("tritonctl"))
        given = [f"{name}={_replace(value, replaced)}" for name, value in environment.items()]
        log = self._folder / f"{container}.log"
        with running(["env", "-i", *given, words[0], *(_replace(word, replaced) for word in words[1:])], log):
            yield log

    def environment(self, pod: dict[str, Any], container: str, changes: dict[str, str]) -> dict[str, str]:
        """Return the environment of a container, for a command that is executed in it."""
        (found,) = [one for one in pod["containers"] if one["name"] == container]
        replaced = {**changes, **self._volumes(pod, found)}
        return {name: _replace(value, replaced) for name, value in self._environment(found).items()}

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        """Return its environment, with Secrets and references to other variables resolved as Kubernetes does."""
        found = {"PATH": os.environ["PATH"], "HOME": str(self._folder)}
        for variable in container["env"]:
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = self._secrets[reference["name"]][reference["key"]]
            else:
                text = variable["value"]
                found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], text)
        return found

    def _volumes(self, pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
        """Return the folder of this machine for each path that is mounted; temporary folders stay as they are."""
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {}
        for mount in container["volumeMounts"]:
            if mount["name"] in {"tmp", "triton-tmp", "shm"}:
                continue
            volume = volumes[mount["name"]]
            owner = container["name"] if mount["name"] == "data" else "pod"
            folder = self._folder / owner / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                (data,) = [
                    one["data"]
                    for one in self._documents
                    if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name
                ]
                for file, text in data.items():
                    (folder / file).write_text(text)
            for item in volume.get("secret", {}).get("items", ()):
                (folder / item["path"]).write_text(self._secrets[volume["secret"]["secretName"]][item["key"]])
            mounted[mount["mountPath"]] = str(folder)
        return mounted

    def _triton_program(self) -> Path:
        """Return a folder with a program `tritonserver`: that of the wheel, with its backends."""
        installation = find_installation()
        backends = assemble_backends(installation, self._folder / "backends")
        environment = {
            **installation.environment,
            "PATH": f"{python_path(backends)}:{installation.environment['PATH']}",
        }
        folder = self._folder / "bin"
        folder.mkdir(exist_ok=True)
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items() if name in _TRITONS)
        program = folder / "tritonserver"
        local = " ".join(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics"))
        command = f"env {given} {installation.binary} --backend-directory={backends} {local}"
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
        return folder


_TRITONS = ("PATH", "LD_LIBRARY_PATH")


def _replace(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text
