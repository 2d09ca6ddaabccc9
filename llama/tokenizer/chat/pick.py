"""Which chat format a checkpoint was trained on, from what lies there. It runs no template.

What is looked at, the first that says something: the chat template beside the tokenizer, which is
only searched for the marks of known formats; the tokenizer's special tokens; the model's family.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from llama.errors import CheckpointError
from llama.tokenizer.base import Tokenizer, read_tokenizer_file
from llama.tokenizer.chat.tags import B_INST, STEP
from llama.tokenizer.json_file import read_object
from llama.tokenizer.pieces import SPACE

_MAX_TEMPLATE_BYTES = 1024**2

# Token -> format of the models that have it. From Mistral's v7 on the system has its own tokens.
_OF_TOKEN: Mapping[str, str | None] = {
    "<|start_header_id|>": "llama3",
    "[SYSTEM_PROMPT]": None,
    B_INST: "mistral-v3",
    STEP: "codellama70b",
    f"{SPACE}<PRE>": "codellama",
}
_OF_TEMPLATE: Mapping[str, str | None] = {
    "<|start_header_id|>": "llama3",
    "[SYSTEM_PROMPT]": None,
    STEP: "codellama70b",
    "<<SYS>>": "llama2",
}
_MISTRAL_FILE = re.compile(r".*\.model\.v(\d+)")
_MISTRAL_VERSIONS = (1, 2, 3)


def format_of_tokens(tokens: Container[str], model_path: str, *, default: str | None) -> str | None:
    """The format that goes with a tokenizer: by its file's name, where Mistral's carries a version,
    else by the names of its special `tokens`; `default` where they say nothing.
    """
    version = _MISTRAL_FILE.fullmatch(Path(model_path).name)
    if version:
        return f"mistral-v{version[1]}" if int(version[1]) in _MISTRAL_VERSIONS else None
    known = (name for token, name in _OF_TOKEN.items() if token in tokens)
    return next(known, default)


def pick_chat_format(tokenizer: Tokenizer, *, family: str | None = None) -> str | None:
    """The format for `tokenizer` and models of `family` (None, or as a Hugging Face model_type).

    None where nothing is known, also for a template without the marks of any format. Raises
    CheckpointError for a template's file that is broken.
    """
    template = _template_beside(Path(tokenizer.model_path).parent)
    if template is not None:
        return _format_of_template(template, tokenizer.special_tokens)
    # Mistral's first tokenizer has the special tokens of Llama 2's, and no other.
    if family == "mistral" and tokenizer.chat_format == "llama2":
        return "mistral-v1"
    return tokenizer.chat_format


def _format_of_template(template: str, tokens: Container[str]) -> str | None:
    for mark, name in _OF_TEMPLATE.items():
        if mark in template:
            return name
    if B_INST in template:
        return "mistral-v3" if B_INST in tokens else "mistral-v1"
    return None


def _template_beside(folder: Path) -> str | None:
    """The text of the default chat template in `folder`, None where there is none."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return read_tokenizer_file(file, limit=_MAX_TEMPLATE_BYTES).decode("utf-8", "replace")
    value: Any = read_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(value, list):  # several, by name
        named = [item for item in value if isinstance(item, dict)]
        value = next((item.get("template") for item in named if item.get("name") == "default"), "")
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{settings}: chat_template must be a text, got {value!r:.80}")
    return value
