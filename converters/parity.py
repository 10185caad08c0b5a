"""Comparison of a converted model with its original."""

from collections.abc import Mapping, Sequence

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.comparison import DEFAULT_TOLERANCES, EXACT, compare, worst
from controlplane.domain.manifest import ParityReport
from controlplane.domain.samples import Sample
from controlplane.domain.signature import DataType
from controlplane.domain.tolerance import OutputComparison, Tolerance
from controlplane.errors import InvalidInputError, ParityError
from converters.options import Precision
from converters.runtimes import Run, RunError

# Tolerances for lower precision: a share of the output's largest value, and a relative error. fp16 has 11 significant
# bits and sums with them; dynamic int8 quantisation has 8 bits for weights and activations, spread over the tensor's
# range, so its error is a share of the range and not of the element.
_SHARES: Mapping[str, tuple[float, float]] = {"fp16": (0.01, 0.01), "int8": (0.10, 0.10)}


def tolerances_for(
    outputs: Sequence[Mapping[str, Array]], precision: Precision, given: Mapping[str, Tolerance]
) -> dict[str, Tolerance]:
    """Return the tolerance of each output: the given one, or the default of its type and precision.

    Raises:
        InvalidInputError: A tolerance is given for an output that does not exist.
    """
    if unknown := sorted(set(given) - set(outputs[0])):
        raise InvalidInputError(f"a tolerance is given for {unknown[0]!r}, but the outputs are {sorted(outputs[0])}")
    tolerances = {}
    for name, array in outputs[0].items():
        dtype = DataType.of(array)
        tolerance = DEFAULT_TOLERANCES.get(dtype, EXACT)
        if precision in _SHARES and dtype.is_float:
            share, relative = _SHARES[precision]
            finite = [np.abs(sample[name][np.isfinite(sample[name])]).max(initial=0.0) for sample in outputs]
            absolute = max(tolerance.absolute, share * float(max(finite)))
            tolerance = Tolerance(absolute=absolute, relative=max(tolerance.relative, relative))
        tolerances[name] = given.get(name, tolerance)
    return tolerances


def check_parity(
    run: Run, golden: Sequence[Sample], tolerances: Mapping[str, Tolerance], *, generated: bool, seed: int
) -> ParityReport:
    """Run the converted model on the samples and compare it with the original's answers.

    Raises:
        ParityError: The converted model fails, or an output is outside its tolerance; the message names the output
            and the error.
    """
    comparisons: list[OutputComparison] = []
    for number, sample in enumerate(golden):
        try:
            answer = run(sample.inputs)
        except RunError as error:
            raise ParityError(
                f"the converted model fails on sample {number}, which the original model answers: {error}"
            ) from error
        comparisons.extend(compare(answer, sample.outputs, tolerances))
    joined = worst(tuple(comparisons))
    for comparison in joined:
        if not comparison.agrees:
            raise ParityError(
                f"the outputs of the converted model differ from those of the original: {comparison.reason}",
                outputs=[item.model_dump(mode="json") for item in joined],
            )
    return ParityReport(samples=len(golden), generated=generated, seed=seed if generated else None, outputs=joined)
