"""Rows of one tensor at a time, by position: memory is what a call asks for, not the file's size.

Floats travel as the integers that store them, so that nothing rounds them on the way. Which rows
to read, and what becomes of them, is for the caller to say.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import mlx.core as mx

from glm_mlx.checkpoint.header import DTYPES, TensorInfo
from glm_mlx.checkpoint.refusal import bad_tensor, unreadable

if TYPE_CHECKING:  # numpy costs a tenth of a second, which only a reader of rows should pay
    import numpy.typing as npt

    from glm_mlx.checkpoint.reader import Checkpoint

_STORAGE = {
    "BF16": "<u2",
    "F16": "<u2",
    "F32": "<u4",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "BOOL": "|b1",
}
# The bits of +infinity, and how to view a value. Read as a signed integer, a positive NaN or
# infinity is at least that and no other value is; read as an unsigned one, a negative NaN or
# infinity is at least that with the sign bit set. Two maxima find them without a copy.
_INFINITY = {"BF16": (0x7F80, "<i2"), "F16": (0x7C00, "<i2"), "F32": (0x7F800000, "<i4")}
_CACHED_BYTES = 1 << 19


class RowReader:
    """Reads rows of a checkpoint's tensors; a context manager that keeps each file open.

    Files are read by position and never mapped: a mapped page counts as this process's memory,
    and a volume that goes away ends the process instead of a call.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, info: TensorInfo, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows [start, stop) of the first axis, shape (stop - start, *info.shape[1:]).

        BF16 and F16 come as uint16, F32 as uint32, every other dtype as itself.

        Raises:
            CheckpointError: the file was cut or replaced since it was checked, or cannot be read.
        """
        import numpy as np

        assert 0 <= start <= stop <= info.shape[0], (info.name, start, stop)
        block = np.empty((stop - start, *info.shape[1:]), _STORAGE[info.dtype])
        row_bytes = math.prod(info.shape[1:]) * block.itemsize
        left = block.reshape(-1).view(np.uint8).data
        position = info.start + start * row_bytes
        try:
            descriptor = self._descriptor(info.file)
            while left:
                count = os.preadv(descriptor, [left], position)
                if count == 0:
                    raise bad_tensor(info.file, info.name, "was cut off while being read")
                left, position = left[count:], position + count
        except OSError as cause:
            raise unreadable(info.file, cause) from cause
        return block

    def _descriptor(self, file: Path) -> int:
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            descriptor = self._descriptors[file] = os.open(file, os.O_RDONLY)
            self._checkpoint.check_stamp(file, os.fstat(descriptor))
        return descriptor


def as_mlx(block: npt.NDArray[Any], dtype: str) -> mx.array:
    """Return a copy of what `RowReader.read` gave, in the tensor's own dtype ("BF16" ...)."""
    return mx.array(block).view(DTYPES[dtype])


def as_bytes(array: mx.array) -> memoryview:
    """Return the array's bytes in row-major order, without a copy when it lies so in memory."""
    return memoryview(array.flatten().view(mx.uint8))  # type: ignore[arg-type]  # it is a buffer


def count_non_finite(block: npt.NDArray[Any] | bytes, dtype: str) -> int:
    """Return how many values of a block in storage form are NaN or infinite; 0 for integers."""
    import numpy as np

    if dtype not in _INFINITY:
        return 0
    infinity, signed = _INFINITY[dtype]
    values = np.frombuffer(block, signed)
    unsigned = values.dtype.str.replace("i", "u")
    negative_infinity = infinity + (1 << 8 * values.itemsize - 1)
    step = _CACHED_BYTES // values.itemsize
    count = 0
    for first in range(0, values.size, step):
        part = values[first : first + step]
        if part.max() >= infinity or part.view(unsigned).max() >= negative_infinity:
            count += int(np.count_nonzero(part & infinity == infinity))
    return count
