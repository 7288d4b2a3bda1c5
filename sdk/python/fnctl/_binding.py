"""The boundary to the platform: what componentize-py generates from wit/function.wit.

These names are imported when the component is built, since its memory is a snapshot of that moment and there are no
Python files later. On the host there is no such module, and `fnctl.testing` takes its place.
"""

try:
    from componentize_py_types import Err, Ok
    from wit_world.imports import environment, graph, streams, tensor, types
except ModuleNotFoundError as missing:
    if missing.name not in ("componentize_py_types", "wit_world"):
        raise
    from fnctl.testing import Err, Ok, environment, graph, streams, tensor, types

__all__ = ["Err", "Ok", "environment", "graph", "streams", "tensor", "types"]
