"""The two choices, for machines that are not here: the facts are made up, the rules are not."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from llama.errors import HardwareError, UsageError
from llama.parallel.backend import choose, parse_device
from llama.parallel.device import DeviceFacts, probe

CPU = DeviceFacts(host="a")
GPU = DeviceFacts(host="a", cuda_count=8, cuda_problem="", cuda_uuid="gpu0", has_nccl=True)
MAC = DeviceFacts(host="mac", has_mps=True)


def gpus(n: int, *, host: str = "a") -> list[DeviceFacts]:
    return [replace(GPU, host=host, cuda_index=i, cuda_uuid=f"gpu{i}") for i in range(n)]


TWO_HOSTS = [*gpus(2), *gpus(2, host="b")]
ONE_GPU_EACH = [replace(facts, cuda_count=1, cuda_index=0) for facts in gpus(2)]
"""As under SLURM's --gpus-per-task=1: both are GPU 0 to their rank."""
INTEL = DeviceFacts(host="c", xpu_count=2)
BROKEN = replace(GPU, host="b", cuda_problem="no kernel image", has_driver=True)
NO_NCCL = [replace(facts, has_nccl=False) for facts in gpus(2)]


@pytest.mark.parametrize(
    ("facts", "wish", "device", "backend", "why"),
    [
        ([CPU] * 2, {}, "cpu", "gloo", "no usable GPU on any rank (torch sees no GPU)"),
        (gpus(2), {}, "cuda", "nccl", "every rank has a working GPU of its own"),
        (TWO_HOSTS, {}, "cuda", "nccl", "every rank has a working GPU of its own"),
        (ONE_GPU_EACH, {}, "cuda", "nccl", "every rank has a working GPU of its own"),
        ([GPU, GPU], {}, "cpu", "gloo", "ranks 0 and 1 share GPU 0 of a"),
        (ONE_GPU_EACH[:1] * 2, {}, "cpu", "gloo", "ranks 0 and 1 share GPU 0 of a"),
        ([*gpus(1), CPU], {}, "cpu", "gloo", "no usable GPU on rank 1 (a)"),
        ([*gpus(1), BROKEN], {}, "cpu", "gloo", "on rank 1 (b) (no kernel image); warning: there"),
        (NO_NCCL, {}, "cuda", "gloo", "torch was built without NCCL on any rank; data is staged"),
        (gpus(2), {"device": "cpu"}, "cpu", "gloo", "device cpu was asked for"),
        (gpus(2), {"backend": "gloo"}, "cuda", "gloo", "gloo was asked for; data is staged"),
        ([GPU, GPU], {"device": "cuda"}, "cuda", "gloo", "share GPU 0 of a; data is staged"),
        (gpus(2), {"device": "cuda", "backend": "gloo"}, "cuda", "gloo", "data is staged"),
        (gpus(2), {"backend": "nccl"}, "cuda", "nccl", "every rank has a working GPU"),
        (gpus(2), {"device": "cuda:1", "backend": "nccl"}, "cuda", "nccl", "was asked for"),
        ([MAC] * 2, {}, "cpu", "gloo", "no usable GPU"),
        (gpus(1), {}, "cuda", "nccl", "working GPU"),
    ],
)
def test_choice(
    facts: list[DeviceFacts], wish: dict[str, str], device: str, backend: str, why: str
) -> None:
    kind, choice = choose(facts, **wish)  # type: ignore[arg-type]
    assert (kind, choice.name) == (device, backend)
    assert why in choice.reason
    assert "\n" not in choice.reason


@pytest.mark.parametrize(
    ("facts", "wish", "message"),
    [
        ([CPU] * 2, {"backend": "nccl"}, "'nccl' cannot be used: no usable GPU on any rank"),
        ([CPU] * 2, {"device": "cuda"}, "'cuda' cannot be used: no usable GPU on any rank"),
        ([*gpus(1), BROKEN], {"device": "cuda"}, "on rank 1 (b) (no kernel image)"),
        ([GPU, GPU], {"backend": "nccl"}, "ranks 0 and 1 share GPU 0 of a"),
        (NO_NCCL, {"backend": "nccl"}, "torch was built without NCCL"),
        (gpus(2), {"device": "cpu", "backend": "nccl"}, "it moves GPU memory only"),
        ([MAC] * 2, {"device": "mps"}, "it serves one process, not 2 ranks"),
        ([CPU], {"device": "mps"}, "a has none"),
        ([CPU], {"backend": "nccl", "is_alone": True}, "no usable GPU on a"),
        ([CPU], {"device": "xpu"}, "Intel GPUs are not supported (torch sees none)"),
        ([CPU, INTEL], {"device": "xpu:1"}, "(torch sees one on rank 1 (c))"),
        ([INTEL], {"backend": "xccl"}, "backend 'xccl' cannot be used: Intel GPUs are"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(
    facts: list[DeviceFacts], wish: dict[str, str], message: str
) -> None:
    with pytest.raises(HardwareError) as caught:
        choose(facts, **wish)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "leave the" in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "wish", "device"),
    [
        (CPU, None, "cpu"),
        (GPU, None, "cuda"),
        (BROKEN, None, "cpu"),
        (MAC, None, "cpu"),
        (MAC, "mps", "mps"),
        (GPU, "cpu", "cpu"),
    ],
)
def test_one_process_needs_no_backend(facts: DeviceFacts, wish: str | None, device: str) -> None:
    kind, choice = choose([facts], device=wish, is_alone=True)
    assert (kind, choice.name) == (device, "none")


@pytest.mark.parametrize(
    ("fact", "wish", "rank", "level"),
    [
        (BROKEN, None, 0, logging.WARNING),
        (BROKEN, None, 1, logging.INFO),
        (BROKEN, "cpu", 0, logging.INFO),
        (CPU, None, 0, logging.INFO),
        (INTEL, None, 0, logging.INFO),
    ],
)
def test_a_driver_of_no_use_is_warned_of_once(
    fact: DeviceFacts, wish: str | None, rank: int, level: int
) -> None:
    for facts, is_alone in (([fact], True), ([fact, fact], False)):
        _, choice = choose(facts, device=wish, is_alone=is_alone)
        assert choice.log_level(rank) == level


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (None, (None, None)),
        ("cpu", ("cpu", None)),
        ("cuda", ("cuda", None)),
        ("cuda:3", ("cuda", 3)),
        ("mps", ("mps", None)),
    ],
)
def test_devices(text: str | None, parsed: tuple[str | None, int | None]) -> None:
    assert parse_device(text) == parsed


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA"])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        parse_device(text)


@pytest.mark.parametrize("backend", ["", "mpi", "NCCL"])
def test_unknown_backends_are_refused(backend: str) -> None:
    with pytest.raises(UsageError, match="known: gloo, nccl"):
        choose([CPU], backend=backend)


def test_the_facts_of_this_machine_lead_to_something_that_works() -> None:
    import torch

    facts = probe(local_rank=0)
    kind, _ = choose([facts], is_alone=True)
    assert facts.cuda_works == (kind == "cuda")
    assert facts.cuda_works or facts.cuda_problem
    device = torch.device("cuda", facts.cuda_index) if kind == "cuda" else torch.device(kind)
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize(
    ("local_rank", "count", "index"), [(0, 1, 0), (3, 8, 3), (3, 1, 0), (2, 2, 0)]
)
def test_the_gpu_of_a_local_rank(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, count: int, index: int
) -> None:
    """A rank that sees fewer GPUs than it has neighbours was given its own."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("llama.parallel.device._try_cuda", lambda index: f"uuid-{index}")
    facts = probe(local_rank=local_rank)
    assert (facts.cuda_index, facts.cuda_uuid, facts.cuda_works) == (index, f"uuid-{index}", True)


def test_a_gpu_that_is_there_but_fails_is_a_fact_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(index: int) -> str:
        raise RuntimeError("CUDA error: no kernel image\nis available")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("llama.parallel.device._try_cuda", fail)
    facts = probe(local_rank=0)
    assert not facts.cuda_works
    assert facts.cuda_problem == "CUDA error: no kernel image is available"
