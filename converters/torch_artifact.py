"""Detection and reading of the ZIP archives of torch and skops, without importing torch."""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from controlplane.domain.manifest import Format
from controlplane.domain.signature import Signature
from controlplane.errors import InvalidArtifactError, UntrustedArtifactError
from converters.archives import Listing, doubled
from converters.other_formats import AOTINDUCTOR
from converters.pickles import imported_names, is_plain, refuse_untrusted_pickle

TORCHSCRIPT_HINT = (
    "a TorchScript file does not declare the shapes of its inputs and outputs; give a signature, or samples to "
    "infer it from"
)

WEIGHTS_HINT = (
    "the file contains weights without their module; convert it with a function that builds the module and is "
    "importable where the control plane runs (--factory package.module:function, with --trust because it runs "
    "code)"
)
PICKLED_HINT = "the file is a pickled module; convert it with --trust, because reading it runs its code"


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """Facts that a torch archive declares about itself."""

    format: Format
    signature: Signature | None
    attributes: dict[str, JsonValue]
    hints: tuple[str, ...] = ()


def is_skops(listing: Listing) -> bool:
    """Return whether the archive is a skops file."""
    return "schema.json" in listing.sizes


def skops_attributes(listing: Listing) -> dict[str, JsonValue]:
    """Read a skops file's schema.

    Raises:
        InvalidArtifactError: The schema is damaged.
    """
    schema = _json(listing, "schema.json")
    return {
        "container": "skops",
        "estimator": f"{schema.get('__module__', '')}.{schema.get('__class__', '')}",
        "skops_version": str(schema.get("_skops_version", "")),
    }


def inspect_torch_archive(listing: Listing, *, trust: bool) -> TorchFacts:
    """Detect which kind of torch archive this is.

    Raises:
        InvalidArtifactError: The archive is of no supported kind, or contains compiled code (AOTInductor).
        UntrustedArtifactError: The archive contains a pickle that runs code, and ``trust`` is false.
    """
    name = listing.path.name
    if "constants.pkl" in listing.sizes and "data.pkl" in listing.sizes and listing.under("code/"):
        return TorchFacts(
            Format.TORCHSCRIPT,
            None,
            {"tensors": len(listing.under("data/")), "weights_bytes": _bytes_under(listing, "data/")},
            (TORCHSCRIPT_HINT,),
        )
    if listing.under("data/aotinductor/"):
        raise InvalidArtifactError(f"{name} contains {AOTINDUCTOR}")
    if models := [member for member in listing.under("models/") if member.endswith(".json")]:
        return _export_program(listing, models, trust=trust)
    if "serialized_exported_program.json" in listing.sizes:
        raise InvalidArtifactError(
            f"{name} is a torch.export program from a torch release older than 2.7; save it again"
        )
    if "data.pkl" in listing.sizes:
        names = imported_names(listing.read("data.pkl"), name)
        weights, hint = "state dict", WEIGHTS_HINT
        if not is_plain(names):
            refuse_untrusted_pickle(name, {n for n in names if not is_plain({n})}, trust=trust)
            weights, hint = "pickled module", PICKLED_HINT
        facts: dict[str, JsonValue] = {"weights": weights, "weights_bytes": _bytes_under(listing, "data/")}
        return TorchFacts(Format.PYTORCH, None, facts, (hint,))
    raise InvalidArtifactError(
        f"{name} is a ZIP archive, but not TorchScript, torch.export, a PyTorch state dict or skops"
    )


def _export_program(listing: Listing, models: list[str], *, trust: bool) -> TorchFacts:
    name = listing.path.name
    if len(models) != 1:
        raise InvalidArtifactError(f"{name} contains {len(models)} exported programs; exactly one is required")
    program = _json(listing, models[0])
    if not trust:
        _refuse_code(listing, program)
    version = program.get("schema_version")
    facts: dict[str, JsonValue] = {
        "torch_version": str(program.get("torch_version", "")),
        "schema_version": f"{version.get('major')}.{version.get('minor')}" if isinstance(version, dict) else "",
        "weights_bytes": _bytes_under(listing, "data/weights/"),
    }
    hint = "its signature is read during the conversion; Triton serves the result of the conversion"
    return TorchFacts(Format.TORCH_EXPORT, None, facts, (hint,))


def _refuse_code(listing: Listing, program: dict[str, Any]) -> None:
    """Reject an archive whose code `torch.export.load` would run (torch 2.13).

    `torch.export.load` fully unpickles objects and tensors marked ``use_pickle``, and falls back to that for sample
    inputs. It passes symbolic expressions to ``sympy.sympify``, which evaluates Python. It executes guards. It looks up
    a node's target by name, and ``torch.os.system`` is such a name.

    Raises:
        UntrustedArtifactError: The archive uses one of these ways.
    """
    reasons: list[str] = []
    for member in listing.sizes:
        folder, _, last = member.rpartition("/")
        if folder in {"data/weights", "data/constants"} and last.endswith("_config.json"):
            config = _json(listing, member).get("config", {})
            entries = config.values() if isinstance(config, dict) else [None]
            if any(not isinstance(entry, dict) or entry.get("use_pickle") is not False for entry in entries):
                reasons.append(f"{member} names pickled objects")
        elif folder in {"data/weights", "data/constants"} and last.endswith(".pt"):
            reasons.append(f"{member} is a pickle")
        elif folder == "data/sample_inputs" and not _plain_torch_file(listing.read(member)):
            reasons.append(f"{member} is a pickle that imports more than tensors")
    reasons += [f"it calls {target!r}" for target in _texts(program, "target") if not _TARGET.fullmatch(target)][:1]
    reasons += [f"it evaluates {text[:60]!r}" for text in _texts(program, "expr_str") if not _harmless(text)][:1]
    guards = program.get("guards_code") or []
    reasons += [f"it executes {str(text)[:60]!r}" for text in guards if not _harmless(str(text))][:1]
    if reasons:
        raise UntrustedArtifactError(
            f"{listing.path.name} would run its own code when it is loaded: {reasons[0]}; export it again without "
            "that code, or allow it with --trust if you trust the source of the file"
        )


_TARGET = re.compile(r"(torch\.ops\.\w+(\.\w+)+|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._sym_\w+)")
_CALLS = re.compile(
    r"(Symbol|Integer|Float|Rational|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|"
    r"CeilDiv|CeilToInt|FloorToInt|TruncToInt|TruncToFloat|ToFloat|Where|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow|"
    r"RoundToInt|RoundDecimal|ModularIndexing|LShift|RShift|Identity|BitwiseFn_\w+|OpaqueUnaryFn_\w+|Abs|floor|ceiling|"
    r"sqrt|int|len|size|stride|dim|storage_offset|isnan|isinf)"
)
_ATTRIBUTES = {"shape", "dtype", "device", "inf"}
_HARMLESS_NODES = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Subscript, ast.Call,
    ast.Attribute, ast.keyword, ast.Tuple, ast.List, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


def _harmless(text: str) -> bool:
    """Return whether an expression is arithmetic over shapes, with only calls and attributes from a short list."""
    if len(text) > 10_000:
        return False
    try:
        # A guard may contain its source as a comment after a line break.
        tree = (
            ast.parse(text.split("\n", 1)[0].strip(), mode="eval") if "\n" not in text else ast.parse(text, mode="eval")
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _HARMLESS_NODES):
            return False
        if isinstance(node, ast.Attribute) and not (
            _CALLS.fullmatch(node.attr) or node.attr in {"shape", "dtype", "device", "inf"}
        ):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return False
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if not _CALLS.fullmatch(called):
                return False
    return True


def _plain_torch_file(data: bytes) -> bool:
    """Return whether a small torch.save archive contains only tensors and containers."""
    if not data:
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if doubled(archive.namelist()) is not None:
                return False
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return bool(pickles) and all(is_plain(imported_names(archive.read(name), name)) for name in pickles)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, InvalidArtifactError):
        return False


def _texts(node: Any, key: str) -> Iterator[str]:
    """Yield every string under a key, anywhere in a JSON document."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for name, value in item.items():
                if name == key and isinstance(value, str):
                    yield value
                else:
                    stack.append(value)
        elif isinstance(item, list):
            stack.extend(item)


def _json(listing: Listing, member: str) -> dict[str, Any]:
    try:
        document = json.loads(listing.read(member))
    except (ValueError, RecursionError) as error:
        raise InvalidArtifactError(f"{listing.path.name}: its member {member!r} is damaged") from error
    if not isinstance(document, dict):
        raise InvalidArtifactError(f"{listing.path.name}: its member {member!r} is damaged")
    return document


def _bytes_under(listing: Listing, folder: str) -> int:
    return sum(listing.sizes[name] for name in listing.under(folder))
