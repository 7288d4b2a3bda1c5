"""Models, by the names that `function.toml` declares."""

from typing import Dict, Mapping

from fnctl._binding import Err, graph, tensor
from fnctl.error import BadRequest, ModelError
from fnctl.tensor import Tensor, TensorType


class Model:
    """A loaded model. Loading is cheap: the platform has the model resident and shares it.

    Load it when an instance starts, not at the top of a module: that code runs while the component is built, where there
    are no models.
    """

    def __init__(self, name: str, context):
        self.name = name
        self._context = context

    @classmethod
    def load(cls, name: str) -> "Model":
        """The model that `function.toml` declares under this name. Raises ModelError if there is none."""
        try:
            with graph.load_by_name(name) as loaded:
                return cls(name, loaded.init_execution_context())
        except Err as error:
            raise _failed(error, f"the model '{name}'") from None

    def run(self, inputs: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Computes: inputs by name in, outputs by name out, in the model's order. Raises ModelError."""
        named = []
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                raise BadRequest(f"the input '{name}' of the model '{self.name}' is no Tensor; make one with Tensor.f32")
            named.append((name, tensor.Tensor(value.dimensions, tensor.TensorType[value.type.name], value.data)))
        try:
            outputs = self._context.compute(named)
        except Err as error:
            raise _failed(error, f"the model '{self.name}'") from None
        return {name: _taken(output) for name, output in outputs}


def _taken(output) -> Tensor:
    # Given back to the platform at once: an instance may hold a few thousand resources only.
    with output:
        return Tensor(output.dimensions(), TensorType[output.ty().name], output.data())


def _failed(error: Err, what: str) -> ModelError:
    with error.value as value:
        return ModelError(value.code().name, f"{what}: {value.data()}")
