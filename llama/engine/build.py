"""From a folder and a few wishes to a running engine. Collective: every rank calls it alike.

The order matters: ranks first agree on what they were asked, then load, then count what memory is
left.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from llama.checkpoint.fingerprint import fingerprint
from llama.checkpoint.folder import checked_files
from llama.checkpoint.loading.load_report import LoadReport
from llama.checkpoint.loading.loader import load
from llama.checkpoint.loading.progress import Progress
from llama.checkpoint.manifest import verify_share
from llama.checkpoint.reader import CheckpointReader
from llama.config import EngineConfig, ModelConfig, ParallelConfig
from llama.engine.activations import activation_bytes, prompt_logprobs_bytes
from llama.engine.decide import decide_layout, resolve_dtype
from llama.engine.engine import Engine
from llama.engine.footprint import Workload, step_sizes
from llama.engine.memory import agree_num_blocks, free_bytes, ranks_on_device
from llama.engine.source import ModelSource
from llama.errors import UsageError
from llama.kvcache.cache import KVCache, block_bytes
from llama.log import get_logger
from llama.models.decoder import DecoderStage, stage_of, tensor_names
from llama.native import TURNED_OFF, why_not
from llama.ops.attention.choose import choose_attention
from llama.parallel.context import ParallelContext, initialize
from llama.parallel.liveness.whereabouts import Phase
from llama.quant.choose import linear_method
from llama.tokenizer import Tokenizer


def build_engine(
    source: ModelSource,
    *,
    engine_options: Mapping[str, Any],
    parallel: ParallelConfig,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> tuple[Engine, Tokenizer, LoadReport]:
    """The engine over the checkpoint at `source`, its tokenizer, and what this rank loaded.

    Sizes "auto" in `parallel` are decided by `decide_layout`; `engine_options` are the fields of
    EngineConfig. Raises on every rank what fails on any, and then holds no groups: CheckpointError,
    UsageError, RankMismatchError, HardwareError, OutOfMemoryError, PeerLostError.
    """
    parallel, _ = decide_layout(source, parallel, engine_options=engine_options, dtype=dtype)
    context = initialize(parallel)
    try:
        with context.whereabouts.during(Phase.LOAD, "building the engine"):
            return _build(source, context, engine_options=engine_options, dtype=dtype, seed=seed)
    except BaseException as error:
        context.fail(error)
        raise


def _build(
    source: ModelSource,
    context: ParallelContext,
    *,
    engine_options: Mapping[str, Any],
    dtype: str | torch.dtype | None,
    seed: int,
) -> tuple[Engine, Tokenizer, LoadReport]:
    with context.together("checking the arguments"):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UsageError(f"seed must be an integer, got {seed!r}")
    with context.together("opening the checkpoint"):
        reader = source.open()
        config = EngineConfig.of(engine_options, model=reader.config)
        tokenizer = source.open_tokenizer(reader)
        compute_dtype = resolve_dtype(dtype, device=context.device, checkpoint=reader.dtype)
        same_everywhere = {
            "torch": str(torch.__version__),
            "checkpoint": fingerprint(reader)[:16],
            "tokenizer sha256": tokenizer.sha256,
            "dtype": str(compute_dtype),
            "seed": seed,
            "verify": source.verify,
            **_fields("engine", config),
            **_fields("model", reader.config),
        }
    context.agree(same_everywhere)
    if context.rank == 0:
        for warning in (*reader.warnings, *_length_warning(reader.config, config)):
            get_logger().warning("%s: %s", reader.folder, warning)
    if source.verify:
        with context.together("verifying the checkpoint"):
            local, at = context.local, context.whereabouts
            verify_share(
                reader.folder,
                checked_files(reader),
                rank=local.rank,
                size=local.size,
                progress=at.advance,
            )
    stage, report = load_stage(reader, config=config, context=context, dtype=compute_dtype)
    reader.close()
    engine = Engine(
        model_config=reader.config,
        config=config,
        context=context,
        stage=stage,
        cache=make_cache(stage, config=config, context=context, dtype=compute_dtype),
        dtype=compute_dtype,
        tokenizer=tokenizer,
        seed=seed,
    )
    return engine, tokenizer, report


def _length_warning(model: ModelConfig, config: EngineConfig) -> list[str]:
    most = model.max_positions
    if most is None or config.max_seq_len <= most or model.position_parameters:
        return []  # learned positions are a limit, and the model says so
    return [f"max_seq_len {config.max_seq_len} exceeds the {most} positions it was trained for"]


def _tell_of_slow_products(device: torch.device) -> None:
    problem = why_not("math") if device.type == "cpu" else ""
    if problem:
        level = logging.INFO if problem == TURNED_OFF else logging.WARNING
        words = "torch computes what native code would, more slowly: %s"
        get_logger().log(level, words, problem)


def load_stage(
    reader: CheckpointReader, *, config: EngineConfig, context: ParallelContext, dtype: torch.dtype
) -> tuple[DecoderStage, LoadReport]:
    """This rank's stage with its weights, and what was read for it. Collective."""
    available_bytes = free_bytes(context.device, local_ranks=ranks_on_device(context))
    context.world.barrier()  # nobody takes memory before everybody has looked
    with (
        Progress(
            context.board(),
            limit_s=context.load_timeout_s,
            at_file=context.whereabouts.at_file,
        ) as progress,
        context.together("loading the checkpoint"),
    ):
        attention, reason = choose_attention(
            config.attention,
            device=context.device,
            dtype=dtype,
            head_dim=reader.config.head_dim,
        )
        if context.rank == 0:
            get_logger().info("attention: %s (%s)", attention, reason)
            _tell_of_slow_products(context.device)
        method = linear_method(config.quantize)
        method.check(context.device)
        stage = DecoderStage(
            reader.config,
            stage_of(
                reader.config,
                pp_size=context.layout.pp_size,
                pp_rank=context.coordinates.pp_rank,
            ),
            tp=context.tp,
            dtype=dtype,
            max_positions=config.max_seq_len,
            attention=attention,
            method=method,
        )
        report = load(
            stage,
            reader,
            device=context.device,
            all_names=tensor_names(reader.config),
            available_bytes=available_bytes,
            local=context.local,
            progress=progress,
            rank=context.rank,
        )
    return stage, report


def make_cache(
    stage: DecoderStage, *, config: EngineConfig, context: ParallelContext, dtype: torch.dtype
) -> KVCache:
    """The local layers' KV cache, with as many blocks as every rank has room for. Collective."""
    layers = stage.stage.layers
    head_dim = stage.config.head_dim
    work = Workload(stage.config, config, dtype, context.device.type)
    sizes = step_sizes(work, context.layout, context.rank, stage.stage)
    bytes_per_block = block_bytes(
        len(layers),
        block_size=config.block_size,
        n_kv_heads=stage.n_local_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )
    return KVCache(
        layers,
        num_blocks=agree_num_blocks(
            config,
            ring_blocks=work.ring_blocks,
            block_bytes=bytes_per_block,
            activation_bytes=activation_bytes(sizes) + prompt_logprobs_bytes(sizes),
            context=context,
        ),
        block_size=config.block_size,
        ring_blocks=work.ring_blocks,
        n_kv_heads=stage.n_local_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=context.device,
    )


def _fields(prefix: str, config: EngineConfig | ModelConfig) -> dict[str, object]:
    return {f"{prefix}.{name}": value for name, value in asdict(config).items()}
