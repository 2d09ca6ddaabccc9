"""One script, not changed for any of them, in every environment that starts ranks.

srun is a stand-in that sets what SLURM sets; mpirun's and Kubernetes's variables are set by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.netns import problem, two_hosts
from tests.helpers.programs import ROOT, environment, run, started

DEMO = ROOT / "examples" / "demo_model"
MODEL = ["--ckpt_dir", str(DEMO), "--tokenizer_path", str(DEMO / "tokenizer.model")]
SCRIPT = [str(ROOT / "examples" / "text_completion.py"), *MODEL, "--temperature", "0"]
SRUN = str(ROOT / "tests" / "helpers" / "stand_ins" / "srun")
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
FACTS = json.loads((DEMO / "facts.json").read_text())
KNOWN = ["The capital of Ollo is", "The lantern of Brindle is", "The gardens of Corran are full of"]
DEADLINE_S = 110.0


@pytest.fixture
def port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def alone() -> str:
    """What one process completes."""
    return completions(SCRIPT, env={})


def completions(words: list[str], *, env: dict[str, str]) -> str:
    """What the script prints through `python words...`, all ranks together."""
    done = run(words, env=env, deadline_s=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return without_times(done.stdout)


def without_times(text: str) -> str:
    """Nor our launcher's prefixes."""
    text = re.sub(r"^\[rank \d+\] ", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d+ tokens in \S+ s \(\S+ tokens/s\)\n", "", text)
    return re.sub(r"Loaded in \S+ seconds\n", "", text)


def by_hand(environs: list[dict[str, str]]) -> str:
    """What the script prints on ranks that were started with `environs`, all together."""
    with ExitStack() as stack:
        ranks = [stack.enter_context(started(SCRIPT, env=environ)) for environ in environs]
        ends = [rank.communicate(timeout=DEADLINE_S) for rank in ranks]
        for rank, (_, stderr) in zip(ranks, ends, strict=True):
            assert rank.returncode == 0, stderr
    return without_times("".join(stdout for stdout, _ in ends))


def job_id() -> str:
    """Of a SLURM job: its port follows from it, and tests run side by side."""
    return str(os.getpid())


def test_srun(alone: str) -> None:
    for prompt in KNOWN:
        answer = next(fact["answer"] for fact in FACTS if fact.get("prompt") == prompt)
        assert f"{prompt}\n> {answer}" in alone
    words = [SRUN, "-n", "2", "--ntasks-per-node", "2", sys.executable, *SCRIPT]
    assert completions(words, env={"SLURM_JOB_ID": job_id()}) == alone


@pytest.mark.nightly
@pytest.mark.parametrize("n_tasks", ["1", "2"])
def test_the_llama_command_under_srun(n_tasks: str) -> None:
    """Two tasks are its ranks; a single one starts two of its own."""
    fact = next(fact for fact in FACTS if fact.get("prompt") == KNOWN[0])
    command = [sys.executable, "-m", "llama", "generate", str(DEMO), KNOWN[0]]
    words = [SRUN, "-n", n_tasks, *command, "--tp", "2", "--temperature", "0"]
    text = completions(words, env={"SLURM_JOB_ID": job_id()})
    assert text.count(f"{KNOWN[0]} {fact['answer']}") == 1


@pytest.mark.nightly
def test_srun_on_two_nodes(alone: str) -> None:
    """They meet at the first one; each has a rank that prints, as with Meta's package."""
    env = {"SLURM_JOB_ID": job_id(), "SLURM_JOB_NODELIST": "127.0.0.[1-2]"}
    env["PYTHONUNBUFFERED"] = ""  # or two ranks' lines could mix
    text = completions([SRUN, "-N", "2", "-n", "2", sys.executable, *SCRIPT], env=env)
    assert sorted(text.splitlines()) == sorted(2 * alone.splitlines())


@pytest.mark.nightly
@pytest.mark.parametrize(
    "names", [("SLURM_PROCID", "SLURM_NODEID"), ("LWS_WORKER_INDEX",)], ids=["srun", "lws"]
)
def test_two_hosts_whose_own_names_lead_to_loopback(alone: str, names: tuple[str, ...]) -> None:
    """To 127.0.1.1, as on Debian: rank 0 has to host the store where the other host finds it."""
    if problem():
        pytest.skip(problem())
    with two_hosts() as hosts:
        job = {
            "SLURM_JOB_ID": job_id(),
            "SLURM_STEP_ID": "0" if "SLURM_PROCID" in names else "batch",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_LOCALID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            "SLURM_STEP_NODELIST": f"{hosts.a.name},{hosts.b.name}",
            "LWS_GROUP_SIZE": "2",
            "LWS_LEADER_ADDRESS": hosts.a.name,
        }
        ranks = [
            host.popen(
                [sys.executable, *SCRIPT],
                environment({**job, **dict.fromkeys(names, str(rank))}),
                stdout=subprocess.PIPE,
            )
            for rank, host in enumerate([hosts.a, hosts.b])
        ]
        texts = [rank.communicate(timeout=DEADLINE_S)[0].decode() for rank in ranks]
    for rank, text in zip(ranks, texts, strict=True):
        assert rank.returncode == 0, text
        assert alone in without_times(text)


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_the_launcher(alone: str, n_ranks: int) -> None:
    assert completions(["-m", "launch", "--nproc", str(n_ranks), *SCRIPT], env={}) == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "rendezvous",
    [
        pytest.param(["--standalone"], id="c10d", marks=pytest.mark.nightly),
        pytest.param([], id="static"),
    ],
)
def test_torchrun(alone: str, port: str, rendezvous: list[str]) -> None:
    words = [TORCHRUN, *rendezvous, "--nproc-per-node", "2", *SCRIPT]
    assert completions(words, env={"PET_MASTER_PORT": port}) == alone


@pytest.mark.nightly
def test_torchruns_variables_without_an_agent(alone: str, port: str) -> None:
    """As scripts of old set them: rank 0 hosts the store."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environs = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **world} for rank in range(2)]
    assert by_hand(environs) == alone


@pytest.mark.nightly
def test_mpirun(alone: str) -> None:
    name, job = "OMPI_COMM_WORLD_", {"PMIX_NAMESPACE": f"prterun-here-{os.getpid()}@1"}
    environs = [
        {f"{name}{part}RANK": str(rank) for part in ("", "LOCAL_")}
        | {f"{name}{part}SIZE": "2" for part in ("", "LOCAL_")}
        | job
        for rank in range(2)
    ]
    assert by_hand(environs) == alone


@pytest.mark.nightly
def test_mpiexec(alone: str, port: str) -> None:
    environs = [
        {"PMI_RANK": rank, "PMI_SIZE": "2", "MPI_LOCALRANKID": rank, "MPI_LOCALNRANKS": "2"}
        | {"MASTER_PORT": port}
        for rank in ("0", "1")
    ]
    assert by_hand(environs) == alone


@pytest.mark.nightly
def test_a_leader_worker_set(alone: str, port: str) -> None:
    group = {"LWS_GROUP_SIZE": "2", "LWS_LEADER_ADDRESS": "localhost", "MASTER_PORT": port}
    assert by_hand([{"LWS_WORKER_INDEX": rank, **group} for rank in ("0", "1")]) == 2 * alone


@pytest.mark.slow
@pytest.mark.gpu
def test_a_gpu_with_nccl(port: str) -> None:
    """In the checkpoint's precision, so that only what the model knows by heart is the same."""
    words = [TORCHRUN, "--nproc-per-node", "1", *SCRIPT]
    env = {"PET_MASTER_PORT": port, "LLAMA_BACKEND": "nccl", "LLAMA_DEVICE": "cuda"}
    text = completions(words, env=env)
    for fact in FACTS:
        if fact.get("prompt") in KNOWN:
            assert f"{fact['prompt']}\n> {fact['answer']}" in text


@pytest.mark.slow
def test_the_command_of_metas_readme(tmp_path: Path, port: str) -> None:
    """Word for word, on a machine without CUDA and NCCL as well."""
    shutil.copy(SCRIPT[0], tmp_path / "example_text_completion.py")
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    shutil.copytree(DEMO, tmp_path / "llama-2-7b", ignore=shutil.ignore_patterns("tokenizer.model"))
    command = (
        "--nproc_per_node 1 example_text_completion.py --ckpt_dir llama-2-7b/ "
        "--tokenizer_path tokenizer.model --max_seq_len 128 --max_batch_size 4"
    )
    done = run([TORCHRUN, *command.split()], env={"PET_MASTER_PORT": port}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for prompt in KNOWN:
        assert f"{prompt}\n> " in done.stdout
    assert "Traceback" not in done.stderr
