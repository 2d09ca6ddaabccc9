"""`decode`, with an exception in the last layer of the last rank, at its fifth step."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from tests.faults.programs import decode

if TYPE_CHECKING:
    from llama.llm import LLM

MESSAGE = "the wheel fell off"
STEP = 5


def break_layer(llm: LLM) -> None:
    if llm.context.rank != llm.context.layout.world_size - 1:
        return
    calls = count(1)

    def hook(*of_the_layer: Any) -> None:
        if next(calls) == STEP:
            raise RuntimeError(MESSAGE)

    _, layer = list(llm.engine.stage.layers.items())[-1]
    layer.register_forward_hook(hook)


if __name__ == "__main__":
    decode.main(break_layer)
