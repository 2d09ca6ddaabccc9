"""Which chat format a tokenizer, the files beside it and the model's family stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.errors import CheckpointError
from llama.tokenizer import CHAT_FORMATS, Tokenizer, pick_chat_format
from tests.helpers.library_files import write_gpt2, write_json, write_llama2_json, write_llama3_json
from tests.helpers.tokenizers import (
    write_codellama,
    write_sentencepiece,
    write_tekken,
    write_tiktoken,
)

INST = ["[INST]", "[/INST]"]
SYSTEM = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]


def sentencepiece(folder: Path, *, name: str = "tokenizer.model", control: Any = ()) -> Tokenizer:
    return Tokenizer(write_sentencepiece(folder / name, control=control))


def codellama(folder: Path, *, step: bool) -> Tokenizer:
    write_codellama(folder / "tokenizer.model", step=step)
    return Tokenizer(folder)


# What lies there -> the format without a family, and of a Mistral.
BY_TOKENIZER: dict[str, tuple[Any, str | None, str | None]] = {
    "llama 2": (sentencepiece, "llama2", "mistral-v1"),
    "v1": (lambda f: sentencepiece(f, name="tokenizer.model.v1"), "mistral-v1", "mistral-v1"),
    "v2": (
        lambda f: sentencepiece(f, name="mistral_instruct_tokenizer_240216.model.v2", control=INST),
        *("mistral-v2", "mistral-v2"),
    ),
    "v3": (
        lambda f: sentencepiece(f, name="tokenizer.model.v3", control=INST),
        *("mistral-v3", "mistral-v3"),
    ),
    "v7": (lambda f: sentencepiece(f, name="tokenizer.model.v7", control=INST), None, None),
    "v3 without a version": (
        lambda f: sentencepiece(f, control=INST),
        *("mistral-v3", "mistral-v3"),
    ),
    "v7 without a version": (lambda f: sentencepiece(f, control=[*INST, *SYSTEM]), None, None),
    "nemo": (lambda f: Tokenizer(write_tekken(f / "tekken.json")), "mistral-v3", "mistral-v3"),
    "code llama 7B": (lambda f: codellama(f, step=False), "codellama", "codellama"),
    "code llama 70B": (lambda f: codellama(f, step=True), "codellama70b", "codellama70b"),
    "llama 3": (lambda f: Tokenizer(write_tiktoken(f / "tokenizer.model")), "llama3", "llama3"),
    "llama 2 json": (lambda f: Tokenizer(write_llama2_json(f)), "llama2", "mistral-v1"),
    "llama 3 json": (lambda f: Tokenizer(write_llama3_json(f)), "llama3", "llama3"),
    "gpt2": (lambda f: Tokenizer(write_gpt2(f)), None, None),
}


@pytest.mark.parametrize("kind", BY_TOKENIZER)
def test_the_tokenizer_and_the_family_tell(tmp_path: Path, kind: str) -> None:
    make, alone, of_mistral = BY_TOKENIZER[kind]
    tokenizer = make(tmp_path)
    assert tokenizer.chat_format == alone
    assert alone is None or alone in CHAT_FORMATS
    for family, expected in ((None, alone), ("llama", alone), ("mistral", of_mistral)):
        assert pick_chat_format(tokenizer, family=family) == expected


TEMPLATES = {
    "{{bos_token}}[INST] <<SYS>>{{x}}<</SYS>>": "llama2",
    "<|start_header_id|>{{role}}<|end_header_id|>": "llama3",
    "{{'<step> Source: assistant'}}": "codellama70b",
    "{{bos_token}}[INST] {{content}} [/INST]": "mistral-v1",
    "[SYSTEM_PROMPT]{{x}}[/SYSTEM_PROMPT][INST]": None,
    "<|user|>{{content}}</s><|assistant|>": None,
    "": None,
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_goes_before_all_else(tmp_path: Path, template: str) -> None:
    tokenizer = sentencepiece(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    named: list[Any] = [{"name": "tool_use", "template": "<<SYS>>"}]
    named.append({"name": "default", "template": template})
    for value in (template, named):
        write_json(settings, {"chat_template": value})
        assert pick_chat_format(tokenizer, family="mistral") == TEMPLATES[template]
    write_json(settings, {"chat_template": "<<SYS>>"})
    (tmp_path / "chat_template.jinja").write_text(template)  # newer releases have it alone
    assert pick_chat_format(tokenizer, family="mistral") == TEMPLATES[template]


def test_inst_is_a_token_or_text(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, control=INST)
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "[INST] {{content}}[/INST]"})
    assert pick_chat_format(tokenizer) == "mistral-v3"


def test_settings_without_a_template_say_nothing(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    for settings in ({}, {"chat_template": None}):
        write_json(tmp_path / "tokenizer_config.json", settings)
        assert pick_chat_format(tokenizer) == "llama2"


@pytest.mark.parametrize("value", [7, {"default": "x"}, [{"name": "default", "template": 1}]])
def test_what_is_no_template_is_refused(tmp_path: Path, value: Any) -> None:
    tokenizer = sentencepiece(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template must be a"):
        pick_chat_format(tokenizer)


def test_a_json_tokenizer_with_the_step_token_stops_there(tmp_path: Path) -> None:
    path = write_llama3_json(tmp_path)
    text = path.read_text().replace("<|start_header_id|>", "<step>")
    path.write_text(text)
    tokenizer = Tokenizer(path)
    assert tokenizer.chat_format == "codellama70b"
    assert tokenizer.step_id in tokenizer.stop_tokens
