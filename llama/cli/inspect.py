"""`llama inspect`: what a checkpoint holds, told from its headers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama.cli.table import print_table
from llama.cli.terminal import byte_progress, say
from llama.cli.typed import typed
from llama.errors import UsageError

if TYPE_CHECKING:
    from llama.checkpoint.inspect import Inspection, TensorEntry
    from llama.config import ModelConfig


@dataclass(frozen=True)
class Inspect:
    """Describe the folder on stdout. What is wrong with it is raised when all has been said."""

    folder: Path
    format: str | None
    tp: int
    pp: int
    as_json: bool
    write_manifest: bool
    verify: bool

    def run(self) -> None:
        from llama.checkpoint.inspect import inspect_folder

        found = inspect_folder(self.folder, format=self.format)
        places = self._places(found)
        if self.as_json:
            print(json.dumps(_with_places(found, places), indent=2))
        else:
            _print_summary(found)
            _print_tables(found, places)
            _print_odd(found)
        if self.verify:
            self._verify(found)
        if found.problem is not None:
            raise found.problem
        if self.write_manifest:
            from llama.checkpoint.manifest import write_manifest

            with byte_progress("hashing", total_bytes=_total_bytes(found)) as progress:
                path = write_manifest(self.folder, progress=progress)
            say(f"wrote {path}")

    def _places(self, found: Inspection) -> list[tuple[int, list[list[int]]]] | None:
        """For every tensor its stage and each rank's shape; None when no layout was asked for."""
        if found.config is None or (self.tp, self.pp) == (1, 1):
            return None
        from llama.cli.places import places

        return places(found.config, found.tensors, tp_size=self.tp, pp_size=self.pp)

    def _verify(self, found: Inspection) -> None:
        from llama.checkpoint.folder import configuration_files
        from llama.checkpoint.manifest import verify

        holders = [entry.name for entry in found.files if entry.n_tensors]
        holders += configuration_files(self.folder, holders)
        with byte_progress("verifying", total_bytes=_total_bytes(found)) as progress:
            size_bytes = verify(self.folder, holders, progress=progress)
        if found.problem is None:  # else nobody knows which files should be listed
            say(f"verified: every listed file is as listed ({size_bytes:,} bytes)")


def _total_bytes(found: Inspection) -> int:
    return sum(entry.size_bytes or 0 for entry in found.files)


def _with_places(
    found: Inspection, places: list[tuple[int, list[list[int]]]] | None
) -> dict[str, Any]:
    """Inspection.as_json; with a layout also each tensor's stage, and rank_shapes in tp order."""
    plain = found.as_json()
    for entry, (stage, shapes) in zip(plain["tensors"], places or [], strict=places is not None):
        entry |= {"stage": stage, "rank_shapes": shapes}
    return plain


def _print_summary(found: Inspection) -> None:
    facts = {"folder": str(found.folder), "format": found.format or "unknown"}
    if found.config is not None:
        facts |= _sizes(found.config)
        facts["parameters"] = f"{found.n_parameters:,} ({found.size_bytes:,} bytes as stored)"
        facts["dtype"] = ", ".join(f"{name} ({count})" for name, count in found.dtypes.items())
    for name, text in facts.items():
        print(f"{name:12}  {text}")


def _sizes(config: ModelConfig) -> dict[str, str]:
    rope = f"theta {config.rope_theta:g}, {config.rope_style}"
    if config.rope_scaling is not None:
        rope += f", {config.rope_scaling.kind} scaling by {config.rope_scaling.factor:g}"
    window = config.sliding_window
    sizes = {
        "architecture": config.architecture,
        "layers": f"{config.n_layers}",
        "width": f"{config.dim}, feed-forward {config.ffn_dim} ({config.activation})",
        "heads": f"{config.n_heads} of {config.head_dim}, {config.n_kv_heads} for keys and values",
        "vocabulary": f"{config.vocab_size}" + (", tied head" if config.tied_embeddings else ""),
        "context": f"{config.max_positions or 'not stated'}",
        "window": "none" if window is None else f"{window}",
    }
    return sizes if config.architecture == "gpt2" else {**sizes, "rope": rope}


def _print_tables(found: Inspection, places: list[tuple[int, list[list[int]]]] | None) -> None:
    print()
    print_table(
        ["file", "bytes", "tensors"],
        [
            [e.name, "missing" if e.size_bytes is None else f"{e.size_bytes:,}", f"{e.n_tensors}"]
            for e in found.files
        ],
    )
    if not found.tensors:
        return
    columns = ["tensor", "shape", "dtype", "split", "files"]
    rows = [_tensor_row(entry) for entry in found.tensors]
    if places is not None:
        columns += ["stage", "shape on each tp rank"]
        for row, (stage, shapes) in zip(rows, places, strict=True):
            each = shapes[:1] if all(shape == shapes[0] for shape in shapes) else shapes
            row += [f"{stage}", ", ".join(map(_shape, each))]
    print()
    print_table(columns, rows)


def _tensor_row(entry: TensorEntry) -> list[str]:
    where = f"= {entry.same_as}" if entry.same_as else ", ".join(entry.files)
    split = "whole" if entry.split is None else f"dim {entry.split}"
    return [entry.name, _shape(entry.shape), entry.dtype, split, where]


def _shape(shape: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, shape))


def _print_odd(found: Inspection) -> None:
    odd = [*found.notes, *(f"{name} ignored: {why}" for name, why in found.ignored.items())]
    odd += [f"{entry.name} is tied to {entry.tied_to}" for entry in found.tensors if entry.tied_to]
    odd += [
        f"{entry.name} is duplicated: its bytes are those of {entry.duplicate_of}"
        for entry in found.tensors
        if entry.duplicate_of
    ]
    if found.problem is None:
        odd += [f"{entry.name} leads nowhere" for entry in found.files if entry.size_bytes is None]
    if odd:
        print("\nodd:")
    for line in odd:
        print(f"  {line}")


@typed
def inspect(
    ckpt_dir: str,
    *,
    format: str | None = None,
    tp: int = 1,
    pp: int = 1,
    json: bool = False,
    write_manifest: bool = False,
    verify: bool = False,
) -> Inspect:
    """Tell what a checkpoint holds: format, sizes, files, every tensor, and what is odd.

    Only headers are read. A folder that cannot be loaded is described as far as it can be, and the
    exit status is that of loading it (65).

    Args:
        ckpt_dir: folder of the checkpoint
        format: format of the checkpoint, where it is not recognised
        tp: with pp, also tell where each tensor goes; tensor parallel size
        pp: pipeline parallel size
        json: one JSON object instead of tables; see llama.checkpoint.inspect.Inspection.as_json
        write_manifest: write MANIFEST.sha256 over the files of the folder
        verify: check every file against checklist.chk or MANIFEST.sha256
    """
    if write_manifest and verify:
        raise UsageError("--write_manifest and --verify exclude each other; verify what is there")
    for name, size in (("tp", tp), ("pp", pp)):
        if size < 1:
            raise UsageError(f"--{name} must be at least 1, got {size}")
    return Inspect(Path(ckpt_dir), format, tp, pp, json, write_manifest, verify)
