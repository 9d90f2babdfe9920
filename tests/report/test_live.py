from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sdft_cli.report.live import LiveView, PlainView, divergence, heldout_line, phases_line, step_line

STEP: dict[str, Any] = {
    "step": 3,
    "loss": 0.25,
    "kl_per_token": 0.2,
    "rollout_length": 21.5,
    "finished_share": 0.5,
    "tool_valid_share": None,
    "tokens_per_second": 1234.4,
    "learning_rate": 1e-5,
    "updated": True,
    "seconds": 9.7,
    "phase_seconds": {"rollout": 3.0, "teacher": 4.5, "loss": 0.2},
}
HELDOUT = {
    "step": 2,
    "kl_per_token": 0.1,
    "expert_nll_per_token": 1.5,
    "tool_named_share": 0.5,
    "tool_valid_share": 0.25,
    "unasked_call_share": None,
    "rollout_length": 30.0,
    "finished_share": 0.5,
}


def test_lines_hold_the_numbers() -> None:
    line = step_line(STEP)
    assert line == ("loss 0.2500  KL 0.2000  length 21.5  finished 50%  valid calls -  1,234 tok/s  lr 1.0e-05")
    assert step_line({**STEP, "updated": False, "sampler_gap": 2e-6}).endswith("no update  sampler gap 2.0e-06")
    assert phases_line(STEP) == "9.7 s: teacher 4.5, rollout 3.0, loss 0.2"
    assert heldout_line(HELDOUT) == (
        "held out after step 2: KL 0.1000  expert NLL 1.5000  right tool 50%  valid calls 25%  unasked -  finished 50%"
    )
    assert divergence({"jsd_per_token": 0.5}) == "JSD 0.5000"
    assert divergence({"nll_per_token": 0.5}) == "NLL 0.5000"
    assert divergence({"loss": 0.5}) == ""


def test_without_a_terminal_each_step_is_a_line() -> None:
    text = io.StringIO()
    view = PlainView(Console(file=text, width=40), 10)
    view.heldout(HELDOUT)
    view.step(STEP)
    view.notice("[/red] a notice [bold]")
    assert text.getvalue().splitlines() == [
        heldout_line(HELDOUT),
        f"step 3/10  {step_line(STEP)}  9.7 s",
        "[/red] a notice [bold]",  # never read as markup
    ]


def test_on_a_terminal_the_last_state_stays_on_the_screen() -> None:
    text = io.StringIO()
    view = LiveView(Console(file=text, width=120, force_terminal=True, color_system=None), 10)
    with view.live:
        view.heldout(HELDOUT)
        view.step(STEP)
        view.heldout(HELDOUT | {"step": 3})
        view.notice("[/red] a notice")
    shown = text.getvalue()
    last = shown.rpartition("[/red] a notice")[2]
    for piece in (
        step_line(STEP),
        phases_line(STEP),
        "3/10",
        heldout_line(HELDOUT),
        heldout_line(HELDOUT | {"step": 3}),
    ):
        assert piece in last
