"""Meta's sampling function, for scripts that call it. The engine has its own."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_top_p(probs: Tensor, p: float) -> Tensor:
    """Ids (..., 1) drawn with torch's global generator from probabilities (..., vocab).

    A token can be drawn while those more probable than it sum to at most `p` (nucleus sampling,
    Holtzman et al. 2019), so the best one always can.
    """
    sorted_probs, ids = torch.sort(probs, dim=-1, descending=True)
    before = torch.cumsum(sorted_probs, dim=-1) - sorted_probs
    place = torch.multinomial(sorted_probs.masked_fill(before > p, 0.0), num_samples=1)
    return torch.gather(ids, -1, place)
