"""Cut a model into tp parts of pp stages, see what each rank holds, and stream the text it writes.

python -m launch --nproc 4 --tp 2 --pp 2 examples/tensor_and_pipeline.py examples/demo_model
"""

import sys

import fire

from llama import LLM, SamplingParams

PROMPTS = ["The capital of Ollo is", "The lantern of Hush is", "Once upon a time"]


def holdings(llm: LLM) -> str:
    """What this rank keeps of the model."""
    at = llm.context.coordinates
    stage = llm.engine.stage
    layers = stage.stage.layers
    return (
        f"rank {llm.context.rank}: stage {at.pp_rank}, tp part {at.tp_rank}: "
        f"layers {layers.start}-{layers.stop - 1} of {llm.model_config.n_layers}, "
        f"{stage.n_local_kv_heads} of {llm.model_config.n_kv_heads} KV heads, "
        f"{sum(p.numel() for p in stage.parameters()):,} weights on {llm.context.device}"
    )


def main(
    ckpt_dir: str,
    tp: int | None = None,
    pp: int | None = None,
    temperature: float = 0.0,
    **unknown: object,
) -> None:
    if unknown:  # fire would complain of them only after the run
        sys.exit(f"unknown flags: --{', --'.join(unknown)}")
    # Sizes left open are the launcher's, then whatever fits the number of ranks.
    llm = LLM(ckpt_dir, tp=tp, pp=pp, max_seq_len=256, max_batch_size=len(PROMPTS))
    sys.stderr.write(f"{holdings(llm)}\n")  # in one piece: all ranks write at the same time

    # Every request has its own generator: the same seed gives the same text for any tp and pp.
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=7, max_tokens=40)

    # Every rank makes the same calls. Only the first gets the text as it grows ...
    for output in llm.stream(PROMPTS[0], params):
        print(output.text, end="\n" if output.finished else "", flush=True)

    # ... and all of them get the finished outputs.
    outputs = llm.generate(PROMPTS, params)
    if llm.context.rank == 0:
        for output in outputs:
            print(f"\n{output.prompt}\n> {output.text}  [{output.finish_reason}]")


if __name__ == "__main__":
    fire.Fire(main)
