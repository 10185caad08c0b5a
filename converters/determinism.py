"""Detection of models that answer the same input differently."""

import numpy as np

from controlplane.domain.comparison import compare
from controlplane.domain.samples import Tensors
from converters.runtimes import Run


def differing_output(run: Run, inputs: Tensors) -> str | None:
    """Run the model twice on the same inputs and return the first output that differs; None if all agree.

    The default tolerances apply, because threads sum in different orders and such differences do not count.
    """
    first = run({name: np.copy(array) for name, array in inputs.items()})
    second = run({name: np.copy(array) for name, array in inputs.items()})
    return next((item.output for item in compare(second, first, {}) if not item.agrees), None)
