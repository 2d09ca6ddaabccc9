"""Who reads what: decided alike by all ranks of a host, every wanted byte once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.loading.box import Box
from llama.checkpoint.loading.sharing import Plan, plan_for
from llama.checkpoint.loading.tile import Tile, tiles
from llama.checkpoint.loading.wants import Catalogue, Want
from llama.checkpoint.reader import CheckpointReader
from tests.helpers.checkpoints import random_model, tiny_config, write_meta

CONFIG = tiny_config()


@pytest.fixture(name="catalogue", scope="module")
def _catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("plan")
    return Catalogue(open_checkpoint(write_meta(folder, CONFIG, random_model(CONFIG))))


def plans(catalogue: Catalogue, name: str, *asked: tuple[int, int, int]) -> list[Plan]:
    """The plans of ranks that want (dim, start, stop) of one tensor; dim -1 is all of it."""
    number = catalogue.number(name)
    wants = [Want(rank, number, catalogue.box(number, *ask)) for rank, ask in enumerate(asked)]
    return [plan_for(rank, wants, catalogue) for rank in range(len(asked))]


def test_rows_are_read_by_their_owners(catalogue: Catalogue) -> None:
    name = "layers.0.attention.wq.weight"
    first, second = plans(catalogue, name, (0, 0, 16), (0, 16, 32))
    assert not first.common
    assert [tile.box for tile in first.own] == [Box((0, 0), (16, 32))]
    assert [tile.box for tile in second.own] == [Box((16, 0), (32, 32))]


def test_columns_and_copies_are_read_once(catalogue: Catalogue) -> None:
    for asked in ([(1, 0, 8), (1, 8, 24)], [(0, 0, 8), (0, 4, 24)]):
        first, second = plans(catalogue, "layers.0.attention.wo.weight", *asked)
        assert first.digest() == second.digest()
        assert not first.own and not second.own
        stops = (32, 24) if asked[0][0] else (24, 32)
        assert [tile.box for tile in first.common] == [Box((0, 0), stops)]


def test_what_one_rank_wants_is_its_own(catalogue: Catalogue) -> None:
    number = catalogue.number("norm.weight")
    wants = [Want(1, number, catalogue.box(number, -1, 0, 0))]
    assert plan_for(0, wants, catalogue).own == ()
    assert len(plan_for(1, wants, catalogue).own) == 1


def test_a_tied_tensor_has_one_number() -> None:
    table, norm = (StoredTensor.of([MemoryTensor(torch.ones(2))]) for _ in range(2))
    tensors = {"tok_embeddings.weight": table, "norm.weight": norm, "output.weight": table}
    reader = Catalogue(CheckpointReader("memory", Path(), CONFIG, tensors, ignored={}))
    assert reader.number("output.weight") == reader.number("tok_embeddings.weight")
    assert reader.number("norm.weight") != reader.number("tok_embeddings.weight")


def test_plans_of_different_files_have_different_digests(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    two = open_checkpoint(write_meta(tmp_path, CONFIG, random_model(CONFIG), n_files=2))
    name = "layers.0.attention.wo.weight"
    ours = plans(catalogue, name, (1, 0, 20), (1, 20, 32))[0].digest()
    assert ours == plans(catalogue, name, (1, 0, 20), (1, 20, 32))[1].digest()
    assert ours != plans(Catalogue(two), name, (1, 0, 20), (1, 20, 32))[0].digest()


@pytest.mark.parametrize("n_ranks", [2, 3, 8])
@pytest.mark.parametrize("slot_bytes", [2**12, 2**16, 2**24])
def test_turns_have_every_tile_once_and_fit_their_slots(
    slot_bytes: int, n_ranks: int, catalogue: Catalogue
) -> None:
    whole = tuple(t for n in range(len(catalogue.tensors)) for t in tiles(n, catalogue.tensors[n]))
    plan = Plan((), whole)
    seen: dict[int, int] = {}
    for turn in plan.rounds(n_ranks=n_ranks, slot_bytes=slot_bytes):
        ends = dict.fromkeys(range(n_ranks), 0)
        for handed in turn:
            assert handed.offset >= ends[handed.reader]
            assert handed.offset % 64 == 0
            ends[handed.reader] = handed.offset + handed.tile.nbytes
            seen[handed.tile.tensor] = seen.get(handed.tile.tensor, 0) + handed.tile.nbytes
        assert max(ends.values()) <= slot_bytes
    assert seen == {tile.tensor: tile.nbytes for tile in whole}


def test_a_transposed_tensor_passes_through_memory_as_it_lies_in_its_file(tmp_path: Path) -> None:
    stored = torch.arange(12, dtype=torch.int32).view(3, 4)
    path = tmp_path / "plain.bin"
    path.write_bytes(stored.numpy().tobytes())
    plain = FileTensor.of(DataFile(path), 0, dtype=torch.int32, shape=(3, 4))
    tile = Tile(0, Box.whole((4, 3)), plain.view(lambda geometry: geometry.t()))
    raw = torch.zeros(64, dtype=torch.uint8)
    assert tile.part.read_into(tile.lying_in(raw)) == 48
    assert torch.equal(tile.lying_in(raw), stored.t())
    assert torch.equal(raw[:48].view(torch.int32), stored.flatten())
    cut = list(tile.cut(16))
    assert [piece.box.shape for piece in cut] == [(4, 1)] * 3
