"""Ranks compare notes: texts from all to all, settings that must not differ, and who has failed.

JSON text over a Communicator: sizes first, then bytes padded to one length. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch

from llama import errors
from llama.errors import FailedElsewhereError, LlamaError, RankMismatchError
from llama.parallel.comm import Communicator

_MAX_SHOWN = 60
_MAX_FIELDS = 16
_MAX_VALUES = 4


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


def check_agreement(
    comm: Communicator, values: Mapping[str, object], *, host: str, is_leaving: bool = False
) -> bool:
    """Whether any rank `is_leaving`, once it is known that all gave the same `values`. Collective.

    Raises RankMismatchError on every rank otherwise. It names each field that differs, what it is
    on which ranks, and the hosts of the odd ones.
    """
    if comm.size == 1:
        return is_leaving
    texts = {name: _canonical(value) for name, value in values.items()}
    digest = hashlib.sha256(_canonical(texts).encode()).digest()
    mine = torch.tensor([[int(is_leaving), *digest]], dtype=torch.uint8)
    rows = comm.all_gather(mine, dim=0)
    if bool((rows[:, 1:] == rows[0, 1:]).all()):
        return bool(rows[:, 0].any())
    shown = {name: _shortened(text) for name, text in texts.items()}
    replies = share_texts(comm, json.dumps({"host": host, "values": shown}))
    raise RankMismatchError(differences([json.loads(reply) for reply in replies]))


def differences(replies: Sequence[Mapping[str, object]]) -> str:
    """What the ranks disagree about, one line a field; `replies` has {host, values} by rank.

    Fields that are alike are left out, and so is what would make it longer than a screen.
    """
    tables = [_as_mapping(reply["values"]) for reply in replies]
    hosts = [str(reply["host"]) for reply in replies]
    lines = []
    for name in dict.fromkeys(name for table in tables for name in table):
        column = [str(table.get(name, "absent")) for table in tables]
        if len(set(column)) > 1:
            lines.append(f"  {name}: {_by_value(column, hosts)}")
    if (n_more := len(lines) - _MAX_FIELDS) > 0:
        lines[_MAX_FIELDS:] = [f"  and {n_more} more"]
    return "\n".join(["give every rank the same; they disagree about", *lines])


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
    values = sorted(counts, key=lambda v: (v != usual, column.index(v)))
    parts = []
    for value in values[:_MAX_VALUES]:
        ranks = [rank for rank, v in enumerate(column) if v == value]
        who = _runs(ranks) if value == usual else _by_host(ranks, hosts)
        parts.append(f"{value} on {'rank' if len(ranks) == 1 else 'ranks'} {who}")
    if (n_more := len(values) - _MAX_VALUES) > 0:
        parts.append(f"{n_more} other values on the rest")
    return "; ".join(parts)


def _by_host(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """'4-7 (hostB), 9 (hostC)'."""
    groups = groupby(ranks, key=lambda rank: hosts[rank])
    return ", ".join(f"{_runs(list(own))} ({host})" for host, own in groups)


def _runs(ranks: Sequence[int]) -> str:
    """'0, 1, 4-7': three or more in a row are written as a range."""
    parts = []
    for _, run in groupby(enumerate(ranks), key=lambda item: item[1] - item[0]):
        own = [rank for _, rank in run]
        parts += [f"{own[0]}-{own[-1]}"] if len(own) > 2 else [str(rank) for rank in own]
    return ", ".join(parts)


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
