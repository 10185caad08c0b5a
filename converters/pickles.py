"""Detection of the names that a pickle would import, without loading it.

Unpickling calls whatever the stream names. `pickletools.genops` only decodes the stream, so it is safe to run first.
"""

import pickletools
from collections.abc import Iterator

from controlplane.errors import InvalidArtifactError, UntrustedArtifactError

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT"}

# The names in a pickle of plain tensors; all of them are also on the allow-list of torch.load(weights_only=True).
PLAIN_TENSOR_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._tensor._rebuild_from_type_v2",
        "torch.Size",
        "torch.device",
        "torch.storage.UntypedStorage",
        *(f"torch.{kind}" for kind in ("Tensor", "nn.parameter.Parameter")),
        *(
            f"torch.{kind}Storage"
            for kind in ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool")
        ),
    }
)


def imported_names(data: bytes, name: str) -> set[str]:
    """Return every ``module.name`` that unpickling would import.

    Raises:
        InvalidArtifactError: The pickle is truncated or malformed.
    """
    try:
        return set(_walk(data))
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise InvalidArtifactError(f"{name}: the pickle inside is truncated or damaged") from error


def _walk(data: bytes) -> Iterator[str]:
    strings: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:]) if len(strings) >= 2 else "?"
        elif opcode.name in _STRINGS:
            strings.append(str(argument))
        elif opcode.name == "MEMOIZE" and strings:
            memo[len(memo)] = strings[-1]
        elif opcode.name in _PUTS and strings:
            memo[int(str(argument))] = strings[-1]
        elif opcode.name in _GETS and int(str(argument)) in memo:
            strings.append(memo[int(str(argument))])
        elif opcode.name in {"EXT1", "EXT2", "EXT4"}:
            yield "copyreg extension"


def is_plain(names: set[str]) -> bool:
    """Return whether a pickle with these imports is a plain collection of tensors."""
    return names <= PLAIN_TENSOR_GLOBALS


def refuse_untrusted_pickle(what: str, names: set[str] | None = None, *, trust: bool) -> None:
    """Reject a pickle, because reading it would run code, unless the caller trusts it.

    Raises:
        UntrustedArtifactError: ``trust`` is false.
    """
    if trust:
        return
    imports = f" (it imports {', '.join(sorted(names)[:5])})" if names else ""
    raise UntrustedArtifactError(
        f"{what} is a pickle, which can run any code when it is read{imports}; save it as ONNX, safetensors or "
        "skops, or allow it with --trust if you trust the source of the file"
    )
