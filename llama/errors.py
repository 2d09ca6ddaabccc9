"""Every error this package raises on purpose, and the exit code a process ends with when one goes
uncaught.

    LlamaError                  70  our own fault, or nothing more precise is known
    ├── UsageError              64  an argument is wrong (also a ValueError)
    │   └── UnknownNameError    64  a name that no registry entry has
    ├── FailedElsewhereError    70  this rank only stopped because another one failed
    ├── CheckpointError         65  weights, params.json or tokenizer: missing, broken, at odds
    ├── PeerLostError           69  another rank died or its connection broke
    ├── OutOfMemoryError        71  something does not fit; need and have (also a MemoryError)
    ├── OutputError             74  a file cannot be written: full disk, no permission
    ├── RankTimeoutError        75  another rank did not answer in time (also a TimeoutError)
    ├── RankMismatchError       76  ranks were given different arguments, settings or files
    └── HardwareError           78  device, backend or launch environment cannot do what was asked

The codes follow sysexits.h where it has one. A message states what was found, where, and the way
out.
"""

from __future__ import annotations


class LlamaError(Exception):
    """Base of every deliberate error; `exit_code` is the process status for an uncaught one."""

    exit_code = 70


class UsageError(LlamaError, ValueError):
    """An argument is wrong or out of range."""

    exit_code = 64


class UnknownNameError(UsageError):
    """A registry was asked for a name that it does not list."""


class FailedElsewhereError(LlamaError):
    """Nothing is wrong with this rank: another one failed, and its error says why."""


class CheckpointError(LlamaError):
    """Files on disk are missing, broken, or contradict each other or the request."""

    exit_code = 65


class PeerLostError(LlamaError):
    """Another rank is gone; its own first error is part of the message when it left one."""

    exit_code = 69


class OutOfMemoryError(LlamaError, MemoryError):
    """Weights or KV cache do not fit; the message has both numbers."""

    exit_code = 71


class OutputError(LlamaError):
    """A file or folder cannot be written; nothing half-written is left behind."""

    exit_code = 74


class RankTimeoutError(LlamaError, TimeoutError):
    """Another rank is alive as far as known but did not answer in time."""

    exit_code = 75


class RankMismatchError(LlamaError):
    """Ranks of one job disagree about something they must share."""

    exit_code = 76


class HardwareError(LlamaError):
    """The device, the backend or the launch environment cannot do what was asked."""

    exit_code = 78
