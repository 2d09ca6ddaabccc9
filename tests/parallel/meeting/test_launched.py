"""What launchers say in the environment: mappings as they set them, and as they mislead."""

from __future__ import annotations

import pytest

from llama.errors import HardwareError
from llama.parallel.meeting.launched import Launched

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "hostA",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "6",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[08-10,12]",
    "SLURM_NTASKS": "7",
    "PMI_RANK": "6",  # by SLURM's PMI plugin
    "PMI_SIZE": "7",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
LWS = {"LWS_WORKER_INDEX": "1", "LWS_GROUP_SIZE": "2", "LWS_LEADER_ADDRESS": "llama-0.llama.ns"}


def of(*environs: dict[str, str], **changes: str) -> Launched:
    """What the merged variables say."""
    merged = {name: text for environ in environs for name, text in environ.items()}
    launched = Launched.from_environment({**merged, **changes})
    assert launched is not None
    return launched


def test_torchrun() -> None:
    launched = of(TORCHRUN)
    assert launched == Launched(5, 8, 1, 4, "hostA", 29500, "torchrun", True, 2)
    assert launched.master == "hostA:29500"
    assert not launched.is_on_one_host
    assert not of(TORCHRUN, RANK="0", LOCAL_RANK="0").hosts_store


def test_torchruns_own_variables_are_not_needed() -> None:
    """Scripts set the five by hand: rank 0 hosts the store then."""
    by_hand = {
        name: TORCHRUN[name] for name in list(TORCHRUN) if name[:5] not in ("LOCAL", "TORCH")
    }
    launched = of(by_hand, RANK="0", LOCAL_RANK="0")
    assert launched == Launched(0, 8, 0, None, "hostA", 29500, "torchrun")
    assert launched.hosts_store and not launched.is_on_one_host
    assert not of(by_hand, LOCAL_RANK="0").hosts_store


def test_slurm() -> None:
    assert of(SLURM) == Launched(6, 7, 0, 1, "gpu08", 24714, "slurm")
    assert of(SLURM, SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_NODEID="0").local_world_size == 2


def test_the_port_of_a_step_is_its_own_and_in_range() -> None:
    ports = [
        of(SLURM, SLURM_JOB_ID=job, SLURM_STEP_ID=step).master_port
        for job, step in [("19999", "0"), ("19999", "1"), ("20000", "1"), ("4294901760", "9")]
    ]
    assert len(set(ports)) == 4
    assert all(20000 <= port < 40000 for port in ports)


def test_slurm_without_the_nodes_of_the_step() -> None:
    environ = {name: text for name, text in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    assert of(environ, SLURM_JOB_NODELIST="login,gpu1").master_addr == "login"


@pytest.mark.parametrize(
    "step", ["batch", "extern", "interactive", "4294967291", "4294967290", "4294967292", ""]
)
def test_a_step_without_tasks_is_one_process(step: str) -> None:
    """In a batch script and in salloc's shell SLURM_PROCID is 0 and SLURM_NTASKS is the job's."""
    assert Launched.from_environment({**SLURM, "SLURM_STEP_ID": step, "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    "alone",
    [
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
        | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
        {**LWS, "LWS_WORKER_INDEX": "0", "LWS_GROUP_SIZE": "1"},
    ],
    ids=["slurm", "openmpi", "hydra", "lws"],
)
def test_the_only_task_is_by_itself(alone: dict[str, str]) -> None:
    assert Launched.from_environment(alone) is None


def test_one_rank_of_torchrun_is_launched() -> None:
    launched = of(TORCHRUN, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    assert launched.is_on_one_host


def test_mpi() -> None:
    job = {"PMIX_NAMESPACE": "prterun-host-77@1"}
    open_mpi = of(OPEN_MPI, job)
    assert open_mpi == Launched(1, 4, 1, 4, "127.0.0.1", open_mpi.master_port, "openmpi")
    assert 20000 <= open_mpi.master_port < 40000
    assert of(OPEN_MPI, job, OMPI_COMM_WORLD_RANK="3").master_port == open_mpi.master_port
    assert of(OPEN_MPI, PMIX_NAMESPACE="prterun-host-78@1").master_port != open_mpi.master_port
    assert of(OPEN_MPI).master_port == 29500
    assert of(HYDRA) == Launched(1, 4, 1, 4, "127.0.0.1", 29500, "hydra")


def test_a_leader_worker_set() -> None:
    assert of(LWS) == Launched(1, 2, 0, 1, "llama-0.llama.ns", 29500, "lws")


@pytest.mark.parametrize("environ", [SLURM, LWS], ids=["slurm", "lws"])
def test_a_master_that_was_named_wins(environ: dict[str, str]) -> None:
    assert of(environ, MASTER_ADDR="10.0.0.7", MASTER_PORT="4000").master == "10.0.0.7:4000"
    assert of(environ, MASTER_ADDR="10.0.0.7").master_port == of(environ).master_port


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "openmpi"),
        ({"MPI_LOCALNRANKS": "2"}, "hydra"),
    ],
)
def test_mpi_on_several_hosts_needs_a_master(change: dict[str, str], source: str) -> None:
    environ = {**(OPEN_MPI if source == "openmpi" else HYDRA), **change}
    with pytest.raises(HardwareError, match=f"{source} started 4 ranks on several hosts.*MASTER_"):
        Launched.from_environment(environ)
    assert of(environ, MASTER_ADDR="hostA").master == "hostA:29500"


def test_a_job_on_one_host_stays_on_loopback() -> None:
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "7", "SLURM_NODEID": "0"}
    assert of(environ).master_addr == "127.0.0.1"
    assert of(environ, MASTER_ADDR="gpu08", MASTER_PORT="4000").master == "127.0.0.1:4000"


@pytest.mark.parametrize(
    ("environs", "source"),
    [
        ((SLURM, OPEN_MPI, HYDRA, LWS, TORCHRUN), "torchrun"),
        ((LWS, SLURM), "slurm"),
        ((SLURM, OPEN_MPI), "openmpi"),  # mpirun's daemons came by srun
        ((SLURM, HYDRA), "hydra"),
        ((LWS, OPEN_MPI), "openmpi"),
        ((HYDRA, OPEN_MPI), "openmpi"),
    ],
)
def test_the_innermost_launcher_counts(environs: tuple[dict[str, str], ...], source: str) -> None:
    assert of(*environs).source == source


@pytest.mark.parametrize(
    "environ",
    [
        {},
        dict.fromkeys([*TORCHRUN, *SLURM, *OPEN_MPI, *LWS], ""),
        {"MASTER_ADDR": "hostA", "MASTER_PORT": "29500"},  # for an srun that comes later
        {"PET_NNODES": "4", "PET_RDZV_ENDPOINT": "old:29400", "PET_NPROC_PER_NODE": "8"},
        {"SLURM_JOB_ID": "4711", "PMI_RANK": "0", "PMI_SIZE": "7"},
        {"LOCAL_WORLD_SIZE": "4"},
    ],
)
def test_a_process_that_nobody_launched(environ: dict[str, str]) -> None:
    assert Launched.from_environment(environ) is None


@pytest.mark.parametrize(
    ("environ", "needed"),
    [
        (TORCHRUN, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]),
        (SLURM, list(SLURM)[2:7]),
        (OPEN_MPI, list(OPEN_MPI)),
        (HYDRA, list(HYDRA)),
        (LWS, ["LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS"]),
    ],
    ids=["torchrun", "slurm", "openmpi", "hydra", "lws"],
)
def test_each_missing_variable_is_named(environ: dict[str, str], needed: list[str]) -> None:
    for missing in needed:
        partial = {name: text for name, text in environ.items() if name != missing}
        with pytest.raises(HardwareError, match=f" set but {missing} missing; start with "):
            Launched.from_environment(partial)


def test_all_missing_variables_are_named() -> None:
    with pytest.raises(HardwareError, match="but WORLD_SIZE, LOCAL_RANK, MASTER_PORT missing"):
        Launched.from_environment({"RANK": "0", "MASTER_ADDR": "hostA", **SLURM})


@pytest.mark.parametrize(
    ("environ", "change", "message"),
    [
        (TORCHRUN, {"RANK": "8"}, "RANK 8 is outside WORLD_SIZE 8"),
        (TORCHRUN, {"RANK": "-1"}, "RANK must be a whole number, got '-1'"),
        (TORCHRUN, {"WORLD_SIZE": "four"}, "WORLD_SIZE must be a whole number, got 'four'"),
        (TORCHRUN, {"MASTER_PORT": "29500/tcp"}, "MASTER_PORT must be"),
        (TORCHRUN, {"MASTER_PORT": "0"}, "MASTER_PORT 0 is no port"),
        (TORCHRUN, {"MASTER_PORT": "65536"}, "MASTER_PORT 65536 is no port"),
        (TORCHRUN, {"LOCAL_RANK": "4"}, "local rank 4 of 4 ranks on its host does not fit"),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "9"}, "does not fit WORLD_SIZE 8"),
        (TORCHRUN, {"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT must be"),
        (SLURM, {"SLURM_PROCID": "7"}, "SLURM_PROCID 7 is outside SLURM_STEP_NUM_TASKS 7"),
        (SLURM, {"SLURM_STEP_TASKS_PER_NODE": "2(x3"}, "SLURM.*makes? no sense.*'2.x3' is no list"),
        (SLURM, {"SLURM_NODEID": "4"}, "node 4 is not among the tasks per node"),
        (SLURM, {"SLURM_STEP_NODELIST": "gpu[1-"}, "is no SLURM node list"),
        (OPEN_MPI, {"OMPI_COMM_WORLD_LOCAL_RANK": "4"}, "local rank 4 of 4"),
        (LWS, {"LWS_WORKER_INDEX": "2"}, "LWS_WORKER_INDEX 2 is outside LWS_GROUP_SIZE 2"),
    ],
)
def test_nonsense_is_refused(environ: dict[str, str], change: dict[str, str], message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        Launched.from_environment({**environ, **change})
