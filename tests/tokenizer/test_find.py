"""Where a checkpoint's tokenizer is looked for, and which of several is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.errors import CheckpointError
from llama.tokenizer import Tokenizer, find_tokenizer
from llama.tokenizer.gpt2 import Gpt2Tokenizer
from llama.tokenizer.hf import HfTokenizer
from llama.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.helpers.library_files import write_gpt2, write_llama2_json
from tests.helpers.tokenizers import write_sentencepiece

# Best first; each is taken when those before it are not there.
IN_FOLDER = (
    "tokenizer.model",
    "tokenizer.model.v11",
    "tokenizer.model.v3",
    "tokenizer.model.v1",
    "tekken.json",
    "tokenizer.json",
    "vocab.json",
    "gpt2-vocab.json",
    "original/tokenizer.model",
)


def touch(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if name.endswith("vocab.json"):
        path.with_name(name.replace("vocab.json", "merges.txt")).touch()
    return path


@pytest.mark.parametrize("place", range(len(IN_FOLDER)))
def test_the_best_in_the_folder_goes_before_the_one_beside_it(tmp_path: Path, place: int) -> None:
    folder = tmp_path / "7B"
    touch(tmp_path, "tokenizer.model")
    for name in IN_FOLDER[place:]:
        touch(folder, name)
    assert find_tokenizer(folder) == folder / IN_FOLDER[place]


def test_meta_has_one_beside_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "7B"
    folder.mkdir()
    touch(tmp_path, "tokenizer.json")
    with pytest.raises(CheckpointError) as caught:
        find_tokenizer(folder)
    names = (*IN_FOLDER[:1], "tokenizer.model.v*", *IN_FOLDER[4:])
    for part in (folder / "tokenizer.model", tmp_path / "tokenizer.model", "tokenizer_path"):
        assert str(part) in str(caught.value)
    assert all(name in str(caught.value) for name in names)
    touch(tmp_path, "tokenizer.model")
    assert find_tokenizer(str(folder)) == tmp_path / "tokenizer.model"
    monkeypatch.chdir(folder)
    assert find_tokenizer(".") == tmp_path / "tokenizer.model"


@pytest.mark.parametrize("iteration", ["iter_0000100", "release"])
def test_megatron_has_one_for_all_iterations(tmp_path: Path, iteration: str) -> None:
    (tmp_path / iteration).mkdir()
    path = touch(tmp_path, "gpt2-vocab.json")
    assert find_tokenizer(tmp_path / iteration) == path
    assert find_tokenizer(tmp_path) == path
    (tmp_path / "7B").mkdir()
    with pytest.raises(CheckpointError, match="no tokenizer found"):
        find_tokenizer(tmp_path / "7B")


def test_a_vocabulary_without_merges_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").touch()
    (tmp_path / "gpt2-merges.txt").touch()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match="no tokenizer found"):
        find_tokenizer(tmp_path)


def test_a_folder_is_as_good_as_its_file(tmp_path: Path) -> None:
    for write, name, kind in (
        (write_sentencepiece, "tokenizer.model.v3", SentencePieceTokenizer),
        (write_llama2_json, "tokenizer.json", HfTokenizer),
        (write_gpt2, "vocab.json", Gpt2Tokenizer),
    ):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        write(folder / name if kind is SentencePieceTokenizer else folder)
        for tokenizer in (Tokenizer(folder), Tokenizer(str(folder)), kind(folder)):
            assert type(tokenizer) is kind
            assert tokenizer.model_path == str(folder / name)
