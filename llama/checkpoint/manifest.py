"""Digests of a checkpoint's files: Meta's checklist.chk (md5) and our MANIFEST.sha256.

Both have a line "digest  name" for each file, as md5sum and sha256sum write them. What is in the
files is not known here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.names import plain_file
from llama.checkpoint.folder import files_below, is_tokenizer_file
from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError, OutputError
from llama.files.signature import regular_file

CHECKLIST = "checklist.chk"
MANIFEST = "MANIFEST.sha256"
_ALGORITHMS = {CHECKLIST: "md5", MANIFEST: "sha256"}
_MAX_BYTES = 10_000_000
_READ_BYTES = 16 * 2**20
_MOST_THREADS = 4  # each with a buffer of _READ_BYTES; hashing is slower than reading from there on
_LINE = re.compile(r"([0-9a-fA-F]+) [ *](.+)")

Progress = Callable[[int], object]
"""Called with the number of bytes just hashed, from any thread."""


@dataclass(frozen=True)
class Digest:
    """What `manifest` (a file name) says of the file `name`, a path inside the folder."""

    name: str
    algorithm: str
    value: str
    manifest: str


def verify(folder: Path, files: Iterable[str] = (), *, progress: Progress | None = None) -> int:
    """Check every listed file of `folder`; the bytes hashed. Raises as `verify_share`."""
    return verify_share(folder, files, rank=0, size=1, progress=progress)


def verify_share(
    folder: Path,
    files: Iterable[str] = (),
    *,
    rank: int,
    size: int,
    progress: Progress | None = None,
) -> int:
    """Hash the part of the listed files that falls to rank `rank` of `size`; the bytes hashed.

    The ranks of a host thus read every file once; the deal depends on sizes alone. All of `files`
    must be listed: in MANIFEST.sha256 where there is one, else in checklist.chk, which need not
    list a tokenizer. Raises CheckpointError that names the file when it is missing, differs or is
    not listed, or when there is no manifest.
    """
    digests = read_digests(folder)
    paths = {name: _listed_file(folder, name) for name in digests}
    _check_listed(folder, files, digests)
    mine = deal({name: regular_file(path) for name, path in paths.items()}, size)[rank]
    threads = max(1, min(_MOST_THREADS, len(mine), (os.cpu_count() or 1) // size))
    with ThreadPoolExecutor(threads) as pool:
        hashed = pool.map(lambda name: _check(paths[name], digests[name], progress), mine)
        return sum(hashed)


def deal(sizes: Mapping[str, int], n_ranks: int) -> list[list[str]]:
    """Names for each rank, the bytes as even as whole files allow; the same on every rank."""
    shares: list[list[str]] = [[] for _ in range(n_ranks)]
    loads = [0] * n_ranks
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += sizes[name]
    return shares


def read_digests(folder: Path) -> dict[str, list[Digest]]:
    """File -> its digests, of one or both manifests. Raises CheckpointError when there is none."""
    found: dict[str, list[Digest]] = {}
    present = [name for name in _ALGORITHMS if (folder / name).exists()]
    if not present:
        raise CheckpointError(
            f"{folder} cannot be verified: it has neither {CHECKLIST} nor {MANIFEST}; write one "
            f"from files you trust with: llama inspect {folder} --write_manifest"
        )
    for manifest in present:
        for digest in _parse(folder, manifest):
            known = found.setdefault(digest.name, [])
            if any(other.algorithm == digest.algorithm for other in known):
                raise CheckpointError(f"{folder / manifest} lists {digest.name[:120]!r} twice")
            known.append(digest)
    return found


def write_manifest(folder: Path, *, progress: Progress | None = None) -> Path:
    """Write MANIFEST.sha256 over every file of `folder`; its path.

    The manifests and what `files_below` passes over are left out. An older one is replaced in one
    step, when all is hashed. Raises CheckpointError, and OutputError when it cannot be written.
    """
    names = [name for name in files_below(folder) if name not in _ALGORITHMS]
    if not names:
        raise CheckpointError(f"{folder} holds no file to write a manifest of")
    odd = [name for name in names if "\\" in name or not name.isprintable()]
    if odd:
        raise CheckpointError(f"{folder}: a manifest cannot list {odd[0]!r}; rename it")
    with ThreadPoolExecutor(min(_MOST_THREADS, len(names))) as pool:
        paths = [_listed_file(folder, name) for name in names]
        digests = list(pool.map(lambda path: _hash(path, ("sha256",), progress)["sha256"], paths))
    lines = (f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    target = folder / MANIFEST
    partial = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    return target


def _parse(folder: Path, manifest: str) -> list[Digest]:
    path = folder / manifest
    algorithm = _ALGORITHMS[manifest]
    if regular_file(path) > _MAX_BYTES:
        raise CheckpointError(f"{path} has more than {_MAX_BYTES:,} bytes; it is no manifest")
    n_digits = 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size
    digests = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None or len(match[1]) != n_digits:
            raise CheckpointError(
                f"{path}, line {number}: expected {n_digits} hexadecimal digits ({algorithm}), two "
                f"spaces and a file name, found {line[:80]!r}"
            )
        name = match[2].removeprefix("./")
        digests.append(Digest(name, algorithm, match[1].lower(), manifest))
    if not digests:
        raise CheckpointError(f"{path} lists no file; write it anew, or remove it")
    return digests


def _check_listed(
    folder: Path, files: Iterable[str], digests: Mapping[str, Sequence[Digest]]
) -> None:
    ours = {name for name, held in digests.items() if any(d.manifest == MANIFEST for d in held)}
    if ours:
        unlisted = sorted(set(files) - ours)
    else:
        unlisted = sorted(n for n in set(files) - digests.keys() if not is_tokenizer_file(n))
    if unlisted:
        raise CheckpointError(
            f"{folder}: {shortened(unlisted)} cannot be verified: "
            f"{MANIFEST if ours else CHECKLIST} does not list it; list all files, when you trust "
            f"them, with: llama inspect {folder} --write_manifest"
        )


def _listed_file(folder: Path, name: str) -> Path:
    """The file that a manifest calls `name`: plain components, no link on the way to it."""
    *parents, last = name.split("/")
    for parent in parents:
        folder = folder / parent
        if parent in ("", ".", "..") or folder.is_symlink():
            raise CheckpointError(f"a manifest lists {name[:120]!r}, which leads out of its folder")
    return plain_file(folder, last)


def _check(path: Path, digests: Sequence[Digest], progress: Progress | None) -> int:
    found = _hash(path, [digest.algorithm for digest in digests], progress)
    for digest in digests:
        if found[digest.algorithm] != digest.value:
            raise CheckpointError(
                f"{path} is not the file that {digest.manifest} lists: its {digest.algorithm} is "
                f"{found[digest.algorithm]}, listed is {digest.value}; it is damaged or was "
                f"replaced, get it again"
            )
    return regular_file(path)


def _hash(path: Path, algorithms: Sequence[str], progress: Progress | None) -> dict[str, str]:
    """Algorithm -> hexadecimal digest of the file, which is read once."""
    hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    with closing(DataFile(path)) as file:
        memory = memoryview(bytearray(min(_READ_BYTES, file.size)))
        for offset in range(0, file.size, _READ_BYTES):
            block = memory[: min(_READ_BYTES, file.size - offset)]
            file.read_into(block, offset)
            for hash in hashes:
                hash.update(block)
            if progress is not None:
                progress(len(block))
    return {hash.name: hash.hexdigest() for hash in hashes}
