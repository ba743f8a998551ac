"""A GGUF file's tensors in float32, kept where they load at the disk's speed.

Undoing a quantization takes far longer than reading what it gives. That is kept below normlab's
cache (`NORMLAB_CACHE`) as safetensors, which are mapped into memory, under the GGUF's hash.
"""

import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from normlab.data.cache import trim
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.huggingface import SINGLE, Safetensors
from normlab.pretrained.packages import cache_folder, sha256
from normlab.pretrained.source import CheckpointError, Source

ROOM = 4 * 2**30
"""Bytes that the folder may hold; what was used least lately goes first."""


def dequantized(file: GGUF) -> Source:
    """The file's tensors, kept since an earlier call or from now on.

    The file itself where nothing in it is quantized, where they are larger than `ROOM`, or where
    nothing can be written.
    """
    size = 4 * sum(map(math.prod, file.shapes.values()))
    if not file.quantized or size > ROOM:
        return file
    folder = cache_folder() / "dequantized" / sha256(file.path)
    with suppress(CheckpointError):  # not there, or damaged
        found = Safetensors(folder)
        if found.shapes == file.shapes:
            os.utime(folder / SINGLE)
            return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            _write(file, Path(scratch) / SINGLE)
            os.replace(Path(scratch) / SINGLE, folder / SINGLE)  # whole, whoever keeps it too
    except OSError:
        return file
    trim(folder.parent, ROOM)
    return Safetensors(folder)


def _write(file: GGUF, path: Path) -> None:
    """The tensors as safetensors, one at a time in memory."""
    header, end = dict[str, dict[str, object]](), 0
    for name, shape in file.shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, end)}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as opened:
        opened.write(len(told).to_bytes(8, "little") + told)
        for name in file.shapes:
            opened.write(np.ascontiguousarray(file.read(name), "<f4").data)
