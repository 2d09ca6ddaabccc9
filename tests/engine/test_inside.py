"""Hidden states and attention weights of a forward pass. Their values: tests/test_parity.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama.engine.engine import Engine
from llama.engine.inside import ModelOutput
from llama.errors import RankMismatchError
from llama.model import Transformer
from llama.models.record import Recorder
from llama.parallel.context import ParallelContext, single
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.engines import make_engine
from tests.helpers.mistral_files import write_mistral
from tests.helpers.ranks import run_layout

CONFIG = tiny_config(n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=50, vocab_size=61)
ROWS = torch.tensor([[1, 17, 42, 9, 3, 60, 8, 8, 23, 5, 30, 31], list(range(12))])
CUTS = [(0, 5), (5, 6), (6, 12)]


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_mistral(tmp_path_factory.mktemp("model"), CONFIG, random_model(CONFIG)))


def look(engine: Engine, *, start: int = 0, stop: int = 12) -> ModelOutput:
    record = Recorder(hidden_states=True, attentions=True)
    return engine.look_inside(ROWS[:, start:stop], start, record)


def look_in_parts(context: ParallelContext, ckpt_dir: str) -> list[ModelOutput]:
    engine = make_engine(context, ckpt_dir)
    return [look(engine, start=start, stop=stop) for start, stop in CUTS]


def assert_same(parts: list[ModelOutput], whole: ModelOutput) -> None:
    """Calls that continue each other show together what one call shows."""
    assert whole.hidden_states is not None and whole.attentions is not None
    for part, (start, stop) in zip(parts, CUTS, strict=True):
        assert part.hidden_states is not None and part.attentions is not None
        new = slice(start, stop)
        torch.testing.assert_close(part.logits, whole.logits[:, new], atol=1e-4, rtol=0)
        for found, want in zip(part.hidden_states, whole.hidden_states, strict=True):
            torch.testing.assert_close(found, want[:, new], atol=1e-5, rtol=1e-5)
        for found, want in zip(part.attentions, whole.attentions, strict=True):
            torch.testing.assert_close(found, want[:, :, new, :stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_parts_on_any_layout_show_what_one_pass_shows(tp: int, pp: int, ckpt_dir: str) -> None:
    whole = look(make_engine(single(), ckpt_dir))
    for parts in run_layout(look_in_parts, ckpt_dir, tp=tp, pp=pp):
        assert_same(parts, whole)


@pytest.mark.parametrize("window", [3, [3, None, 5], [4, 7, 7]])
def test_windows_show_in_the_weights_and_over_a_small_ring(window: Any, tmp_path: Path) -> None:
    write_mistral(tmp_path, CONFIG, random_model(CONFIG), params_extra={"sliding_window": window})
    engine = make_engine(single(), tmp_path)
    whole = look(engine)
    assert_same([look(engine, start=start, stop=stop) for start, stop in CUTS], whole)
    queries, keys = torch.arange(12).unsqueeze(1), torch.arange(12)
    for width, weights in zip(engine.model_config.windows, whole.attentions or (), strict=True):
        is_seen = (keys <= queries) & (keys > queries - (width or 12))
        assert torch.equal(weights > 0, is_seen.expand(2, 6, 12, 12))


def test_the_face_gives_what_is_asked_for(ckpt_dir: str) -> None:
    model = Transformer.from_engine(make_engine(single(), ckpt_dir))
    plain = model.forward(ROWS, 0)
    hidden = model.forward(ROWS, 0, output_hidden_states=True)
    weights = model.forward(ROWS, 0, output_attentions=True)
    assert isinstance(plain, torch.Tensor)
    assert isinstance(hidden, ModelOutput) and isinstance(weights, ModelOutput)
    assert hidden.attentions is None and weights.hidden_states is None
    assert [tuple(x.shape) for x in hidden.hidden_states or ()] == [(2, 12, 32)] * 4
    assert [tuple(x.shape) for x in weights.attentions or ()] == [(2, 6, 12, 12)] * 3
    assert torch.equal(hidden.logits, plain)
    torch.testing.assert_close(weights.logits, plain, atol=1e-4, rtol=0)
    everything = (plain, *(hidden.hidden_states or ()), *(weights.attentions or ()))
    assert {x.dtype for x in everything} == {torch.float32}
    embedding = random_model(CONFIG)["tok_embeddings.weight"]
    assert torch.equal((hidden.hidden_states or ())[0], embedding[ROWS])


def ask_differently(context: ParallelContext, ckpt_dir: str) -> None:
    record = Recorder(attentions=context.rank == 0)
    make_engine(context, ckpt_dir).look_inside(ROWS, 0, record)


def test_ranks_must_ask_for_the_same(ckpt_dir: str) -> None:
    for error in run_layout(ask_differently, ckpt_dir, tp=2, expect_error=True):
        assert isinstance(error, RankMismatchError)
        assert "output_attentions: true on rank 0" in str(error)
