"""Teach a net the corpus: batches of whole documents, AdamW, a cosine schedule.

It knows neither where documents come from nor where weights go.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from net import Net
from tokens import Example
from torch import Tensor, nn

IGNORED = -100  # cross_entropy's mark for targets that do not count


@dataclass(frozen=True)
class TrainConfig:
    steps: int
    minutes: float = math.inf  # training ends at whichever of the two comes first
    batch_tokens: int = 4096
    pool_documents: int = 4096
    peak_lr: float = 4e-3
    warmup: float = 0.03  # fraction of the run
    weight_decay: float = 0.05


def pad(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (batch, longest - 1). Every document starts at position 0: attention
    is causal, so padding on the right is never seen.
    """
    width = max(len(example.ids) for example in examples) - 1
    inputs = torch.zeros(len(examples), width, dtype=torch.long)
    targets = torch.full((len(examples), width), IGNORED)
    for row, example in enumerate(examples):
        ids, learned = torch.tensor(example.ids), torch.tensor(example.learned)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:].where(learned[1:], IGNORED)
    return inputs, targets


def batches(examples: Iterator[Example], config: TrainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Documents of like length together, `batch_tokens` at a time, in random order."""
    while True:
        pool = sorted(islice(examples, config.pool_documents), key=lambda e: len(e.ids))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if (len(groups[-1]) + 1) * len(example.ids) > config.batch_tokens:
                groups.append([])
            groups[-1].append(example)
        for number in torch.randperm(len(groups)).tolist():
            yield pad(groups[number])


def init_weights(net: Net) -> None:
    """Normal, as in GPT-2: what is added to the residual stream is scaled down by its depth."""
    for name, parameter in net.named_parameters():
        if parameter.dim() < 2:
            continue
        is_residual = name.endswith(("wo.weight", "w2.weight"))
        depth = 2 * net.config.n_layers if is_residual else 1
        nn.init.normal_(parameter, std=1 / math.sqrt(net.config.dim * depth))


def learning_rate(progress: float, config: TrainConfig) -> float:
    if progress < config.warmup:
        return config.peak_lr * (progress + 1e-3) / config.warmup
    return config.peak_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_of(net: Net, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the learned tokens."""
    logits = net(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train(net: Net, examples: Iterator[Example], config: TrainConfig) -> float:
    """Trains `net` in place; returns the mean loss of the last 5 % of the steps."""
    init_weights(net)
    matrices = [p for p in net.parameters() if p.dim() >= 2]
    vectors = [p for p in net.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    started, losses = time.monotonic(), []
    for step, (inputs, targets) in enumerate(batches(examples, config)):
        elapsed_s = time.monotonic() - started
        progress = max(step / config.steps, elapsed_s / (60 * config.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, config)
        loss = loss_of(net, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:5d}  loss {losses[-1]:.3f}  {elapsed_s:4.0f} s", flush=True)
    last = losses[-max(1, len(losses) // 20) :]
    return sum(last) / len(last)
