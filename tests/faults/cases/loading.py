"""L01-L03, L10, L11: files that are broken or hostile, ranks that were set up differently."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

from tests.faults.case import Case, Outcome
from tests.faults.job import Job
from tests.faults.programs.decode import DEMO
from tests.faults.scene import Scene

SHARD = "consolidated.01.pth"


class Bomb:
    """Unpickling one makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path(self.target),)


def copy_of_demo(scene: Scene, name: str = "model") -> Path:
    folder = scene.folder / name
    folder.mkdir()
    for file in ("consolidated.00.pth", SHARD, "params.json", "tokenizer.model"):
        shutil.copy(DEMO / file, folder / file)
    return folder


def refused(job: Job, *, status: int, limit_s: float) -> float:
    """Seconds from the start of the build until all is over, with `status` everywhere."""
    began = job.wait_for("building").time_s
    pids = job.wait_for_ranks(2)
    detect_s = job.wait_gone(pids.values(), since=began, limit_s=limit_s, who="the ranks")
    found = job.wait_end(deadline_s=20)
    job.check(found == status, f"the launcher ends with {found}, not {status}")
    for rank in pids:
        code = job.exit_code(rank)
        job.check(code == status, f"rank {rank} ends with {code}, not {status}")
    job.check("Traceback" not in job.text, "a traceback is shown")
    return detect_s


def truncated_shard(scene: Scene) -> list[Outcome]:
    folder = copy_of_demo(scene)
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[: len(whole) // 2])
    job = scene.launch("decode", "--ckpt_dir", str(folder))
    detect_s = refused(job, status=65, limit_s=10)
    line = job.require(
        rf"\[rank \d \S+\].*{SHARD} is truncated.* {len(whole) // 2:,} bytes", what="sizes"
    )
    return [Outcome(job.codes, line, detect_s)]


def missing_shard(scene: Scene) -> list[Outcome]:
    folder, outcomes = copy_of_demo(scene), []
    (folder / SHARD).unlink()
    for python in ((), ("-O",)):
        job = scene.launch("decode", "--ckpt_dir", str(folder), python=python)
        detect_s = refused(job, status=65, limit_s=5)
        line = job.require(
            rf"{SHARD} is missing.*2 files expected.* 1 found", what="found and needed"
        )
        outcomes.append(Outcome(job.codes, line, detect_s))
    return outcomes


def hostile_pickle(scene: Scene) -> list[Outcome]:
    outcomes = []
    for is_zip in (True, False):
        folder = copy_of_demo(scene, f"zip-{is_zip}")
        marker = scene.folder / "the_payload_ran"
        write_hostile(folder / SHARD, marker, is_zip=is_zip)
        job = scene.launch("decode", "--ckpt_dir", str(folder))
        detect_s = refused(job, status=65, limit_s=10)
        job.check(not marker.exists(), "the payload ran")
        job.check("weights_only" not in job.text, "the text speaks of weights_only")
        line = job.require(rf"\[rank \d \S+\].*{SHARD}", what="the file")
        outcomes.append(Outcome(job.codes, line, detect_s))
    return outcomes


def write_hostile(path: Path, marker: Path, *, is_zip: bool) -> None:
    import torch

    torch.save(
        {"tok_embeddings.weight": torch.ones(2, 2), "payload": Bomb(marker)},
        path,
        pickle_module=pickle,
        _use_new_zipfile_serialization=is_zip,
    )


def differing_setup(scene: Scene) -> list[Outcome]:
    outcomes = []
    for what, first, second in (
        ("seed", "7", "8"),
        ("dtype", "float32", "bfloat16"),
        ("version", r"\d+\.\d+\.\d+", r"2\.9\.1\+odd"),
    ):
        job = scene.launch("differing", what)
        detect_s = refused(job, status=76, limit_s=5)
        line = job.require(rf"{first}.* on rank 0.*{second}.* on rank 1 \(", what=f"both {what}s")
        outcomes.append(Outcome(job.codes, line, detect_s))
    return outcomes


def differing_files(scene: Scene) -> list[Outcome]:
    """The same names, sizes and shapes, but another checkpoint."""
    folder = copy_of_demo(scene)
    odd = copy_of_demo(scene, "model_of_rank_1")
    rewrite_with_other_weights(odd / SHARD)
    job = scene.launch("differing", "files", "--ckpt_dir", str(folder))
    detect_s = refused(job, status=76, limit_s=10)
    line = job.require(r"checkpoint.* on rank 0.* on rank 1 \(", what="both fingerprints")
    return [Outcome(job.codes, line, detect_s)]


def rewrite_with_other_weights(path: Path) -> None:
    import torch

    weights = torch.load(path, weights_only=True, map_location="cpu")
    torch.save({name: weight.neg() for name, weight in weights.items()}, path)


CASES = [
    Case(
        "L01",
        "the second of two checkpoint files is cut in half",
        "65 everywhere ≤ 10 s; names file, size, rank and host",
        truncated_shard,
    ),
    Case(
        "L02",
        "the second of two checkpoint files is missing; also under python -O",
        "65 everywhere ≤ 5 s; files found and needed",
        missing_shard,
    ),
    Case(
        "L03",
        "a checkpoint file whose pickle would run code, as zip and as legacy file",
        "65; the code did not run; no advice to switch safety off",
        hostile_pickle,
    ),
    Case(
        "L10",
        "rank 1 has another seed, dtype or torch version",
        "76 everywhere ≤ 5 s; the field with both values and ranks",
        differing_setup,
    ),
    Case(
        "L11",
        "rank 1 has another checkpoint of the same names, sizes and shapes",
        "76 everywhere ≤ 10 s; both fingerprints",
        differing_files,
    ),
]
