"""Files that are no whole tokenizer.json: what is said of them, and that nothing else is raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.errors import CheckpointError
from llama.tokenizer import Tokenizer
from tests.helpers.library_files import (
    read_json,
    write_gpt2,
    write_json,
    write_llama2_json,
    write_llama3_json,
)
from tests.helpers.tokenizers import write_sentencepiece

Spoil = Callable[[dict[str, Any]], Any]


def put(*keys: Any, value: Any) -> Spoil:
    """Set the value under a path of keys."""

    def spoil(reads: Any) -> None:
        for key in keys[:-1]:
            reads = reads[key]
        reads[keys[-1]] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("model", value=None), 'has no section "model"'),
        (put("model", "type", value="WordPiece"), "holds a 'WordPiece' model, and only BPE"),
        (put("model", "vocab", value={}), r"not a whole tokenizer\.json|has no vocabulary"),
        (put("model", "vocab", "<s>", value=-1), r"not a whole tokenizer\.json"),
        (put("model", "vocab", "<s>", value=2), "gives one id to several tokens"),
        (put("model", "merges", value=[["x", "no such piece"]]), "out of vocabulary"),
        (put("model", "unk_token", value="<nothing>"), "unk_token '<nothing>' is no token"),
        (put("added_tokens", value=["</s>"]), "needs a content and an id"),
        (put("added_tokens", 0, "id", value=True), "needs a content and an id"),
        (put("added_tokens", 0, "id", value=2**40), "needs a content and an id"),
        (put("added_tokens", 0, "id", value=7), "gives '<unk>' two ids"),
        (put("added_tokens", 0, "content", value="<new>"), "id 0 is '<unk>' and '<new>'"),
        (put("decoder", value=None), "has no decoder for its pieces"),
        (
            put("decoder", value={"type": "BPEDecoder", "suffix": "_"}),
            "'BPEDecoder'.*not supported",
        ),
        (put("decoder", "decoders", 3, "start", value=2), "'Strip'.*not supported"),
        (
            put("decoder", value={"type": "ByteLevel"}),
            r"not a whole tokenizer\.json|encodes and decodes differently",
        ),
    ],
)
def test_a_broken_file_is_named_with_the_fault(tmp_path: Path, spoil: Spoil, message: str) -> None:
    path = write_llama2_json(tmp_path)
    reads = read_json(path)
    spoil(reads)
    write_json(path, reads)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_that_would_lose_text_is_refused(tmp_path: Path) -> None:
    path = write_llama3_json(tmp_path)
    reads = read_json(path)
    reads["model"]["merges"] = []
    missing = {**reads, "model": {**reads["model"], "vocab": dict(reads["model"]["vocab"])}}
    del missing["model"]["vocab"]["A"]
    write_json(path, missing)
    with pytest.raises(CheckpointError, match="has no token for byte 0x41"):
        Tokenizer(path)
    del reads["model"]["vocab"]["õ"]  # stands for byte 0xf5, which is in no UTF-8
    write_json(path, reads)
    assert Tokenizer(path).decode(Tokenizer(path).encode("õA", False, False)) == "õA"

    path = write_llama2_json(tmp_path)
    reads = read_json(path)
    reads["model"] |= {"byte_fallback": False, "unk_token": None}
    write_json(path, reads)
    with pytest.raises(CheckpointError, match="has no token for byte 0x00"):
        Tokenizer(path)


def test_training_settings_of_the_file_do_not_count(tmp_path: Path) -> None:
    path = write_llama2_json(tmp_path)
    plain = Tokenizer(path).encode("the quick brown fox", False, False)
    reads = read_json(path)
    reads["model"]["dropout"] = 0.9
    reads["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    reads["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    write_json(path, reads)
    assert Tokenizer(path).encode("the quick brown fox", False, False) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"version": "1.0"', "is not valid JSON"),
        (b'{"version": "1.0", "version": "1.0"}', "key 'version' is given twice"),
        (b'{"version": NaN}', "NaN is not a number"),
        (b'{"version": "\xff"}', "is not valid JSON"),
        (b'{"version": ' + b"[" * 100_000, "is nested too deeply"),
        (b"{}", 'no section "model"'),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer(path)


def test_a_file_beyond_all_vocabularies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with open(path, "wb") as file:
        file.write(b'{"version": "1.0"')
        file.truncate(65 * 1024**2)
    with pytest.raises(CheckpointError, match="at most 67,108,864 are plausible"):
        Tokenizer(path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_llama2_json, "tokenizer.json"),
        (write_llama3_json, "tokenizer.json"),
        (write_llama3_json, "tokenizer_config.json"),
        (write_llama3_json, "generation_config.json"),
        (write_gpt2, "vocab.json"),
        (write_gpt2, "merges.txt"),
    ],
)
def test_damage_is_always_ours_to_report(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path], Path], name: str
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = write(folder)
    whole = (folder / name).read_bytes()

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def damaged(data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(whole)))
        length = data.draw(st.integers(0, 40))
        new = data.draw(st.binary(max_size=6))
        (folder / name).write_bytes(whole[:at] + new + whole[at + length :])
        try:
            tokenizer = Tokenizer(path)
        except CheckpointError:
            return
        tokenizer.decode(tokenizer.encode("the </s> 日本 🙂", True, True))

    damaged()


def template(folder: Path, processor: Any) -> Path:
    path = write_llama2_json(folder)
    write_json(path, {**read_json(path), "post_processor": processor})
    return path


SPECIAL = {"SpecialToken": {"id": "<s>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"type": "TemplateProcessing", "single": [SPECIAL, TEXT]}, True),
        ({"type": "TemplateProcessing", "single": [TEXT, SPECIAL]}, False),
        ({"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing", "single": [SPECIAL, TEXT]}]}, True),
        ({"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, TEXT]}, False),
        ({"type": "ByteLevel"}, False),
        (None, False),
        ({"single": 3, "processors": {"a": 1}}, False),
        ([[[]]], False),
    ],
)  # fmt: skip
def test_bos_is_added_where_the_template_does(
    tmp_path: Path, processor: Any, expected: bool
) -> None:
    assert Tokenizer(template(tmp_path, processor)).adds_bos is expected


@pytest.mark.parametrize("says", [True, False])
def test_tokenizer_config_says_more_than_the_template(tmp_path: Path, says: bool) -> None:
    template(tmp_path, {"type": "TemplateProcessing", "single": [SPECIAL, TEXT][says:]})
    config = tmp_path / "tokenizer_config.json"
    write_json(config, {**read_json(config), "add_bos_token": says})
    assert Tokenizer(tmp_path).adds_bos is says


def test_the_other_kinds_add_bos_but_for_gpt2(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    assert not Tokenizer(write_gpt2(tmp_path / "gpt2")).adds_bos
    assert Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model")).adds_bos
