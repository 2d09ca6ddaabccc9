"""Ranks compare notes: texts from all to all, settings that must not differ, and who has failed.

JSON text over a Communicator: sizes first, then bytes padded to one length. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from llama import errors
from llama.errors import FailedElsewhereError, LlamaError, RankMismatchError
from llama.parallel.comm import Communicator

_MAX_SHOWN = 60


def share_texts(comm: Communicator, text: str) -> list[str]:
    """Every rank's text, in rank order, on every rank. Collective."""
    data = text.encode()
    sizes = comm.all_gather(torch.tensor([len(data)]), dim=0).tolist()
    if not any(sizes):
        return [""] * comm.size
    padded = torch.zeros(1, max(sizes), dtype=torch.uint8)
    padded[0, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    rows = comm.all_gather(padded, dim=0)
    return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]


def check_agreement(comm: Communicator, values: Mapping[str, object], *, host: str) -> None:
    """Raise RankMismatchError on every rank unless all gave the same `values`. Collective.

    The error names each field that differs, what it is on which ranks, and the hosts of the odd
    ones.
    """
    if comm.size == 1:
        return
    texts = {name: _canonical(value) for name, value in values.items()}
    digest = hashlib.sha256(_canonical(texts).encode()).digest()
    rows = comm.all_gather(torch.tensor([list(digest)], dtype=torch.uint8), dim=0)
    if bool((rows == rows[0]).all()):
        return
    shown = {name: _shortened(text) for name, text in texts.items()}
    replies = share_texts(comm, json.dumps({"host": host, "values": shown}))
    raise RankMismatchError(differences([json.loads(reply) for reply in replies]))


def differences(replies: Sequence[Mapping[str, object]]) -> str:
    """What the ranks disagree about, one clause a field; `replies` has {host, values} by rank."""
    tables = [reply["values"] for reply in replies]
    hosts = [str(reply["host"]) for reply in replies]
    names = dict.fromkeys(name for table in tables for name in _as_mapping(table))
    clauses = []
    for name in names:
        column = [str(_as_mapping(table).get(name, "absent")) for table in tables]
        if len(set(column)) > 1:
            clauses.append(f"{name}: {_by_value(column, hosts)}")
    return "give every rank the same; they disagree about " + " | ".join(clauses)


@contextmanager
def in_step(comm: Communicator) -> Iterator[None]:
    """Leave the body on every rank, or raise on every rank. Collective; costs one small gather.

    A rank whose body raised gets its own error, the others FailedElsewhereError, which
    `raise_together` turns into words about the cause.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    try:
        flags = comm.all_gather(torch.tensor([int(error is not None)]), dim=0)
    except LlamaError as lost:
        raise (error or lost) from lost
    if error is not None:
        raise error
    if bool(flags.any()):
        raise FailedElsewhereError("another rank failed and says why; this one stopped with it")


def raise_together(comm: Communicator, error: Exception | None, *, phase: str, host: str) -> None:
    """Raise on every rank if any rank brings an `error`: its own where there is one. Collective.

    On the others it has the class of the lowest failing rank's, and names all that failed.
    FailedElsewhereError counts as an error only where nobody brings another.
    """
    own, error = error, None if isinstance(error, FailedElsewhereError) else error
    mine = {"class": type(error).__name__, "message": str(error), "host": host}
    try:
        texts = share_texts(comm, "" if error is None else json.dumps(mine))
    except LlamaError as lost:
        raise (error or lost) from lost
    if error is not None:
        raise error
    failures = [(rank, json.loads(text)) for rank, text in enumerate(texts) if text]
    if failures:
        kind = getattr(errors, failures[0][1]["class"], LlamaError)
        is_ours = isinstance(kind, type) and issubclass(kind, LlamaError)
        message = "; ".join(
            f"rank {rank} ({fields['host']}) failed while {phase}: "
            f"{fields['class']}: {fields['message']}"
            for rank, fields in failures
        )
        raise (kind if is_ours else LlamaError)(message) from own
    if own is not None:
        raise own


def _by_value(column: Sequence[str], hosts: Sequence[str]) -> str:
    """'1 on ranks 0, 1, 3; 2 on rank 2 (hostB)': what most ranks have comes first."""
    counts = Counter(column)
    usual = counts.most_common(1)[0][0]
    parts = []
    for value in sorted(counts, key=lambda v: (v != usual, column.index(v))):
        ranks = [rank for rank, v in enumerate(column) if v == value]
        who = [str(r) if value == usual else f"{r} ({hosts[r]})" for r in ranks]
        parts.append(f"{value} on {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(who)}")
    return "; ".join(parts)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=_as_json)


def _shortened(text: str) -> str:
    """Enough of `text` to recognise it, and enough of its hash to see that it differs."""
    if len(text) <= _MAX_SHOWN:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[:_MAX_SHOWN]}... ({len(text)} characters, sha256 {digest})"


def _as_mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


def _as_json(value: object) -> object:
    """Arrays and tensors in full, since their repr leaves out the middle; else the repr."""
    to_list = getattr(value, "tolist", None)
    return repr(value) if to_list is None else to_list()
