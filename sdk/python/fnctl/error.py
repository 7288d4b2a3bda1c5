"""Errors that become responses."""


class Error(Exception):
    """A failed request: a status (400 to 599) and a text for the caller."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status if 400 <= status < 600 else 500
        self.message = message


class BadRequest(Error):
    """400: the caller's input is wrong."""

    def __init__(self, message: str):
        super().__init__(400, message)


# The error codes of wasi-nn: the status of the response, and what to do next.
_KINDS = {
    "INVALID_ARGUMENT": (400, "give each input the name, type and shape that the model declares"),
    "INVALID_ENCODING": (500, "the platform runs ONNX models; export the model to ONNX"),
    "TIMEOUT": (504, "raise `timeout` in function.toml, or send less in one request"),
    "RUNTIME_ERROR": (500, "read the function's log lines of this request"),
    "UNSUPPORTED_OPERATION": (500, "use a model and a target that the platform supports (ONNX, cpu)"),
    "TOO_LARGE": (500, "send smaller tensors, or raise `memory` in function.toml"),
    "NOT_FOUND": (500, "declare the model under [models] in function.toml and deploy again"),
    "SECURITY": (500, "ask the platform's operator: the model may not be used this way"),
    "UNKNOWN": (500, "read the function's log lines of this request"),
}


class ModelError(Error):
    """The platform's inference failed. `kind` is the error code of wasi-nn, such as `not-found`."""

    def __init__(self, kind: str, text: str):
        status, step = _KINDS.get(kind, _KINDS["UNKNOWN"])
        self.kind = kind.lower().replace("_", "-")
        super().__init__(status, f"{self.kind}: {text}; {step}")
