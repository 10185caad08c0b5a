"""Pipelines as people write them: ensembles and a Python model that calls others, over models that scale or add."""

from collections.abc import Sequence

from tests.triton_format import directories

TENSORS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


def scaling(factor: float) -> dict[str, bytes]:
    """A Python model that multiplies by a constant in its code, so that its versions have one configuration."""
    body = (
        "    def execute(self, requests):\n"
        f"        return [answer(tensor(request) * {factor}) for request in requests]\n"
    )
    return directories.python(body, "instance_group [ { kind: KIND_CPU } ]\n")


BATCHED_TENSORS = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
"""The tensors of a model made by `onnx_scale`."""


def ensemble(members: Sequence[str], *, version: int = -1, tensors: str = TENSORS) -> dict[str, bytes]:
    """An ensemble that sends its input through the members, one after the other; its version folder is empty."""
    steps = []
    for position, member in enumerate(members):
        source = "x" if position == 0 else f"t{position}"
        target = "y" if position == len(members) - 1 else f"t{position + 1}"
        steps.append(
            f'{{ model_name: "{member}" model_version: {version} input_map {{ key: "x" value: "{source}" }} '
            f'output_map {{ key: "y" value: "{target}" }} }}'
        )
    config = f'platform: "ensemble"\n{tensors}ensemble_scheduling {{ step [ {", ".join(steps)} ] }}\n'
    return {"config.pbtxt": config.encode()}


def calling(member: str, *, declared: bool = True) -> dict[str, bytes]:
    """A Python model that calls another one, in the version that its deployment pins, and adds 1 to the answer."""
    body = (
        "    def initialize(self, args):\n"
        "        import json\n"
        "        parameters = json.loads(args['model_config'])['parameters']\n"
        "        self.pins = json.loads(parameters['tcp_members']['string_value'])\n\n"
        "    def execute(self, requests):\n"
        "        return [self.one(request) for request in requests]\n\n"
        "    def one(self, request):\n"
        "        call = pb_utils.InferenceRequest(\n"
        f"            model_name='{member}', model_version=self.pins['{member}'], requested_output_names=['y'],\n"
        "            inputs=[pb_utils.Tensor('x', tensor(request))],\n"
        "        )\n"
        "        response = call.exec()\n"
        "        if response.has_error():\n"
        "            raise pb_utils.TritonModelException(response.error().message())\n"
        "        return answer(pb_utils.get_output_tensor_by_name(response, 'y').as_numpy() + 1)\n"
    )
    config = f'parameters {{ key: "depends_on" value {{ string_value: "{member}" }} }}\n' if declared else ""
    return directories.python(body, config)
