"""What a pickle would call, told from its opcodes without running any.

torch.load(weights_only=True) still lets a file call `torch.FloatTensor`, whose result lies in the
process's own heap and not in the file. Only what torch.save writes for dense tensors passes here.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator

# Not torch.storage.TypedStorage, which a pickle may call for memory of any content.
_STORAGE = re.compile(
    r"torch (BFloat16|Bool|Byte|Char|ComplexDouble|ComplexFloat|Double|Float|Half|Int|Long|Short)"
    r"Storage"
)
_ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor_v2",
    }
)
_NAMED_IN_PLACE = ("GLOBAL", "INST")
_NAMED_ELSEWHERE = ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4")


def foreign_globals(pickled: bytes) -> Iterator[str]:
    """Each global ("module name") that dense tensors do not need, in order.

    One whose name is not in the opcode itself counts. Raises ValueError for bytes that are no
    pickle.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in _NAMED_ELSEWHERE:
            yield f"(a name computed by {opcode.name})"
        elif opcode.name in _NAMED_IN_PLACE:
            name = str(argument)
            if name not in _ALLOWED and not _STORAGE.fullmatch(name):
                yield name
