from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.errors import UsageError
from sdft_cli.stages.project import parse_project
from sdft_cli.stages.proposal import Machine, project_text, propose

BIG, SMALL = Machine("H100", 85.0), Machine("RTX", 25.8)


def test_the_machine_decides_on_profile_and_caps() -> None:
    cpu = propose(Machine(), 16)
    assert (cpu.profile, cpu.model) == ("cpu-demo", "smollm2-135m")
    caps = [cpu.prepare[f"max_{name}_tokens"] for name in ("seq", "prompt", "rollout")]
    assert caps == [8192, 7168, 256]
    assert (cpu.prepare["teacher_template"], cpu.prepare["validation_fraction"]) == ("again", 0.2)
    big = propose(BIG, 400)
    assert (big.profile, big.model) == ("qwen3.5-9b-64k", "unsloth/Qwen3.5-9B")
    assert "validation_fraction" not in big.prepare
    small = propose(SMALL, 400)
    assert small.profile == "cpu-demo"
    assert "RTX has 26 GB" in small.why
    assert "`sdft plan` says whether it fits" in small.why
    assert "torch is not installed" in propose(Machine(has_torch=False), 1).why
    assert propose(BIG, 1, "cpu-demo").profile == "cpu-demo"
    with pytest.raises(UsageError, match="did you mean cpu-demo"):
        propose(BIG, 1, "cpu_demo")


@pytest.mark.parametrize("machine", [Machine(), BIG])
@pytest.mark.parametrize("hostile", ["plain", "~", "a: b # c", "no", 'it\'s\n"new"', "\u202e<script>", "- x"])
def test_what_is_written_is_read_back_whatever_the_names_are(machine: Machine, hostile: str) -> None:
    proposal = propose(machine, 5)
    text = project_text(proposal, hostile, hostile, "mit", "Seen here: 5")
    read = parse_project(text, Path("sdft.yaml"))
    assert read.source == hostile
    config = read.train_config(None, (), {})
    assert (config.model, config.profile) == (hostile, proposal.profile)
    if not machine.gpu:  # whole turns of the expert can be sampled, and are evaluated whole
        caps = (config.rollout, config.heldout, config.gate)
        assert {*(x.max_new_tokens for x in caps), read.of("eval")["max_new_tokens"]} == {
            proposal.prepare["max_rollout_tokens"]
        }
    prepare = read.prepare_config(None, {}, {})
    assert prepare.license == "mit"
    assert {key: getattr(prepare, key) for key in proposal.prepare} == proposal.prepare
    assert read.of("eval") == proposal.eval
    assert read.merge_config().dtype == "bfloat16"
    assert "license" not in parse_project(project_text(proposal, "s", "m", None), Path("sdft.yaml")).of("prepare")
