"""`decode`, but rank 1 was set up in another way. FOLDER (seed | dtype | version | files) ..."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.programs import decode
from tests.faults.programs.rank import observed


def main(what: str) -> None:
    options = decode.parse()
    with observed(options.folder) as rank:
        is_odd = rank == 1
        if what == "version" and is_odd:
            import torch

            torch.__version__ = torch.torch_version.TorchVersion("2.9.1+odd")
        if what == "files" and is_odd:
            options.ckpt_dir = Path(f"{options.ckpt_dir}_of_rank_1")
        llm = decode.build(
            options,
            seed=8 if what == "seed" and is_odd else 7,
            dtype="bfloat16" if what == "dtype" and is_odd else "float32",
        )
        decode.decode(llm, options)


if __name__ == "__main__":
    main(sys.argv.pop(2))
