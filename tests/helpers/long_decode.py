"""A program for ranks: continue one prompt greedily by a given number of tokens, past every end.

    python -m tests.helpers.long_decode FOLDER N_TOKENS

The leader says how far it is ("at 100"), and at the end the whole text as JSON on one line.
"""

from __future__ import annotations

import json
import sys
import time

from llama import LLM, SamplingParams

PROMPT = "The capital of Ollo is"
EVERY = 20
PAUSE_S = 0.01
"""After every token, so that even a fast machine is at it for some seconds."""


def main(folder: str, n_tokens: int) -> None:
    llm = LLM(folder, max_seq_len=n_tokens + 32, max_batch_size=1)
    params = SamplingParams(temperature=0, max_tokens=n_tokens, ignore_eos=True)
    text, n_done = "", 0
    for output in llm.stream(PROMPT, params):
        text += output.text
        time.sleep(PAUSE_S)
        before, n_done = n_done, len(output.token_ids)
        if before // EVERY != n_done // EVERY:
            print(f"at {n_done // EVERY * EVERY}", flush=True)
    if n_done:
        print(json.dumps(text), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
