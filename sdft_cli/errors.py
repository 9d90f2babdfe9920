"""One hierarchy of errors. Each message is one sentence that says what to do next; each class carries its exit code.

Exit codes are stable: 0 ok, 1 failed, 2 usage, 3 data rejected, 4 verification failed, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

WARNING = "WARNING: "
"""How every warning begins; the command line prints such a line in bold."""
EXTRA_OF = {
    **dict.fromkeys(("accelerate", "peft", "safetensors", "torch"), "train"),
    **dict.fromkeys(("fla", "triton"), "gpu"),
    **dict.fromkeys(("trl", "unsloth", "unsloth_zoo"), "unsloth"),
    "teich": "traces",
    **dict.fromkeys(("lm_eval", "sacrebleu"), "eval"),
    "gguf": "demo",
    "ray": "ray",
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


class OutOfMemory(MachineError):
    """Memory did not suffice; the message says for what, and what to lower."""


class LostProcess(MachineError):
    """Another process of this run failed or is gone, which is why those that started them stopped this one."""


class MissingPackage(MachineError):
    """A package of an extra is not installed. `what` needs it, e.g. a command; `module` is a key of `EXTRA_OF`."""

    def __init__(self, what: str, module: str) -> None:
        super().__init__(f"{what} needs {module}, which is not installed: pip install 'sdft-cli[{EXTRA_OF[module]}]'")


class InterruptedBySignal(SdftError, KeyboardInterrupt):
    """The user or the system asked the command to stop; partial output was removed."""

    exit_code = 130


def nearest(name: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return up to `most` of `names` that a name which is none of them may mean, the nearest first; often none.

    Alike are a similar spelling, in any case, and a part that is long enough to be meant; the same name in another case
    or place is meant alone.
    """
    from difflib import SequenceMatcher  # not while the command line starts

    asked = name.casefold()

    def likeness(candidate: str) -> float:
        other = candidate.casefold()
        if asked == other:
            return 2.0
        if len(asked) >= 3 and asked in other:
            return 1.0 - 0.1 * (not other.startswith(asked))
        return SequenceMatcher(None, asked, other).ratio()

    scores = {one: likeness(one) for one in dict.fromkeys(names)}
    least = max(0.65, max(scores.values(), default=0.0) - 0.15)
    return sorted((one for one in scores if scores[one] >= least), key=lambda one: -scores[one])[:most]


def did_you_mean(
    name: str, names: Iterable[str], otherwise: str | None = None, said: Callable[[str], str] = str
) -> str:
    """Return the end of a sentence about an unknown name: `did you mean a or b?`, else what `otherwise` says.

    Args:
        otherwise: said where no name is alike; None: all names, `choose of a, b, c.`
        said: what the sentence writes for a name, if that is not the name.
    """
    names = list(names)
    if near := nearest(name, names):
        return f"did you mean {' or '.join(map(said, near))}?"
    return f"choose of {', '.join(names)}." if otherwise is None else otherwise
