"""One hierarchy of errors. Each message is one sentence that says what to do next; each class carries its exit code.

Exit codes are stable: 0 ok, 1 failed, 2 usage, 3 data rejected, 4 verification failed, 130 interrupted.
"""

from __future__ import annotations

WARNING = "WARNING: "
"""How every warning begins; the command line prints such a line in bold."""
EXTRA_OF = {
    **dict.fromkeys(("accelerate", "peft", "safetensors", "torch"), "train"),
    **dict.fromkeys(("fla", "triton"), "gpu"),
    **dict.fromkeys(("trl", "unsloth", "unsloth_zoo"), "unsloth"),
    "teich": "traces",
    **dict.fromkeys(("lm_eval", "sacrebleu"), "eval"),
    "gguf": "demo",
}
"""Module -> the extra of `pyproject.toml` that installs it."""


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


class MissingPackage(MachineError):
    """A package of an extra is not installed. `what` needs it, e.g. a command; `module` is a key of `EXTRA_OF`."""

    def __init__(self, what: str, module: str) -> None:
        super().__init__(f"{what} needs {module}, which is not installed: pip install 'sdft-cli[{EXTRA_OF[module]}]'")


class InterruptedBySignal(SdftError, KeyboardInterrupt):
    """The user or the system asked the command to stop; partial output was removed."""

    exit_code = 130
