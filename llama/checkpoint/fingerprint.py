"""A short name for what a checkpoint holds, by which ranks of different hosts see that theirs are
the same.

It tells copies from different checkpoints; it does not guard against damage, since it reads only a
sample: that is what `llama.checkpoint.manifest` is for.
"""

from __future__ import annotations

import hashlib
import json

import torch

from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.wording import dtype_name

MOST_TENSORS = 64
SAMPLE_BYTES = 4096


def fingerprint(reader: CheckpointReader) -> str:
    """Hexadecimal SHA-256 of format, all names, shapes and dtypes, and samples. The configuration
    does not count: ranks compare it value by value.

    The samples are up to 4 KiB from the middle of up to 64 tensors. Where the folder lies, and how
    many files hold a tensor, makes no difference. Raises CheckpointError when a sample cannot be
    read.
    """
    facts = {
        "format": reader.format,
        "tensors": [
            [name, list(tensor.shape), dtype_name(tensor.dtype)]
            for name, tensor in sorted(reader.tensors.items())
        ],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sampled_names(reader):
        digest.update(_bytes_of(_middle(reader.tensors[name])))
    return digest.hexdigest()


def sampled_names(reader: CheckpointReader) -> list[str]:
    """The tensors whose content counts, evenly over all names in order, first and last included."""
    names = sorted(reader.tensors)
    count = min(MOST_TENSORS, len(names))
    steps = max(1, count - 1)
    return [names[index * (len(names) - 1) // steps] for index in range(count)]


def _middle(tensor: StoredTensor) -> StoredTensor:
    """About SAMPLE_BYTES from the middle: of the narrowings, the one that touches least."""
    most = max(1, SAMPLE_BYTES // tensor.dtype.itemsize)
    dims = range(len(tensor.shape))
    candidates = [_narrowed(tensor, order, most) for order in ([*dims], [*reversed(dims)])]
    return min(candidates, key=_touched_bytes)


def _narrowed(tensor: StoredTensor, dims: list[int], most: int) -> StoredTensor:
    """At most `most` elements: a run along dims[-1], and of the others as few as that takes."""
    for dim in dims:
        size = tensor.shape[dim]
        rest = 1
        for other in dims:
            rest *= tensor.shape[other] if other != dim else 1
        length = min(size, max(1, most // max(1, rest)))
        tensor = tensor.narrow(dim, (size - length) // 2, length)
    return tensor


def _touched_bytes(tensor: StoredTensor) -> int:
    return sum(end - begin for _, begin, end in tensor.extents())


def _bytes_of(tensor: StoredTensor) -> bytes:
    content = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.read_into(content)
    return content.reshape(-1).view(torch.uint8).numpy().tobytes()
