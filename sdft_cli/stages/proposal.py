"""What `sdft init` proposes for this machine and these sessions, and the text of the project file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdft_cli import __version__
from sdft_cli.choices import DEFAULT_PROFILE
from sdft_cli.stages.project import fitting

if TYPE_CHECKING:
    from sdft_cli.engine.plan.cards import Gpu

SMALL_PROFILE = "cpu-demo"
FEW_SESSIONS = 100
"""With fewer sessions than these, more of them are held out: a twentieth of them would be hardly any."""
ON_A_CPU: dict[str, Any] = {"max_new_tokens": 256, "general": 60, "drift_tokens": 16, "questions": 60}
"""Settings of `eval` that take minutes on a CPU, as in `sdft demo`."""


FOR_OWN_SESSIONS: dict[str, dict[str, Any]] = {
    SMALL_PROFILE: {name: {"max_new_tokens": 256} for name in ("rollout", "heldout", "gate")},
}
"""Profile -> settings of training, by section: the turns of the demo's sessions are all of 56 tokens or fewer."""


@dataclass(frozen=True)
class Machine:
    """What the proposal depends on. `gpu`: its name and its memory in GB of 10^9 bytes; None: there is none."""

    gpu: str | None = None
    memory_gb: float = 0.0
    has_torch: bool = True

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine."""
        try:
            from sdft_cli.engine.plan.cards import machine_gpu

            gpu: Gpu | None = machine_gpu()
        except ModuleNotFoundError:
            return cls(has_torch=False)
        return cls(gpu.name, gpu.memory_gb * 2**30 / 1e9) if gpu else cls()


@dataclass(frozen=True)
class Proposal:
    """A profile with its model, and why; `prepare`, `train` (by section) and `eval` hold settings that go with it."""

    profile: str
    model: str
    why: str
    prepare: Mapping[str, Any]
    train: Mapping[str, Mapping[str, Any]]
    eval: Mapping[str, Any]


def propose(machine: Machine, sessions: int, profile: str | None = None) -> Proposal:
    """Return what suits a machine and so many sessions; `profile`: if it was chosen already.

    Raises:
        UsageError: there is no such profile.
    """
    from sdft_cli.config import load_train_config

    chosen, why = (profile, "it was asked for") if profile else _of(machine)
    config = load_train_config(chosen)
    settings = {key: value for key, value in fitting(config).items() if key != "model"}
    if sessions < FEW_SESSIONS:
        settings["validation_fraction"] = 0.2
    evaluation = ON_A_CPU if chosen == SMALL_PROFILE else {}
    return Proposal(chosen, config.model, why, settings, FOR_OWN_SESSIONS.get(chosen, {}), evaluation)


def _of(machine: Machine) -> tuple[str, str]:
    from sdft_cli.config import load_train_config

    needed = load_train_config(DEFAULT_PROFILE).min_gpu_gb or 0.0
    if machine.gpu and machine.memory_gb >= needed:
        return DEFAULT_PROFILE, f"{machine.gpu} has {machine.memory_gb:.0f} GB"
    if machine.gpu:
        return SMALL_PROFILE, (
            f"{machine.gpu} has {machine.memory_gb:.0f} GB, and {DEFAULT_PROFILE} needs {needed:.0f}: for a model of "
            "your own choice, `sdft plan` says whether it fits"
        )
    if not machine.has_torch:
        return SMALL_PROFILE, "torch is not installed, so no GPU was looked for: pip install 'sdft-cli[train]'"
    return SMALL_PROFILE, "no GPU was found"


def project_text(proposal: Proposal, source: str, model: str, license_id: str | None, seen: str = "") -> str:
    """Return a commented project file.

    Args:
        proposal: profile and settings.
        source, model: what was chosen.
        license_id: of the records; None: a comment says where it would stand.
        seen: what was found at the source, for a comment.
    """
    named = f"license: {_scalar(license_id)}" if license_id else "# license: other"
    lines = [
        f"# Settings of this folder, written by `sdft init` {__version__}. prepare, plan, gate, train, merge, eval and",
        "# run read it; an option of theirs goes before it, and it goes before a profile. Every key: docs/settings.md.",
        "",
        "# The sessions: a file, a folder of them, or a Hub dataset (owner/name).",
        *([f"# {seen}"] if seen else []),
        f"source: {_scalar(source)}",
        "",
        "# The model that is trained: a folder, a Hub id or an alias. Its licence is that of what is made of it.",
        f"model: {_scalar(model)}",
        "",
        "prepare:",
        *(line for key, value in proposal.prepare.items() for line in _setting(key, value)),
        "  # The licence that the records' card names, as the Hub writes it: mit, cc-by-4.0, other.",
        f"  {named}",
        "",
        "train:",
        f"  # Chosen since {_one_line(proposal.why)}.",
        f"  profile: {_scalar(proposal.profile)}",
        *_caps(proposal.train),
        "  # Any setting of training may follow, in its section, as",
        "  # optim:",
        "  #   max_steps: 100",
        "",
        "merge:",
        "  dtype: bfloat16  # or float32, which keeps every bit of the update",
        "",
        "eval:" if proposal.eval else "# eval:",
        *(line for key, value in proposal.eval.items() for line in _setting(key, value, "eval")),
        *([] if proposal.eval else ["#   general: 60"]),
    ]
    return "\n".join(lines) + "\n"


def _caps(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the settings of training that differ from the profile's, with why."""
    why = ["  # Answers as long as the turns that prepare keeps: the profile's caps are those of the demo."]
    found = why if sections else []
    for name, section in sections.items():
        found += [f"  {name}:", *(f"    {key}: {_scalar(value)}" for key, value in section.items())]
    return found


def _setting(key: str, value: Any, section: str = "prepare") -> list[str]:
    """Return a setting below its description."""
    from sdft_cli.config import MODELS

    text = (MODELS[section].model_fields[key].description or "").partition("; null: ")[0]
    return [f"  # {text[:1].upper()}{text[1:]}.", f"  {key}: {_scalar(value)}"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _scalar(value: Any) -> str:
    """Write a value as YAML on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
