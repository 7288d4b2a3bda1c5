"""Tensors with typed elements."""

import enum
import sys
from array import array
from typing import Iterable, Sequence, Union


class TensorType(enum.Enum):
    """The element types of wasi-nn, and the number of bytes of one element."""

    FP16 = ("FP16", 2, None)
    FP32 = ("FP32", 4, "f")
    FP64 = ("FP64", 8, "d")
    BF16 = ("BF16", 2, None)
    U8 = ("U8", 1, "B")
    I32 = ("I32", 4, "i")
    I64 = ("I64", 8, "q")

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return self.value[1]

    @property
    def code(self) -> Union[str, None]:
        """The type code of Python's `array`; none for the half precisions, which are raw bytes here."""
        return self.value[2]


class Tensor:
    """A dense tensor: dimensions, an element type, and the elements row by row as little-endian bytes."""

    __slots__ = ("dimensions", "type", "data")

    def __init__(self, dimensions: Sequence[int], type: TensorType, data: bytes):
        """A tensor of raw bytes; the way to make half precision ones. Raises ValueError if they do not fill the shape."""
        self.dimensions = list(dimensions)
        self.type = type
        self.data = bytes(data)
        wanted = type.size
        for size in self.dimensions:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**32:
                raise ValueError(f"a dimension must be a whole number from 0 to 4294967295, not {size!r}")
            wanted *= size
        if wanted != len(self.data):
            elements = len(self.data) // type.size
            raise ValueError(f"{elements} elements do not fill a tensor of shape {self.dimensions}; check the shape")

    @classmethod
    def of(cls, type: TensorType, dimensions: Sequence[int], elements: Iterable) -> "Tensor":
        """A tensor of numbers. Raises ValueError if they do not fill the shape or do not fit the type."""
        if type.code is None:
            raise ValueError(f"Python has no {type.name} numbers; give the raw bytes to Tensor(...)")
        try:
            values = array(type.code, elements)
        except (TypeError, OverflowError) as problem:
            raise ValueError(f"the elements are not all {type.name} numbers: {problem}") from None
        if sys.byteorder == "big":
            values.byteswap()
        return cls(dimensions, type, values.tobytes())

    @classmethod
    def f32(cls, dimensions: Sequence[int], elements: Iterable[float]) -> "Tensor":
        """A tensor of single precision numbers."""
        return cls.of(TensorType.FP32, dimensions, elements)

    @classmethod
    def f64(cls, dimensions: Sequence[int], elements: Iterable[float]) -> "Tensor":
        """A tensor of double precision numbers."""
        return cls.of(TensorType.FP64, dimensions, elements)

    @classmethod
    def u8(cls, dimensions: Sequence[int], elements: Iterable[int]) -> "Tensor":
        """A tensor of unsigned bytes."""
        return cls.of(TensorType.U8, dimensions, elements)

    @classmethod
    def i32(cls, dimensions: Sequence[int], elements: Iterable[int]) -> "Tensor":
        """A tensor of signed 32-bit numbers."""
        return cls.of(TensorType.I32, dimensions, elements)

    @classmethod
    def i64(cls, dimensions: Sequence[int], elements: Iterable[int]) -> "Tensor":
        """A tensor of signed 64-bit numbers."""
        return cls.of(TensorType.I64, dimensions, elements)

    def elements(self) -> list:
        """The elements, row by row. Raises ValueError for the half precisions; their bytes are `data`."""
        if self.type.code is None:
            raise ValueError(f"Python has no {self.type.name} numbers; read the raw bytes from .data")
        values = array(self.type.code, self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return values.tolist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dimensions, self.type, self.data) == (other.dimensions, other.type, other.data)

    def __repr__(self) -> str:
        return f"Tensor({self.dimensions}, {self.type.name})"
