"""What a function written in Python imports: models, tensors, requests and responses.

    from fnctl import Model, Request, Tensor, export

    class App:
        def __init__(self):                      # once per instance, before its first request
            self.model = Model.load("iris")

        def handle(self, request: Request):      # once per request
            features = Tensor.f32([1, 4], request.json()["features"])
            outputs = self.model.run({"features": features})
            return {"probabilities": outputs["probabilities"].elements()}

    IncomingHandler, Lifecycle = export(App)

Built with componentize-py, this is an ordinary `wasi:http` component. On the host, `fnctl.testing` stands in for the
platform, so that unit tests run with the ordinary interpreter.
"""

from fnctl.error import BadRequest, Error, ModelError
from fnctl.http import Request, Response, answer, environment, export
from fnctl.model import Model
from fnctl.tensor import Tensor, TensorType

__all__ = [
    "BadRequest",
    "Error",
    "Model",
    "ModelError",
    "Request",
    "Response",
    "Tensor",
    "TensorType",
    "answer",
    "environment",
    "export",
]
