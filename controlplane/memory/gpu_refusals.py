"""Extracts from Triton's refusal of a load which GPUs it cannot use. Pure.

The driver may report GPUs that a Triton does not see (it was started with others, or cannot use CUDA) or does not
accept (its minimum compute capability). The messages, as seen on 2.51 without a GPU::

    instance group m_0 of model m has kind KIND_GPU but no GPUs are available
    instance group m_0 of model m specifies invalid or unsupported gpu id 0. GPUs with at least the minimum required
    CUDA compute compatibility of 6.000000 are: 1 2
"""

import re
from collections.abc import Iterable

from controlplane.gpu.base import DeviceReading

_NONE = "KIND_GPU but no GPUs are available"
_SOME = re.compile(r"invalid or unsupported gpu id \d+\. GPUs with at least .*? are:([ \d,]*)")


def unusable_gpus(refusal: str, gpus: Iterable[DeviceReading]) -> frozenset[str]:
    """Return which of a server's GPUs its Triton cannot use; empty if the refusal has another cause.

    Args:
        refusal: Triton's error message.
        gpus: The GPUs that were considered usable.
    """
    if _NONE in refusal:
        return frozenset(gpu.name for gpu in gpus)
    said = _SOME.search(refusal)
    if said is None:
        return frozenset()
    usable = {int(number) for number in re.findall(r"\d+", said[1])}
    return frozenset(gpu.name for gpu in gpus if gpu.device_id is not None and gpu.device_id not in usable)
