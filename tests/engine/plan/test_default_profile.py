"""The plan of the default profile, part by part, against arithmetic by hand from the numbers of its configuration.

Nothing here calls the plan's own formulas: sizes are those of Qwen3.5-9B (32 layers, every fourth one attends).
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.cli.support.options import DEFAULT_PROFILE  # noqa: E402
from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.plan.assumed import assume  # noqa: E402
from sdft_cli.engine.plan.cards import find_gpu  # noqa: E402
from sdft_cli.engine.plan.hours import step_flops  # noqa: E402
from sdft_cli.engine.plan.launches import backward_launches, forward_launches  # noqa: E402
from sdft_cli.engine.plan.memory import Lengths, step_memory  # noqa: E402
from sdft_cli.engine.plan.plan import plan_of  # noqa: E402
from sdft_cli.engine.plan.speed import Engine, Speed  # noqa: E402
from sdft_cli.records import RecordRow  # noqa: E402
from tests.engine.plan.nine import nine_shape  # noqa: E402

H, I, V, R = 4096, 12_288, 248_320, 64  # noqa: E741  # hidden, MLP, words, rank
LINEAR, FULL = 24, 8
Q, KV = 16 * 256, 4 * 256
"""Full attention: queries; keys, as values."""
KEYS, VALUES = 16 * 128, 32 * 128
"""Gated delta rule: queries, as keys; values. Its state is 32 x 128 x 128 numbers, its convolution sees 4 tokens."""
MLP = ((H, I), (H, I), (I, H))
OF_LINEAR = ((H, 2 * KEYS + VALUES), (H, VALUES), (VALUES, H), *MLP)
OF_FULL = ((H, 2 * Q), (H, KV), (H, KV), (Q, H), *MLP)
STUDENT, TEACHER, CAP, SEGMENT = 21_500, 21_900, 8_192, 2_048


def close(value: float) -> Any:
    return pytest.approx(value, rel=0.05)


ADAPTED = LINEAR * sum(a * b for a, b in OF_LINEAR) + FULL * sum(a * b for a, b in OF_FULL)
MATRICES = ADAPTED + LINEAR * 2 * H * 32
"""Two matrices of a gated delta layer make its decays and have no adapter."""
ADAPTER = R * (LINEAR * sum(a + b for a, b in OF_LINEAR) + FULL * sum(a + b for a, b in OF_FULL))
VISION = (
    27 * (4 * 1152 + (3 + 1) * 1152 * 1153 + 2 * 1152 * 4304 + 4304 + 1152)
    + (3 * 2 * 16 * 16 + 1) * 1152
    + 2304 * 1152
    + 2 * 1152
    + 4608 * 4609
    + 4609 * 4096
)
PARAMETERS = MATRICES + 2 * V * H + LINEAR * (2 * KEYS + VALUES) * 4 + 32 * 2 * H + VISION
CACHE = FULL * 2 * KV * 2
STATE = LINEAR * (32 * 128 * 128 * 4 + (2 * KEYS + VALUES) * 4 * 2)


def phases(new: int = CAP) -> dict[str, dict[str, int]]:
    config = load_train_config(DEFAULT_PROFILE, ["rollout.weights=merged"])
    memory = step_memory([Lengths(STUDENT, TEACHER, new)], nine_shape(), config, "depth_first")
    return {phase.name: phase.parts for phase in memory.phases}


def test_parameters_adapter_and_moments() -> None:
    assert DEFAULT_PROFILE == "qwen3.5-9b-64k"
    parts = phases()["optimizer"]
    assert parts["frozen weights"] == close(2 * PARAMETERS)
    assert nine_shape().parameters == pytest.approx(PARAMETERS, rel=1e-4)
    assert parts["adapter"] == 4 * ADAPTER
    assert parts["AdamW moments"] == 2 * 4 * ADAPTER
    assert parts["gradients"] == 4 * ADAPTER


def test_rollout_cache_states_and_merged_weights() -> None:
    parts = phases()["rollout"]
    assert parts["merged sampling weights"] == close(2 * ADAPTED)
    assert parts["key-value cache"] == close((STUDENT + CAP) * CACHE + STATE)


def test_activations_of_a_segment() -> None:
    """What autograd keeps under autocast, in bytes per token: fp32 inputs of norms, 16 bits for all else."""
    norms, mlp = 2 * 4 * H, 2 * H + 3 * 2 * I + 2 * I  # the MLP: its input, gate, silu(gate), up, and their product
    full = norms + mlp + 2 * H + 2 * (2 * Q + 2 * KV) + 4 * 16 + 7 * 2 * R
    full += 4 * (Q + KV) + 2 * Q + 2 * Q  # inputs of the norms of queries and keys; gate, and the gated output
    linear = norms + mlp + 2 * H + 2 * 2 * (2 * KEYS + VALUES) + 6 * 2 * R  # the convolution before and after
    linear += 32 * 2 * (2 * 128 + 128 + 64) + 8 * 32  # q, k, v and a chunk's matrix per head; decay and beta
    linear += VALUES * (4 + 2 + 2 + 2)  # the gated norm: its input in fp32, gate, product; input of the adapter
    assert phases()["student and backward"]["kept activations"] == close(SEGMENT * (FULL * full + LINEAR * linear))


def test_the_live_path() -> None:
    parts, path = phases()["student and backward"], STUDENT + CAP
    boundaries = 1 + -(-path // SEGMENT)
    assert parts["recurrent states"] == close(2 * boundaries * STATE)
    assert parts["keys and values of the path"] == close(path * CACHE)
    assert parts["their gradients"] == close(path * CACHE * 2)


def test_logits_of_the_loss() -> None:
    """A chunk of 256 rows: logits of student and teacher and one buffer more in fp32, a gradient in 16 bits."""
    parts = phases()["student and backward"]
    hidden = 3 * CAP * H * 2
    logits = 256 * V * (3 * 4 + 2)
    backward = SEGMENT * (2 * 2 * I + 8 * H) + 2 * CAP * H * 2
    largest = max(logits + hidden - 2 * CAP * H * 2, backward)
    assert parts.get("loss buffers", parts.get("backward buffers")) == close(largest)


def forward(tokens: float, adapter: bool) -> float:
    rule = 32 * (2 * (2 * 64 * 128 + 64 * 128 + 3 * 128 * 128) + 64 * 256) + 2 * 4 * (2 * KEYS + VALUES)
    return tokens * (2 * (MATRICES + adapter * ADAPTER) + LINEAR * rule)


def attention(tokens: float) -> float:
    return FULL * 4 * Q * tokens * (tokens + 1) / 2


def test_operations_of_each_phase() -> None:
    new = 500
    config = load_train_config(DEFAULT_PROFILE)
    found = step_flops([Lengths(STUDENT, TEACHER, new)], nine_shape(), config, "depth_first", merged=True)
    student, teacher = STUDENT + new, TEACHER + new
    assert found.prefill == close(forward(STUDENT, False) + attention(STUDENT))
    assert found.teacher == close(forward(teacher, False) + attention(teacher))
    assert found.student == close(forward(student, True) + attention(student))
    # All segments but the last one run forward again; dx alone of frozen matrices, dx and dW of the adapter.
    again = 1 - 1 / -(-student // SEGMENT)
    back = forward(student, False) + 4 * student * ADAPTER + 2.5 * attention(student)
    assert found.backward == close(back + again * (forward(student, True) + attention(student)))
    assert found.decode == close(forward(new, False) + FULL * 4 * Q * new * (STUDENT + new / 2) + 2 * new * V * H)
    assert found.heads == close(3 * 2 * new * V * H)


def test_bytes_and_launches_of_decoding() -> None:
    """Launches as torch dispatches them on the 32 layers (`counted.py`): the rule is one kernel of each."""
    config, new = load_train_config(DEFAULT_PROFILE), 500
    card, step = find_gpu("h100-80gb"), [Lengths(STUDENT, TEACHER, new)]
    merged, adapter = (Speed(nine_shape(), config, card, Engine(merged=m)) for m in (True, False))
    each = 2 * PARAMETERS + (STUDENT + new / 2) * CACHE + 2 * STATE
    assert merged.decode_bytes(step) == (close(new * each), new)
    assert adapter.decode_bytes(step) == (close(new * (each + 4 * ADAPTER)), new)
    graph = Speed(nine_shape(), config, card, Engine(merged=True, graphs=True)).decode_bytes(step)
    assert graph[0] == close(new * (2 * PARAMETERS + (STUDENT + CAP) * CACHE + 2 * STATE))
    assert merged.decode_launches().own == close(2_048)
    launches = adapter.decode_launches()
    assert launches.own + launches.adapter == close(3_248)


def test_launches_of_a_segment() -> None:
    """As above; fla launches 8 kernels for the rule of a segment, and 10 going back."""
    fused = {"tokens": SEGMENT, "size": 2, "fused": True}
    teacher, student = (forward_launches(nine_shape(), adapter=on, **fused) for on in (False, True))  # type: ignore[arg-type]
    back = backward_launches(nine_shape(), **fused)  # type: ignore[arg-type]
    assert teacher.own == close(2_062 + 7 * LINEAR)
    assert student.own + student.adapter == close(3_259 + 7 * LINEAR)
    assert back.own + back.adapter == close(4_632 + 9 * LINEAR)


def test_hours_say_what_they_rest_on() -> None:
    config = load_train_config(DEFAULT_PROFILE, ["optim.max_steps=2"])
    card = find_gpu("h100-80gb")
    rows = [RecordRow("s/0", "s", 0, STUDENT, TEACHER, 500, False)]
    plans = {}
    for graphs in ("auto", "off"):
        settings = config.model_copy(update={"rollout": config.rollout.model_copy(update={"graphs": graphs})})
        assumed = assume(
            settings.model_copy(update={"backend": "transformers"}), nine_shape(), "qwen3_5", card, True, None
        )
        plans[graphs] = plan_of(rows, nine_shape(), settings, "depth_first", assumed, card, heldout=rows)
    steps = 2 * 500
    eager = plans["off"]["hours"]["decode"] * 3600 / steps
    assert eager == close(2_048 * 35e-6)
    graph = plans["auto"]["hours"]["decode"] * 3600 / steps
    assert graph == close((2 * PARAMETERS + (STUDENT + CAP) * CACHE + 2 * STATE) / 3350e9 + 2_048 * 1.5e-6)
    told = "\n".join(plans["auto"]["assumptions"])
    for words in (
        "CUDA graphs",
        "merged copy",
        "backend: transformers",
        "fitted to one H100",
        "75% of the card's peak",
    ):
        assert words in told
