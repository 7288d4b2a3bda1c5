"""Stands in for the platform on the host: a test says what a model answers.

    from fnctl import Tensor, testing

    testing.set_model("iris", lambda inputs: {"probabilities": Tensor.f32([1, 3], [0.1, 0.2, 0.7])})

The module has the shape of what componentize-py generates, so that a test goes through the wrapper's own encoding.
"""

import enum
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple


class Err(Exception):
    """The failure case of a component-model result."""

    def __init__(self, value: Any):
        super().__init__(value)
        self.value = value


@dataclass
class Ok:
    """The success case of a component-model result."""

    value: Any


_TYPES = enum.Enum("TensorType", "FP16 FP32 FP64 BF16 U8 I32 I64", start=0)
_CODES = enum.Enum(
    "ErrorCode",
    "INVALID_ARGUMENT INVALID_ENCODING TIMEOUT RUNTIME_ERROR UNSUPPORTED_OPERATION TOO_LARGE NOT_FOUND SECURITY UNKNOWN",
    start=0,
)
_models: Dict[str, Callable] = {}
_variables: Dict[str, str] = {}


def set_model(name: str, compute: Callable) -> None:
    """Makes `Model.load(name)` succeed, with a model that answers as `compute(inputs)` says: tensors by name, both ways."""
    _models[name] = compute


def set_environment(variables: Dict[str, str]) -> None:
    """What `environment()` gives."""
    _variables.clear()
    _variables.update(variables)


class _Resource:
    """What is given back to the platform at the end of a `with`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class _Error(_Resource):
    def __init__(self, code: str, text: str):
        self._parts = (_CODES[code], text)

    def code(self) -> _CODES:
        return self._parts[0]

    def data(self) -> str:
        return self._parts[1]


def failure(code: str, text: str) -> Err:
    """What a model raises in a test: an error code of wasi-nn, such as TIMEOUT, and the platform's text."""
    return Err(_Error(code, text))


class _Tensor(_Resource):
    def __init__(self, dimensions: List[int], ty: _TYPES, data: bytes):
        self._parts = (list(dimensions), ty, bytes(data))

    def dimensions(self) -> List[int]:
        return self._parts[0]

    def ty(self) -> _TYPES:
        return self._parts[1]

    def data(self) -> bytes:
        return self._parts[2]


class _Graph(_Resource):
    def __init__(self, compute: Callable):
        self._compute = compute

    def init_execution_context(self) -> "_Graph":
        return self

    def compute(self, inputs: List[Tuple[str, _Tensor]]) -> List[Tuple[str, _Tensor]]:
        from fnctl.tensor import Tensor, TensorType

        named = {name: Tensor(t.dimensions(), TensorType[t.ty().name], t.data()) for name, t in inputs}
        outputs = self._compute(named)
        return [(name, _Tensor(t.dimensions, _TYPES[t.type.name], t.data)) for name, t in outputs.items()]


def _load_by_name(name: str) -> _Graph:
    if name not in _models:
        raise failure("NOT_FOUND", "no such model in this test; set it with fnctl.testing.set_model")
    return _Graph(_models[name])


class _Closed:
    pass


class _Other:
    pass


graph = SimpleNamespace(load_by_name=_load_by_name)
tensor = SimpleNamespace(Tensor=_Tensor, TensorType=_TYPES)
environment = SimpleNamespace(get_environment=lambda: list(_variables.items()))
streams = SimpleNamespace(StreamError_Closed=_Closed)
types = SimpleNamespace(Method_Other=_Other)
