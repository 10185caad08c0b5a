"""Sample inputs that users provide as an ``.npz`` file."""

import io
import zipfile
from pathlib import Path

import numpy as np

from controlplane.domain.samples import MAX_SAMPLES_BYTES, UNREADABLE, Sample, decode_samples, too_large
from controlplane.errors import InvalidInputError


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Read samples from an ``.npz``: either the output of ``pull --samples``, or one array for each input (one sample).

    Raises:
        InvalidInputError: The file is not such an archive, contains pickles, or is too large.
    """
    if path.stat().st_size > MAX_SAMPLES_BYTES:
        raise InvalidInputError(too_large("the samples have"))
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {info.filename for info in archive.infolist()}
            if sum(info.file_size for info in archive.infolist()) > MAX_SAMPLES_BYTES:
                raise InvalidInputError(too_large("the samples unpack to"))
        if "index.npy" in names and any(name.startswith("0.inputs.") for name in names):
            return decode_samples(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
    except UNREADABLE as error:
        raise InvalidInputError(
            f"the samples cannot be read: {error}; give an .npz with one array for each input"
        ) from error
    if not inputs:
        raise InvalidInputError("the samples contain no arrays; give an .npz with one array for each input")
    return (Sample(inputs, {}),)
