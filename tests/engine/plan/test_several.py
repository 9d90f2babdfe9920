"""Several cards: shares against the rule on real token ids, hours and memory against arithmetic by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.parallel.share import shares  # noqa: E402
from sdft_cli.engine.plan.cards import Gpu, find_gpu, known_gpus  # noqa: E402
from sdft_cli.engine.plan.hours import run_work  # noqa: E402
from sdft_cli.engine.plan.model_shape import shape_of  # noqa: E402
from sdft_cli.engine.plan.network import HOP, LINK_SHARE, NETWORK_HOP, Ring, ring_of  # noqa: E402
from sdft_cli.engine.plan.plan import longest_step  # noqa: E402
from sdft_cli.engine.plan.several import Cards, Run, advice, check_several, launch, memory_of, several  # noqa: E402
from sdft_cli.engine.plan.speed import Engine  # noqa: E402
from sdft_cli.engine.plan.spread import largest_part, spread, tokens_of  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from sdft_cli.records import RecordRow  # noqa: E402
from tests.engine.plan.nine import nine_shape  # noqa: E402
from tests.engine.plan.test_default_profile import FULL, LINEAR, MATRICES, OF_FULL, OF_LINEAR, PARAMETERS  # noqa: E402
from tests.engine.plan.test_plan import config_of, llama  # noqa: E402

TURNS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=7, unique=True)


def rows_of(*turns: tuple[int, int]) -> list[RecordRow]:
    """Records of so many prompt tokens in sessions by number; the teacher's prompt has five more."""
    return [RecordRow(f"{s}/{n}", f"s{s}", n, n, n + 5, 4, False) for s, n in turns]


def token_ids(row: RecordRow, rollout: int, number: int) -> list[int]:
    """A prompt that begins as all of its session, and an answer unlike any other, which sorts before what follows."""
    session = 1000 + 1000 * int(row.session_id[1:])
    return [*(session + i for i in range(row.prompt_tokens)), *(100 * number + i for i in range(rollout))]


def distinct(rows: list[list[int]]) -> int:
    return len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})


@settings(max_examples=80, deadline=None)
@given(TURNS, st.integers(1, 4), st.booleans())
def test_shares_by_length_are_those_of_the_rule_on_token_ids(
    turns: list[tuple[int, int]], count: int, shared: bool
) -> None:
    rows = rows_of(*turns)
    prompts, trajectories = spread(rows, lambda _: 3, count, shared)
    for found, rollout in ((prompts, 0), (trajectories, 3)):
        ids = [token_ids(row, rollout, i) for i, row in enumerate(rows)]
        own = [[ids[i] for i in share] for share in shares(ids, count, shared)]
        expected = [distinct(share) if shared else sum(map(len, share)) for share in own]
        sizes = [sum(t.lengths.student - t.known + rollout for t in share) for share in found]
        assert max(sizes) == max(expected)
        assert sorted(t.lengths.student for share in found for t in share) == sorted(n for _, n in turns)


def test_a_session_stays_together() -> None:
    rows = rows_of((0, 40), (1, 50), (0, 70), (1, 90), (0, 100), (1, 100))
    _, (one, other) = spread(rows, lambda _: 10, 2, True)
    assert [(t.lengths.student, t.known) for t in one] == [(40, 0), (70, 40), (100, 70)]
    assert tokens_of(one) == 100 + 3 * 10
    assert [t.lengths.student for t in other] == [50, 90, 100]
    assert largest_part(rows, lambda _: 10, 2, True) == 130 / 260
    assert largest_part(rows, lambda _: 10, 8, True) < 0.5
    assert largest_part(rows_of((0, 40), (1, 40)), lambda _: 10, 2, False) == 0.5


def test_a_ring_by_hand() -> None:
    assert Ring(1, 1.0, 1.0).all_reduce(1e9) == 0
    assert Ring(8, 1e9, 0.5).all_gather(8e9) == 7 * (0.5 + 1)
    assert Ring(8, 1e9, 0.5).all_reduce(8e9) == 2 * 7 * (0.5 + 1)
    assert Ring(8, float("inf")).all_reduce(8e9) == 0
    card = find_gpu("h100-80gb")
    assert card.link_gb_per_s == 450
    assert ring_of(card, 8, 1, 25) == Ring(8, LINK_SHARE * 450e9, HOP)
    assert ring_of(card, 16, 2, 25) == Ring(16, LINK_SHARE * 25e9, NETWORK_HOP)
    assert ring_of(find_gpu("t4-16gb"), 16, 2, 25) == Ring(16, LINK_SHARE * 16e9, NETWORK_HOP)
    assert ring_of(Gpu("unknown", 80, None, None), 2, 1, 25) is None
    assert all(known.link_gb_per_s for known in known_gpus())


def run_of(rows: list[RecordRow], *overrides: str, rollout: int = 6) -> Run:
    config = config_of("dtype=bfloat16", "optim.max_steps=3", "rollout.weights=adapter", "gate.action=off", *overrides)
    return Run(rows, (), shape_of(llama(), config), config, Engine(), rollout, 0.75)


def ways_of(run: Run, cards: Cards, sharing: Any = "none") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = several(run, [sharing], cards)["ways"]
    return found


def test_work_that_divides_takes_the_time_of_one_turn_and_adding_up_gradients() -> None:
    rows = rows_of(*((session, 300) for session in range(4)))
    run, card = run_of(rows, "optim.turns_per_step=4"), find_gpu("a100-80gb")
    one, data, _ = ways_of(run, Cards(4, 1, card))
    alone = run_of(rows, "optim.turns_per_step=1")
    single = run_work(rows, (), run.shape, alone.config, "none", run.engine, 6, card, 0.75).hours
    whole = run_work(rows, (), run.shape, run.config, "none", run.engine, 6, card, 0.75).hours
    assert single is not None
    assert whole is not None
    for hours, way in ((single, data), (whole, one)):
        assert way["hours"]["rollouts"] == pytest.approx(hours["prefill"] + hours["decode"])
        scored = sum(hours[name] for name in ("teacher", "student", "backward", "heads"))
        assert way["hours"]["scoring"] == pytest.approx(scored)
    gradients = 4 * run.shape.adapter_parameters
    step = 2 * 3 * (HOP + gradients / 4 / (LINK_SHARE * 300e9))
    assert data["hours"]["network"] == pytest.approx(3 * step / 3600)
    assert one["hours"]["network"] == 0
    assert data["sent_bytes_per_step"] == pytest.approx(2 * 3 / 4 * gradients)
    assert (data["cards_with_work"], data["largest_share"]) == (4, 0.25)
    assert data["speedup"] == pytest.approx(one["hours"]["total"] / data["hours"]["total"])
    two_machines = ways_of(run, Cards(4, 2, card, network=2.0))[1]
    slower = 2 * 3 * (NETWORK_HOP + gradients / 4 / (LINK_SHARE * 2e9))
    assert two_machines["hours"]["network"] == pytest.approx(3 * slower / 3600)


def test_more_cards_than_turns_have_no_work() -> None:
    rows = rows_of((0, 100), (1, 300))
    run, card = run_of(rows, "optim.turns_per_step=2"), find_gpu("a100-80gb")
    two, eight = (ways_of(run, Cards(n, 1, card))[1] for n in (2, 8))
    assert two["cards_with_work"] == eight["cards_with_work"] == 2
    assert eight["hours"]["scoring"] == two["hours"]["scoring"]
    assert two["largest_share"] == 306 / 412


def test_turns_of_one_session_are_computed_behind_each_other() -> None:
    """Depth-first, a card with both turns computes what they share once: as tokens of a single longer turn."""
    rows = rows_of((0, 20_000), (0, 39_994))
    more = ("optim.turns_per_step=2", "max_prompt_tokens=50000", "max_seq_tokens=60000", "segment_tokens=2000")
    run, card = run_of(rows, *more), find_gpu("h100-80gb")
    one, data, _ = ways_of(run, Cards(2, 1, card), "depth_first")
    assert data["largest_share"] == pytest.approx(40_000 / 40_006)
    last = run_of(rows[1:], *more, "optim.turns_per_step=1")
    alone = ways_of(last, Cards(2, 1, card), "depth_first")[0]
    assert one["hours"]["scoring"] == pytest.approx(alone["hours"]["scoring"], rel=0.06)
    apart = ways_of(run_of(rows_of((0, 20_000), (1, 39_994)), *more), Cards(2, 1, card), "depth_first")[0]
    assert apart["hours"]["scoring"] > 1.25 * one["hours"]["scoring"]
    assert data["hours"]["scoring"] == pytest.approx(alone["hours"]["scoring"])


def test_memory_of_a_share_and_of_one_card() -> None:
    rows = rows_of(*((session, 100 * session + 500) for session in range(6)))
    run = run_of(rows, "optim.turns_per_step=3")
    whole = longest_step(rows, run.shape, run.config, "none", True)
    assert memory_of(run, "none", 1, False).peak.total == whole.peak.total
    single = run_of(rows, "optim.turns_per_step=1")
    alone = longest_step(rows, run.shape, single.config, "none", True)
    assert memory_of(run, "none", 3, False).peak.total == alone.peak.total


def test_sharded_weights_by_hand() -> None:
    """Qwen3.5-9B over 8 cards: an eighth of everything; embeddings, head and vision whole, and three layers of 32."""
    config = load_train_config("qwen3.5-9b-64k", ["rollout.weights=adapter"])
    rows = [RecordRow("s/0", "s", 0, 21_500, 21_900, 500, False)]
    run = Run(rows, (), nine_shape(), config, Engine(), 500, 0.75)
    whole, sharded = (memory_of(run, "depth_first", 8, s) for s in (False, True))
    decays = 2 * 4096 * 32
    largest = max(sum(a * b for a, b in OF_LINEAR) + decays, sum(a * b for a, b in OF_FULL))
    assert LINEAR * (sum(a * b for a, b in OF_LINEAR) + decays) + FULL * sum(a * b for a, b in OF_FULL) == MATRICES
    for before, after in zip(whole.phases, sharded.phases, strict=True):
        assert after.parts["frozen weights"] == pytest.approx(2 * PARAMETERS / 8, rel=1e-4)
        assert after.parts["gathered weights"] == pytest.approx(2 * (PARAMETERS - MATRICES) + 3 * 2 * largest, rel=1e-3)
        rest = {"frozen weights", "gathered weights"}
        assert {k: v for k, v in before.parts.items() if k not in rest} == {
            k: v for k, v in after.parts.items() if k not in rest
        }
        assert after.parts.get("adapter") == 4 * nine_shape().adapter_parameters  # replicated


def test_gathering_over_a_slow_link_by_hand() -> None:
    """One prompt's pass, so many steps of decoding, teacher, student, backward: each gathers all layers."""
    rows = rows_of((0, 300), (1, 300))
    run = run_of(rows, "optim.turns_per_step=2", "gradient_checkpointing=false", rollout=6).sharded()
    card = replace(find_gpu("h100-80gb"), link_gb_per_s=1e-3)
    way = ways_of(run, Cards(2, 1, card))[2]
    layers, gradients = 2 * run.shape.matrix_parameters, 4 * run.shape.adapter_parameters
    passes = (1 + 6) + 3
    speed = LINK_SHARE * 1e6
    seconds = passes * (3 * HOP + layers / 2 / speed) + 2 * (HOP + gradients / 2 / speed)
    assert way["hours"]["network"] == pytest.approx(3 * seconds / 3600)
    assert way["sent_bytes_per_step"] == pytest.approx(passes * layers / 2 + gradients)
    fast = ways_of(run, Cards(2, 1, replace(card, link_gb_per_s=1e9)))[2]
    assert fast["hours"]["network"] == pytest.approx(3 * (passes * 3 + 2) * HOP / 3600, rel=1e-3)
    assert fast["hours"]["rollouts"] == way["hours"]["rollouts"]


def verdict(one: bool | None, data: bool | None, sharded: bool | None, faster: float | None) -> tuple[str | None, str]:
    fits = (one, data, sharded)
    return advice([{"fits": f, "speedup": faster} for f in fits], Cards(8), 4)


def test_which_way_to_take() -> None:
    few = "a step has 4 turn(s), so 4 of 8 cards have no work; "
    assert verdict(True, True, True, 3.0)[0] == verdict(None, None, None, None)[0] == "data_parallel"
    assert verdict(True, True, True, 1.0) == ("one", f"{few}8 cards are 1.00 times as fast as one")
    assert verdict(False, True, True, 1.0)[0] == "data_parallel"  # a whole step does not fit on one
    assert verdict(False, False, True, 3.0)[0] == "fsdp2"
    assert verdict(False, False, False, 3.0)[0] is None
    assert launch(None, Cards(8)) is None
    assert launch("one", Cards(8)) == "sdft train"
    assert launch("data_parallel", Cards(8)) == "torchrun --nproc-per-node 8 -m sdft_cli train"
    assert launch("data_parallel", Cards(8, 2)) == (
        "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id sdft --nproc-per-node 4 "
        "-m sdft_cli train"
    )
    sharded = launch("fsdp2", Cards(8))
    assert sharded == "accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 -m sdft_cli train"


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("take", ["data_parallel", "fsdp2"])
def test_the_launchers_know_these_options(take: str, nodes: int) -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    command = launch(take, Cards(8, nodes))
    assert command is not None
    words = command.replace("RANK", "0").split()
    if take == "data_parallel":
        found = get_args_parser().parse_args(words[1:])
        assert (found.nnodes, found.nproc_per_node) == (str(nodes) if nodes > 1 else "1:1", str(8 // nodes))
        assert (found.module, found.training_script) == (True, "sdft_cli")
    else:
        found = launch_command_parser().parse_args(words[2:])
        assert (found.use_fsdp, found.fsdp_version, found.num_processes, found.module) == (True, "2", 8, True)
        assert (found.num_machines, found.training_script) == (nodes if nodes > 1 else None, "sdft_cli")


@pytest.mark.parametrize("setting", ["load_in_4bit=true", "fast_inference=true", "backend=unsloth", "lora.dropout=0.1"])
def test_what_several_processes_refuse_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="Several cards"):
        check_several(config_of(setting, *(["backend=unsloth"] if "dropout" not in setting else [])))


def test_the_command_with_and_without(sdft: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    from tests.datasets import example_dataset

    example_dataset(tmp_path, 3)
    arguments = ("plan", "data", "--profile", "cpu-demo", "--model", tiny_model, "--gpu", "24GB")
    plain = json.loads(sdft(*arguments, "--json").stdout)
    done = sdft(*arguments, "--json", "--gpus", 4)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    cards = document.pop("gpus")
    assert document == plain
    assert "link_gb_per_s" not in plain["gpu"]
    assert [way["name"] for way in cards["ways"]] == ["one", "data_parallel", "fsdp2"]
    assert cards["count"] == 4
    shown = sdft(*arguments, "--gpus", 4)
    for words in ("4 cards, 8 turns in a step", "data parallel", "FSDP2", "sent by a card in a step, GB"):
        assert words in shown.stdout
    assert "Next: torchrun --nproc-per-node 4 -m sdft_cli train data --profile cpu-demo" in shown.stderr
    wrong = sdft(*arguments, "--gpus", 4, "--nodes", 3)
    assert wrong.returncode == 2
    assert "--nodes 3 needs --gpus with a multiple of 3" in wrong.stderr
    wrong = sdft(*arguments, "--gpus", 4, "--network", 50)
    assert wrong.returncode == 2
    assert "--network is what several machines are connected by" in wrong.stderr
