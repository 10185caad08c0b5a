"""A real embedded Triton whose backend fails on request of a backend parameter of the deployment (`fault`).

The faults happen in the real backend process: it ends, sleeps, or computes wrong results. The backend reads the fault
from the model's parameters, and for switched faults also from a file, so that a test can begin and end them.
"""

from dataclasses import dataclass
from pathlib import Path

from controlplane.domain.deployment import DeploymentSettings
from controlplane.settings import TritonSettings
from controlplane.triton.embedded.backend_directory import assemble_backends
from controlplane.triton.embedded.installation import find_installation
from controlplane.triton.embedded.server import EmbeddedTriton

_INITIALIZE = "        self._model = Model(args)\n"
_EXECUTE = '        """Answer requests."""\n'
_RUN = "        feed = {}\n"
_LOAD_FAULT = """
        import os, time
        self._fault = self._model.parameters.get("fault", "")
        self._switch = self._model.parameters.get("fault_file", "")
        if self._fault == "hang-load" and (not self._switch or os.path.exists(self._switch)):
            time.sleep(3600)
"""
_EXECUTE_FAULT = """
        import os, time
        if self._fault and (not self._switch or os.path.exists(self._switch)):
            if self._fault == "die":
                os._exit(9)
            if self._fault.startswith("slow:"):
                time.sleep(float(self._fault.removeprefix("slow:")))
"""
_RUN_FAULT = """
        import os
        if self._fault == "drift" and os.path.exists(self._switch):
            arrays = {name: array + array.dtype.type(1) for name, array in arrays.items()}
"""


@dataclass(frozen=True)
class FaultyTriton:
    """A server in a folder, not started yet, and the switch of its faults."""

    server: EmbeddedTriton
    switch: Path

    def settings(self, fault: str, *, switched: bool = False, **changes: object) -> DeploymentSettings:
        """Return deployment settings under which a model has a fault; with ``switched`` only while it is on."""
        parameters = {"fault": fault} | ({"fault_file": str(self.switch)} if switched else {})
        return DeploymentSettings.model_validate({"parameters": parameters, **changes})

    def on(self) -> None:
        """Begin the switched faults."""
        self.switch.touch()

    def off(self) -> None:
        """End the switched faults."""
        self.switch.unlink(missing_ok=True)


def faulty_triton(folder: Path, settings: TritonSettings | None = None) -> FaultyTriton:
    """Make a server whose ONNX backend knows the faults."""
    run_dir = folder / "triton"
    program = assemble_backends(find_installation(), run_dir.absolute()) / "onnxruntime" / "model.py"
    text = program.read_text()
    for place, fault in ((_INITIALIZE, _LOAD_FAULT), (_EXECUTE, _EXECUTE_FAULT), (_RUN, _RUN_FAULT)):
        assert text.count(place) == 1, f"the backend changed: {place!r}"
        text = text.replace(place, place + fault)
    program.write_text(text)
    server = EmbeddedTriton(folder / "models", run_dir, settings or TritonSettings())
    # Beside the backend, where the confined server can see it.
    return FaultyTriton(server, program.parent / "faulty")
