"""What a training run shows while it runs: a live view on a terminal, else one plain line per step."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sdft_cli.metrics import METRICS
from sdft_cli.notices import loudness, say, visible, watching
from sdft_cli.report.progress import lines
from sdft_cli.report.terminal import stderr


class View(Protocol):
    """What is reported of a run as it happens."""

    def step(self, metrics: Mapping[str, Any]) -> None: ...
    def heldout(self, metrics: Mapping[str, Any]) -> None: ...
    def notice(self, text: str) -> None: ...


def _briefly(metrics: Mapping[str, Any], *keys: str) -> list[str]:
    return [METRICS[key].in_brief(metrics[key]) for key in keys]


def divergence(metrics: Mapping[str, Any]) -> str:
    """Name and write the mean divergence (or, of the control arm, the likelihood) per token of a step."""
    name = next((key for key in metrics if key.endswith("_per_token")), None)  # kl, jsd, nll: a step has one of them
    return f"{name.removesuffix('_per_token').upper()} {metrics[name]:.4f}" if name else ""


def step_line(metrics: Mapping[str, Any]) -> str:
    """Write the numbers of a step that say whether it learns."""
    parts = [
        f"loss {metrics['loss']:.4f}",
        divergence(metrics),
        *_briefly(metrics, "rollout_length", "finished_share", "tool_valid_share"),
        f"{metrics['tokens_per_second']:,.0f} tok/s",
        f"lr {metrics['learning_rate']:.1e}",
    ]
    if not metrics["updated"]:
        parts.append("no update")
    if "sampler_gap" in metrics:
        parts.append(f"sampler gap {metrics['sampler_gap']:.1e}")
    if metrics.get("rollout_staleness"):
        parts.append(f"stale {metrics['rollout_staleness']}")
    return "  ".join(parts)


def phases_line(metrics: Mapping[str, Any]) -> str:
    """Write where the time of a step went."""
    phases = sorted(metrics["phase_seconds"].items(), key=lambda item: -item[1])
    return f"{metrics['seconds']:.1f} s: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases)


def heldout_line(metrics: Mapping[str, Any]) -> str:
    """Write a held-out evaluation."""
    shares = ("tool_named_share", "tool_valid_share", "unasked_call_share", "finished_share")
    shown = _briefly(metrics, "kl_per_token", "expert_nll_per_token", *shares)
    return f"held out after step {metrics['step']}: {'  '.join(shown)}"


class PlainView:
    """One line per step, evaluation and notice."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._print(f"step {metrics['step']}/{self.total}  {step_line(metrics)}  {metrics['seconds']:.1f} s")

    def heldout(self, metrics: Mapping[str, Any]) -> None:
        self._print(heldout_line(metrics))

    def notice(self, text: str) -> None:
        self._print(visible(text))


class QuietView:
    """Says warnings, and nothing else."""

    def step(self, metrics: Mapping[str, Any]) -> None: ...
    def heldout(self, metrics: Mapping[str, Any]) -> None: ...

    def notice(self, text: str) -> None:
        say(text)


SHOWN = 8
"""Held-out evaluations that stay on a terminal: what is learned is seen to rise."""


class LiveView:
    """A bar with the time left, the last step, its phases, and the last held-out evaluations."""

    def __init__(self, console: Console, total: int) -> None:
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("train", total=total)
        self.lines = {"step": "the first step is running", "phases": "", "doing": ""}
        self.evaluations: list[str] = []
        # Data on stdout stay there if that is no terminal.
        self.live = Live(self._view(), console=console, refresh_per_second=4, redirect_stdout=sys.stdout.isatty())

    def _view(self) -> Group:
        shown = [
            Text(f"  {line}", style="dim" if name == "phases" else "") for name, line in self.lines.items() if line
        ]
        return Group(self.bar, *shown, *(Text(f"  {line}") for line in self.evaluations[-SHOWN:]))

    def _set(self, **lines: str) -> None:
        self.lines.update(lines)
        self.live.update(self._view())

    def step(self, metrics: Mapping[str, Any]) -> None:
        self.bar.update(self.task, completed=metrics["step"])
        self._set(step=step_line(metrics), phases=phases_line(metrics))

    def progress(self, what: str, done: float, total: float) -> None:
        """Show how far something within a step is."""
        self._set(doing=f"{what}: {int(done):,}/{int(total):,}" if done < total else "")

    def heldout(self, metrics: Mapping[str, Any]) -> None:
        self.evaluations.append(heldout_line(metrics))
        self.live.update(self._view())

    def notice(self, text: str) -> None:
        self.live.console.print(Text(visible(text)), soft_wrap=True)


@contextmanager
def live_training(total: int) -> Iterator[View]:
    """Watch a training run of `total` steps on stderr."""
    console = stderr()
    if loudness() == "quiet":
        yield QuietView()
        return
    if not console.is_terminal or console.is_dumb_terminal:
        with lines():
            yield PlainView(console, total)
        return
    view = LiveView(console, total)
    with view.live, watching(view.progress):
        yield view
