"""What a refusal has to say, and the files and sizes that bad inputs are tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama.errors import LlamaError
from llama.generation import Llama
from llama.llm import LLM
from tests.helpers.checkpoints import params_of, random_model, tiny_config, write_meta
from tests.helpers.tokenizers import write_sentencepiece

VOCAB_SIZE, OTHER_VOCAB_SIZE, MAX_SEQ_LEN, MAX_BATCH_SIZE = 400, 360, 32, 2
CONFIG = tiny_config(n_kv_heads=2, vocab_size=VOCAB_SIZE)
SIZES = {"max_seq_len": MAX_SEQ_LEN, "max_batch_size": MAX_BATCH_SIZE}
GOOD_PROMPT = [1, 17, 42, 9]
FACES = ("Llama", "LLM")

Seen = tuple[str, str]
"""Class and message of the error that something ended in; both empty when nothing was raised."""


@dataclass(frozen=True)
class Refusal:
    """The class to be raised, and what its message must contain: what, where, the way out."""

    kind: type[LlamaError]
    parts: tuple[str, ...]

    def fits(self, seen: Seen) -> bool:
        return seen[0] == self.kind.__name__ and all(part in seen[1] for part in self.parts)


def refused(kind: type[LlamaError], *parts: str) -> Refusal:
    return Refusal(kind, parts)


def caught(act: Callable[[], object]) -> Seen:
    """What `act` raises, of what a program would catch."""
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def write_files(folder: Path) -> None:
    """A good checkpoint of two files, `good`, its tokenizer, and all sorts of bad ones."""
    weights = random_model(CONFIG)

    def write(name: str, params_extra: Mapping[str, Any] | None = None) -> Path:
        return write_meta(folder / name, CONFIG, weights, n_files=2, params_extra=params_extra)

    write("good")
    (folder / "empty").mkdir()
    (folder / "of_something_else").mkdir()
    (folder / "of_something_else" / "notes.txt").write_text("hello")
    (write("without_params") / "params.json").unlink()
    (write("broken_params") / "params.json").write_text('{"dim": 32,')
    write("params_of_more_layers", {"n_layers": CONFIG.n_layers + 1})
    write("params_of_another_dim", {"dim": 64})
    write("params_of_another_vocabulary", {"vocab_size": OTHER_VOCAB_SIZE})
    (write("missing_shard") / "consolidated.01.pth").unlink()
    shard = write("truncated_shard") / "consolidated.01.pth"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    one_head = replace(CONFIG, n_heads=1, n_kv_heads=1, head_dim=32)
    write_meta(folder / "one_head", one_head, random_model(one_head))
    one_layer = replace(CONFIG, n_layers=1)
    write_meta(folder / "one_layer", one_layer, random_model(one_layer))
    write_sentencepiece(folder / "tokenizer.model", vocab_size=VOCAB_SIZE)
    write_sentencepiece(folder / "other.model", vocab_size=OTHER_VOCAB_SIZE)
    (folder / "no.model").write_text(json.dumps(params_of(CONFIG)))


def build(folder: Path, face: str, **changes: Any) -> Llama | LLM:
    """The good checkpoint through `face`, but for `changes`; names of files are in `folder`."""
    options: dict[str, Any] = {"ckpt_dir": "good", "tokenizer_path": "tokenizer.model", **SIZES}
    options.update(changes)
    for name in ("ckpt_dir", "tokenizer_path"):
        if isinstance(options[name], str) and options[name]:
            options[name] = str(folder / options[name])
    if face == "LLM":
        return LLM(**options)
    for meta_name, name in (("model_parallel_size", "tp"), ("pipeline_parallel_size", "pp")):
        options[meta_name] = options.pop(name, None)
    return Llama.build(**options)
