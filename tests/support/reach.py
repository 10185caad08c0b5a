"""Checks from inside a process what it can access, and reads what the documentation says about that."""

import re
from pathlib import Path

PROBE = """
import json, os, pathlib, socket, sys
given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else GIVEN
def works(action):
    try:
        return bool(action())
    except OSError:
        return False
def touch(folder):
    path = pathlib.Path(folder, "written-by-a-model")
    path.write_text("x")
    path.unlink()
    return True
def process():
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and works(lambda: given["mark"] in (entry / "environ").read_text(errors="replace")):
            return True
    return False
print("REACH" + json.dumps({
    "key": works(lambda: pathlib.Path(given["key"]).read_text()),
    "store": works(lambda: os.listdir(given["store"])),
    "environment": process() or given["mark"] in str(dict(os.environ)),
    "process": works(lambda: os.readlink(f"/proc/{given['pid']}/exe") == given["exe"]),
    "home": works(lambda: pathlib.Path(given["home"], ".netrc").read_text()),
    "others": works(lambda: pathlib.Path(given["repository"], "other").read_text()),
    "write": works(lambda: touch(given["repository"])),
    "loopback": works(lambda: socket.create_connection(("127.0.0.1", given["port"]), 5)),
}), flush=True)
"""

LABELS = {
    "key": "the API key in the data folder",
    "store": "the folder of a store",
    "environment": "the environment of the control plane",
    "process": "the process of the control plane",
    "home": "the home folder of its user",
    "others": "files of other models in the model repository",
    "write": "a change of the model repository",
    "loopback": "ports on loopback, that of the API too",
}


def documented() -> dict[str, tuple[str, ...]]:
    """The rows of the table in docs/evidence/threat-model.md: what each set-up allows, by what it is about."""
    text = (Path(__file__).parents[2] / "docs" / "evidence" / "threat-model.md").read_text()
    section = text.split("## What the code of a model can reach", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", section, re.M)]
    return {row[0]: tuple(row[1:]) for row in rows[2:]}
