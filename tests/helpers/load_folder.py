"""A program that only loads: TOKENIZER FOLDER [FOLDER ...], rank r the r-th of them (or the last).

LLAMA_TEST_ADDRESS_SPACE bounds its address space, in bytes beyond what it has by then;
LLAMA_TEST_VERIFY has the files checked against their checksums.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from llama.llm import LLM


def limit_address_space(extra_bytes: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    tokenizer, *folders = sys.argv[1:]
    rank = int(os.environ.get("RANK", "0"))
    if "LLAMA_TEST_ADDRESS_SPACE" in os.environ:
        limit_address_space(int(os.environ["LLAMA_TEST_ADDRESS_SPACE"]))
    folder = folders[min(rank, len(folders) - 1)]
    verify = "LLAMA_TEST_VERIFY" in os.environ
    LLM(folder, tokenizer_path=tokenizer, verify=verify, max_seq_len=32, max_batch_size=2)
    print("loaded", flush=True)
