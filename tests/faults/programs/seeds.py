"""`decode` on ranks whose random number generators have all been seeded otherwise."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.faults.programs import decode

if TYPE_CHECKING:
    from llama.llm import LLM


def seed_otherwise(llm: LLM) -> None:
    import numpy as np
    import torch

    seed = 1000 + llm.context.rank
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


if __name__ == "__main__":
    decode.main(seed_otherwise)
