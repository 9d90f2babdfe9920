"""One hierarchy of errors. Each message is one sentence that says what to do next; each class carries its exit code.

Exit codes are stable: 0 ok, 1 failed, 2 usage, 3 data rejected, 4 verification failed, 130 interrupted.
"""

from __future__ import annotations


class SdftError(Exception):
    """Base of every error that `sdft` raises on purpose. `str(error)` is shown to the user as it is."""

    exit_code = 1


class UsageError(SdftError, ValueError):
    """The command line or a configuration value is wrong; nothing was started."""

    exit_code = 2


class DataError(SdftError, ValueError):
    """The input was read and cannot be used: no sessions, a damaged dataset, another tokenizer's dataset."""

    exit_code = 3


class VerificationError(SdftError):
    """A result was computed and does not pass its own check, e.g. a merge that disagrees with its adapter."""

    exit_code = 4


class MachineError(SdftError, RuntimeError):
    """This machine lacks something: a GPU, a package, the network, a writable folder."""


class InterruptedBySignal(SdftError, KeyboardInterrupt):
    """The user or the system asked the command to stop; partial output was removed."""

    exit_code = 130
