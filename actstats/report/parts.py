"""Parts: what the page's script reads, numbers and text together, packed small and loaded when needed.

A part is JSON and named arrays, deflated. Its text in the page is base64, which needs no escaping anywhere: no name
of a file or a class ever stands in the page's markup.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT: Final = 8
_KINDS: Final = {"f4": "Float32Array", "i4": "Int32Array", "u2": "Uint16Array", "u1": "Uint8Array"}


def pack(content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> str:
    """Return `content`, fit for JSON, and `arrays` (f4, i4, u2 or u1) as one part, in base64.

    Before the deflation: the JSON's length as u4, the JSON, and the arrays one after another, each at a multiple of
    8 bytes, little-endian. Under `arrays` the JSON says where: name -> [JavaScript's type, offset, length].

    >>> unpack(pack({"name": "conv1"}, {"x": np.arange(3, dtype=np.float32)}))
    ({'name': 'conv1'}, {'x': array([0., 1., 2.], dtype=float32)})
    """
    offset, places, blocks = 0, {}, []
    for name, values in (arrays or {}).items():
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        places[name] = [_KINDS[little.dtype.str[1:]], offset, little.size]
        blocks.append(_padded(little.tobytes()))
        offset += len(blocks[-1])
    # Not ASCII alone: names of files stay as short as they are. NaN is no JSON, so none may be in it.
    text = json.dumps(
        {**content, "arrays": places}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    encoded = text.encode("utf-8", "replace")
    head = len(encoded).to_bytes(4, "little") + encoded
    return base64.b64encode(zlib.compress(b"".join([_padded(head), *blocks]), 9)).decode("ascii")


def unpack(part: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what `pack` packed, the arrays flat: what the page's script does, in Python."""
    data = zlib.decompress(base64.b64decode(part))
    length = int.from_bytes(data[:4], "little")
    content = json.loads(data[4 : 4 + length])
    start = len(_padded(data[: 4 + length]))
    types = {kind: dtype for dtype, kind in _KINDS.items()}
    arrays = {
        name: np.frombuffer(data, f"<{types[kind]}", count, start + offset)
        for name, (kind, offset, count) in content.pop("arrays").items()
    }
    return content, arrays


def shortened(values: NDArray[Any], bits: int = 10) -> NDArray[np.float32]:
    """Return `values` as f4 with `bits` of the 23 mantissa bits, rounded to nearest; the zeros left compress well.

    The relative error is at most 2^-(bits + 1). NaN and infinities stay what they are.

    >>> shortened(np.array([3.14159265, np.nan]), 4)
    array([3.125,   nan], dtype=float32)
    """
    whole = np.ascontiguousarray(values, np.float32)
    drop = np.uint32(23 - bits)
    rounded = whole.view(np.uint32) + (np.uint32(1) << (drop - np.uint32(1)))
    rounded = (rounded >> drop) << drop
    return np.where(np.isfinite(whole), rounded.view(np.float32), whole)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
