"""Files packed with zstd: by Python's own reader from 3.14 on, else by the package zstandard.

The only user of either.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO


class Damaged(Exception):
    """A file that ends too early, or is none of zstd's from some place on."""


def readable() -> bool:
    """Whether there is a reader on this machine."""
    try:
        _reader()
    except ImportError:
        return False
    return True


@contextmanager
def opened(file: str) -> Iterator[io.BufferedIOBase]:
    """What is packed in a file, read as a stream. Raises Damaged where that is read."""
    read, troubles = _reader()
    with open(file, "rb") as packed, read(packed) as stream:
        try:
            yield stream
        except troubles as error:
            raise Damaged(str(error)) from error


def _reader() -> tuple[Callable[[IO[bytes]], io.BufferedIOBase], tuple[type[Exception], ...]]:
    """What opens a stream, and what it raises. Raises ImportError where there is none."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415

        return zstd.ZstdFile, (zstd.ZstdError, EOFError)
    import zstandard  # noqa: PLC0415

    read = zstandard.ZstdDecompressor().stream_reader
    return (
        lambda packed: io.BufferedReader(read(packed, read_across_frames=True)),
        (zstandard.ZstdError,),
    )
