"""The documentation matches the code: generated pages, links, and every name in them."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.states import Phase, ServerState
from controlplane.settings import Settings
from docs import generate

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "model_repository/README.md")),
    *(page for folder in ("docs", "controlplane", "converters") for page in sorted((ROOT / folder).rglob("*.md"))),
]
CONTROLPLANE = ROOT / "controlplane"
CORE = (
    "reconciler", "lifecycle", "placement", "memory", "servers", "gateway", "registry", "triton", "storage",
    "services", "api", "cli", "client", "monitoring", "domain",
)  # fmt: skip
"""Packages with a README; every name in backticks in it is a module, or a name that a module defines."""
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SHORT_TEST = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`")
_FOREIGN_OPTIONS = {
    "--shm-size", "--full", "--id",
    "--disable-auto-complete-config", "--strict-readiness", "--allow-client-shm", "--metrics-config",
    "--model-control-mode", "--grpc-restricted-protocol", "--http-restricted-api",
}  # fmt: skip
"""Options of Triton, Docker and the benchmarks."""
_LAYER_PAGES = ("CONTRIBUTING.md", "docs/architecture.md")


def wrong(check: Callable[[Path, str], set[str]]) -> dict[str, set[str]]:
    """Return the findings of a check, by page."""
    found = {str(page.relative_to(ROOT)): check(page, page.read_text()) for page in PAGES}
    return {name: names for name, names in found.items() if names}


@cache
def source() -> str:
    return "".join(path.read_text() for path in (ROOT / "controlplane").rglob("*.py"))


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_up_to_date(name: str) -> None:
    assert (generate.REFERENCE / name).read_text() == generate.page(name), "run `python -m docs.generate`"


def test_links_lead_to_existing_pages_and_headings() -> None:
    def broken(page: Path, text: str) -> set[str]:
        return {one for one in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)) if not leads_somewhere(page, one)}

    assert wrong(broken) == {}


def leads_somewhere(page: Path, target: str) -> bool:
    if target.startswith(("http://", "https://")):
        return True
    path, _, anchor = target.partition("#")
    where = (page.parent / path).resolve() if path else page
    return where.exists() and (not anchor or anchor in anchors(where))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings)


def test_named_settings_exist() -> None:
    known = variables()

    def unknown(_: Path, text: str) -> set[str]:
        named = set(re.findall(r"(?:TRITONCTL|CONTROLPLANE)_[A-Z0-9_]+", text))
        return {one for one in named if not any(setting == one or setting.startswith(one) for setting in known)}

    assert wrong(unknown) == {}


def test_every_setting_is_in_the_reference() -> None:
    rows = re.findall(r"^\| `\w+` \|", generate.page("settings.md"), re.MULTILINE)
    assert len(rows) == len(list(leaves(Settings)))


def variables() -> set[str]:
    """Return every environment variable: settings, and others that the source names."""
    prefix = Settings.model_config["env_prefix"]
    read_elsewhere = re.findall(r'"((?:TRITONCTL|CONTROLPLANE)_[A-Z0-9_]+)"', source())
    read_elsewhere += re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text())
    return {f"{prefix}{name.upper()}" for name in leaves(Settings)} | set(read_elsewhere)


def leaves(group: Any, prefix: str = "") -> Iterator[str]:
    for name, field in group.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from leaves(field.annotation, f"{prefix}{name}__")
        else:
            yield prefix + name


def test_named_metrics_exist() -> None:
    known = generate.metric_names()

    def unknown(_: Path, text: str) -> set[str]:
        named = set(re.findall(r"\btritonctl_[a-z_]+", text))
        return {one for one in named if not any(name == one or name.startswith(one) for name in known)}

    assert wrong(unknown) == {}


def test_every_metric_is_in_the_reference() -> None:
    in_the_source = set(re.findall(r'"(tritonctl_[a-z_]+)"', source()))
    assert in_the_source <= {name.removesuffix("_total") for name in generate.metric_names()}


def test_named_commands_and_options_exist() -> None:
    known = dict(generate.commands())
    options = {option for command in known.values() for option in options_of(command)}
    options |= {"--version", "--help", "--install-completion", "--show-completion", *_FOREIGN_OPTIONS}

    def unknown(_: Path, text: str) -> set[str]:
        found = {one for one in re.findall(r"`(--[a-z][a-z0-9-]*)", _FENCE.sub("", text)) if one not in options}
        for line in re.findall(r"^(?:\$ )?tritonctl ([a-z].*)$|`tritonctl ([a-z][^`]*)`", text, re.MULTILINE):
            words = (line[0] or line[1]).split()
            found |= unknown_in(words, known) if words[0] != "is" else set()  # `tritonctl is up`, which it prints
        return found

    assert wrong(unknown) == {}


def unknown_in(words: list[str], known: dict[tuple[str, ...], Any]) -> set[str]:
    """Return the command of a line, or those of its options, that ``tritonctl`` does not have."""
    words = words[: next((n for n, word in enumerate(words) if word in {"--", "#", "&&", "|", "&"}), len(words))]
    names = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in known), None)
    if names is None:
        groups = {command[0] for command in known}
        return set() if words[0].rstrip(".,;:") in groups else {words[0]}
    given = {word.partition("=")[0].rstrip(".,;:)") for word in words if re.match(r"--[a-z]", word)}
    return given - set(options_of(known[names]))


def options_of(command: Any) -> Iterator[str]:
    for one in command.params:
        yield from (*one.opts, *one.secondary_opts)


def test_named_routes_exist() -> None:
    paths = [re.sub(r"\{\w+\}", "[^/]+", path) for path in generate.openapi()["paths"]]
    known = re.compile("|".join(f"(?:{path})" for path in paths))

    def unknown(_: Path, text: str) -> set[str]:
        named = set(re.findall(r"(?:(?:GET|POST|PUT|DELETE|HEAD) |\$U)(/v1/[\w/{}$.@-]+)", text))
        return {one for one in named if not known.fullmatch(one.rstrip("/."))}

    assert wrong(unknown) == {}


def test_named_tests_exist() -> None:
    known = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    facts = (ROOT / "docs" / "internals" / "triton.md").read_text()  # names its tests without `test_`, in table rows
    short = {f"test_{name}" for row in re.findall(r"^\|.*", facts, re.MULTILINE) for name in _SHORT_TEST.findall(row)}

    def unknown(_: Path, text: str) -> set[str]:
        return set(re.findall(r"`(test_\w+)`", text)) - known

    assert wrong(unknown) == {}
    assert len(short) > 10
    assert short - known == set()


def test_documented_layers_match_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" | ")) for layer in contracts[0]["layers"]]
    rows = re.compile(r"^\| (`(?:controlplane\.|tritonctl` \| the).*)$", re.MULTILINE)
    tables = [rows.findall((ROOT / page).read_text()) for page in _LAYER_PAGES]
    assert tables[0] == tables[1], "CONTRIBUTING.md and docs/architecture.md say the same in the same words"
    assert [set(re.findall(r"`(controlplane\.\w+|tritonctl)`", row.split(" | ")[0])) for row in tables[0]] == layers


@pytest.mark.parametrize("package", CORE)
def test_readme_of_core_package_names_what_exists(package: str) -> None:
    text = (CONTROLPLANE / package / "README.md").read_text()
    named = set(re.findall(r"`([a-z_][\w.]*)`", _FENCE.sub("", text)))
    assert named, "a README names the modules and functions of its package"
    unknown = {name for name in named if not (defines(CONTROLPLANE / package, name) or defines(CONTROLPLANE, name))}
    assert unknown == set()
    assert f"(../controlplane/{package}/README.md)" in (ROOT / "docs" / "architecture.md").read_text()


def defines(folder: Path, name: str) -> bool:
    """Return whether a dotted name below a package is a package, a module, or something that a module defines."""
    first, _, rest = name.partition(".")
    if (folder / first).is_dir():
        return not rest or defines(folder / first, rest)
    module = folder / f"{first}.py"
    return module.is_file() and (not rest or rest in definitions(module))


@cache
def definitions(module: Path) -> frozenset[str]:
    """Return the dotted names of a module's functions, classes, methods and constants."""

    def below(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield prefix + name
                case ast.ClassDef(name=name, body=members):
                    yield prefix + name
                    yield from below(members, f"{prefix}{name}.")
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name

    return frozenset(below(ast.parse(module.read_text()).body, ""))


def test_events_page_lists_all_events_of_the_code() -> None:
    assert reasons_in_the_code() - documented_events() == set()


def test_documented_events_exist() -> None:
    composed = {f"Server{state.value}" for state in ServerState} | {phase.value for phase in Phase}
    composed |= {f"{name}Failed" for name in re.findall(r"^class (\w+):", source(), re.MULTILINE)}
    assert {one for one in documented_events() - composed if f'"{one}"' not in source()} == set()


def documented_events() -> set[str]:
    rows = re.findall(r"^\| (`[^|]*) \|", (generate.REFERENCE / "events.md").read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def reasons_in_the_code() -> set[str]:
    """Return the constants that follow ``"Normal"`` or ``"Warning"`` in a call: the reasons of events."""
    found: set[str] = set()
    texts = [path.read_text() for path in (ROOT / "controlplane").rglob("*.py")]
    for text in (text for text in texts if '"Warning"' in text or '"Normal"' in text):
        for node in ast.walk(ast.parse(text)):
            for kind, reason in zip(node.args, node.args[1:], strict=False) if isinstance(node, ast.Call) else ():
                if constants(kind) and constants(kind) <= {"Normal", "Warning"}:
                    found |= constants(reason)
    return found


def constants(node: ast.expr) -> set[str]:
    if isinstance(node, ast.IfExp):
        return constants(node.body) | constants(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
