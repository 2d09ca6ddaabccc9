"""The ModelConfig that a configuration file describes, refused with the file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llama.config import ModelConfig
from llama.errors import CheckpointError, UsageError

_MAX_PARAMETERS = 10**14


def described_model(path: Path, make: Callable[[], ModelConfig]) -> ModelConfig:
    """What `make` makes of the values in `path`.

    Raises CheckpointError when they contradict each other or no model can be that large.
    """
    try:
        config = make()
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error
    n_parameters = config.n_layers * config.layer_parameters + 2 * config.embedding_parameters
    if n_parameters > _MAX_PARAMETERS:
        raise CheckpointError(
            f"{path} describes a model of {n_parameters:,} parameters; "
            f"more than {_MAX_PARAMETERS:,} are not plausible"
        )
    return config
