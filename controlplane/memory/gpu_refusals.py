"""What Triton's refusal of a load says of the GPUs that it can use. Pure.

The driver may have GPUs that a Triton does not see (it was started with others, or cannot use CUDA) or does not take
(its least compute capability). Its words, as seen on 2.51 without a GPU::

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
    """Return which of a server's GPUs its Triton cannot use; empty where the refusal is about something else.

    Args:
        refusal: Triton's words.
        gpus: The GPUs that were thought to be usable.
    """
    if _NONE in refusal:
        return frozenset(gpu.name for gpu in gpus)
    said = _SOME.search(refusal)
    if said is None:
        return frozenset()
    usable = {int(number) for number in re.findall(r"\d+", said[1])}
    return frozenset(gpu.name for gpu in gpus if gpu.device_id is not None and gpu.device_id not in usable)
