"""The tokenizer of a checkpoint, and the chat format that its family, files or user decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llama.engine.source import ModelSource
from llama.errors import UnknownNameError, UsageError
from llama.tokenizer import Tokenizer
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.hf_files import write_hf
from tests.helpers.library_files import write_json, write_llama2_json
from tests.helpers.mistral_files import write_mistral
from tests.helpers.tokenizers import write_sentencepiece

CONFIG = tiny_config(n_layers=1, vocab_size=400)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sentencepiece(tmp_path / "tokenizer.model")
    return tmp_path


def opened(source: ModelSource) -> Tokenizer:
    reader = source.open()
    try:
        return source.open_tokenizer(reader)
    finally:
        reader.close()


def test_mistrals_own_format_makes_the_family(folder: Path) -> None:
    write_mistral(folder, CONFIG, random_model(CONFIG))
    assert opened(ModelSource(folder)).chat_format == "mistral-v1"
    assert Tokenizer(folder).chat_format == "llama2"  # by itself it looks like Llama's


def test_hugging_face_names_the_family(folder: Path) -> None:
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    write_hf(folder, CONFIG, random_model(CONFIG), config_extra=mistral)
    assert opened(ModelSource(folder)).chat_format == "mistral-v1"
    write_json(folder / "tokenizer_config.json", {"chat_template": "[INST] <<SYS>>"})
    assert opened(ModelSource(folder)).chat_format == "llama2"
    write_json(folder / "tokenizer_config.json", {"chat_template": "<|im_start|>"})
    assert opened(ModelSource(folder)).chat_format is None


def test_metas_format_leaves_it_to_the_tokenizer_and_all_to_the_user(folder: Path) -> None:
    write_meta(folder, CONFIG, random_model(CONFIG))
    assert opened(ModelSource(folder)).chat_format == "llama2"
    assert opened(ModelSource(folder, chat_format="mistral-v1")).chat_format == "mistral-v1"
    with pytest.raises(UnknownNameError, match="unknown chat format 'vicuna'; known: codellama,"):
        opened(ModelSource(folder, chat_format="vicuna"))
    with pytest.raises(UsageError, match="the Llama 3 chat format needs Llama 3's special tokens"):
        opened(ModelSource(folder, chat_format="llama3"))


@pytest.mark.parametrize(("n_rows", "n_words"), [(400, 400), (480, 400), (500, 500), (512, 500)])
def test_tokens_added_later_count_where_the_weights_have_them(
    folder: Path, n_rows: int, n_words: int
) -> None:
    """400 words in tokenizer.model, 500 in tokenizer.json."""
    write_llama2_json(folder)
    config = replace(CONFIG, vocab_size=n_rows)
    write_hf(folder, config, random_model(config))
    assert opened(ModelSource(folder)).n_words == n_words
    named = ModelSource(folder, tokenizer_path=folder / "tokenizer.model")
    assert opened(named).n_words == 400
