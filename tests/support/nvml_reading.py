"""A process that reads GPUs with the production code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.nvml import Machine

PROGRAM = Path(__file__).parents[1] / "gpu" / "nvml_reader.py"


class Reader:
    """A process with an `NvmlSource`."""

    def __init__(self, machine: Machine, uuids: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM, *uuids],
            env=machine.environment,
            cwd=PROGRAM.parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the reader ended with {self._process.wait(10)}"
        return json.loads(answer)

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the readings by name, in their order."""
        answer = self.ask("read")
        assert isinstance(answer, list), answer
        return {reading["name"]: reading for reading in answer}

    def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code
