"""What one stage shows of one step, for those who look inside. Who asks is not known here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from llama.ops.attention import AttentionBackend
from llama.ops.attention.weights import AttentionWithWeights


class Recorder:
    """Collects what is wanted of the local layers, in their order; None is not wanted.

    `hidden_states`: (N, dim), what enters each layer, and on the last stage also what leaves the
    final norm. `attentions`: for each layer one fp32 tensor (local heads, new tokens, context) a
    sequence. `at_layer` is told the global index of each layer before it runs.
    """

    def __init__(self, *, hidden_states: bool = False, attentions: bool = False) -> None:
        self.at_layer: Callable[[int], object] | None = None
        self.hidden_states: list[Tensor] | None = [] if hidden_states else None
        self.attentions: list[list[Tensor]] | None = [] if attentions else None

    @property
    def wanted(self) -> dict[str, bool]:
        """What ranks must agree on, in the words of `Transformer.forward`."""
        return {
            "output_hidden_states": self.hidden_states is not None,
            "output_attentions": self.attentions is not None,
        }

    def enter_layer(self, index: int, hidden: Tensor) -> None:
        """Layer `index` comes next, and `hidden` is what enters it."""
        if self.at_layer is not None:
            self.at_layer(index)
        if self.hidden_states is not None:
            self.hidden_states.append(hidden)

    def keep_normed(self, hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> None:
        """What leaves `norm`, which is only computed when it is wanted."""
        if self.hidden_states is not None:
            self.hidden_states.append(norm(hidden))

    def backend(self, usual: AttentionBackend) -> AttentionBackend:
        """`usual`, unless weights are wanted, which only the textbook's way of computing has."""
        if self.attentions is None:
            return usual
        return partial(AttentionWithWeights, keep=self.attentions.append)
