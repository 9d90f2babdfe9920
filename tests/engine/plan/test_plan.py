from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from sdft_cli.config import DistillSettings, TrainConfig, load_train_config, with_settings  # noqa: E402
from sdft_cli.engine.kernels.autocast import autocast_passes, leave_inputs  # noqa: E402
from sdft_cli.engine.models.adapters import lora_layers  # noqa: E402
from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.plan import memory as memory  # noqa: E402
from sdft_cli.engine.plan.assumed import Assumed  # noqa: E402
from sdft_cli.engine.plan.cards import find_gpu, known_gpus  # noqa: E402
from sdft_cli.engine.plan.flops import attention_flops, backward_flops, causal_pairs, forward_flops  # noqa: E402
from sdft_cli.engine.plan.hours import lengths_of, run_work, step_flops  # noqa: E402
from sdft_cli.engine.plan.memory import Forward, Lengths, kept_bytes, loss_bytes, packed, padded, step_memory  # noqa: E402
from sdft_cli.engine.plan.model_shape import Shape, possible_sharing, read_shape, shape_of  # noqa: E402
from sdft_cli.engine.plan.plan import longest_step, plan_of  # noqa: E402
from sdft_cli.engine.plan.remedies import prompt_cap_that_fits, remedies  # noqa: E402
from sdft_cli.engine.plan.speed import ATTENTION, BANDWIDTH, LAUNCH, NODE, Engine, Speed  # noqa: E402
from sdft_cli.errors import MachineError, UsageError  # noqa: E402
from sdft_cli.records import RecordRow  # noqa: E402
from tests.engine.models.families import make_config  # noqa: E402
from tests.engine.models.test_adapters import tiny_qwen35  # noqa: E402

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
T = 96


ASSUMED = Assumed(TransformersBackend, Engine(merged=True), ("backend: transformers (as asked)",))


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**SIZES, **HEADS, "tie_word_embeddings": False, "pad_token_id": 0, **more})


def config_of(*overrides: str) -> TrainConfig:
    return load_train_config("cpu-demo", ["lora.rank=8", "lora.alpha=8", *overrides])


def adapted(config: TrainConfig, model_config: Any, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(model_config).to(dtype).eval().requires_grad_(False)
    return attach_lora(base, config)


def rows_of(*lengths: tuple[int, int, int]) -> list[RecordRow]:
    return [RecordRow(f"s/{i}", "s", i, *three, False) for i, three in enumerate(lengths)]


def test_counts_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    config = config_of("lora.target_modules=[q_proj, v_proj, down_proj]")
    shape = read_shape(config, str(tiny_model))
    backend = load_backend(config, "transformers", str(tiny_model))
    trainable = sum(p.numel() for p in backend.parameters())
    assert shape.adapter_parameters == trainable
    assert shape.parameters == sum(p.numel() for p in backend.model.parameters()) - trainable
    weights = [layer.get_base_layer().weight.numel() for layer in lora_layers(backend.model).values()]
    assert shape.adapted_parameters == sum(weights)
    linear = [m for m in backend.base.model.modules() if isinstance(m, nn.Linear)]
    lora = [m for n, m in backend.base.model.named_modules() if "lora_" in n and isinstance(m, nn.Linear)]
    assert shape.matrix_parameters == sum(m.weight.numel() for m in linear) - sum(m.weight.numel() for m in lora)
    assert possible_sharing(shape, config) == ["packed", "depth_first"]
    assert possible_sharing(shape, config_of("prefix_sharing=depth_first")) == ["depth_first"]
    assert possible_sharing(shape, config_of("prefix_sharing=none")) == ["none"]
    assert possible_sharing(shape, config, "it attends itself") == ["none"]


def test_counts_of_a_hybrid_with_a_vision_tower() -> None:
    config = load_train_config("qwen3.5-9b-64k", ["lora.rank=2", "lora.alpha=4"])
    model = tiny_qwen35()
    shape = shape_of(model.config, config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    peft_model = attach_lora(model, config)
    assert shape.adapter_parameters == sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert [(b.kind, b.count) for b in shape.blocks] == [("linear_attention", 3), ("full_attention", 1)]
    assert possible_sharing(shape, config) == ["depth_first"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_bytes_are_those_of_the_real_cache(dtype: str) -> None:
    size, kind = memory.BYTES[dtype], getattr(torch, dtype)
    plain = adapted(config_of(), llama(), kind)
    cache = plain.get_base_model()(torch.ones(2, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
    assert shape_of(llama(), config_of()).kv_bytes(size) * 2 * 7 == held
    hybrid = tiny_qwen35().to(kind)
    shape = shape_of(hybrid.config, load_train_config("qwen3.5-9b-64k"))
    cache = hybrid(torch.ones(2, 7, dtype=torch.long), use_cache=True).past_key_values
    full = [x for x in cache.layers if hasattr(x, "keys")]
    states = [t for x in cache.layers if not hasattr(x, "keys") for t in states_of(x)]
    assert len(full) == 1
    assert shape.kv_bytes(size) * 2 * 7 == sum(x.keys.nbytes + x.values.nbytes for x in full)
    assert shape.state_bytes(size) * 2 == sum(t.nbytes for t in states)


def states_of(layer: Any) -> list[torch.Tensor]:
    found = [*layer.conv_states.values(), *layer.recurrent_states.values()] if hasattr(layer, "conv_states") else []
    return [t for t in found if t is not None]


def kept_by_autograd(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Bytes of the distinct storages that the graph of a forward pass holds, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(t.untyped_storage().nbytes() for t in held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_kept_activations_are_what_autograd_keeps(dtype: str, masked: bool) -> None:
    config = config_of(f"dtype={dtype}")
    model = adapted(config, llama(), getattr(torch, dtype))
    if dtype == "bfloat16":  # as on a GPU
        autocast_passes(model.get_base_model(), torch.bfloat16)
        leave_inputs(model)
    mask = torch.ones(2, T, dtype=torch.long)
    if masked:
        mask[0, T // 2 :] = 0
    held = kept_by_autograd(model, torch.ones(2, T, dtype=torch.long), mask)
    shape, size = shape_of(llama(), config), memory.BYTES[dtype]
    (block,) = shape.blocks
    # The first norm's input is no part of the graph, the last norm's is: as many inputs as layers. One more tensor of
    # reciprocals (4 bytes a token), and one table of cosines and sines of a row.
    expected = 3 * kept_bytes(shape, block, size, masked, fused=True) * 2 * T
    expected += 2 * T * shape.head_dim * size + (3 * 2 * T * T * size if masked else 0)
    if dtype == "bfloat16":  # but A of q, k, v in the first layer, whose input needs no gradient
        casts = memory.student_phase(shape, config, padded([T]), 2, fused=True).parts["adapter in 16 bits"]
        assert casts == 2 * shape.adapter_parameters
        expected += casts - 2 * 3 * 8 * SIZES["hidden_size"]
    assert held == pytest.approx(expected, rel=1e-3)


def test_checkpointing_keeps_one_state_per_layer() -> None:
    config = config_of()
    model = adapted(config, llama())
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    held = kept_by_autograd(model, torch.ones(2, T, dtype=torch.long), None)
    assert held == pytest.approx(
        2 * T * 4 * SIZES["hidden_size"] * (3 + 1), rel=5e-3
    )  # the layers' and the last norm's
    shape = shape_of(llama(), config)
    phase = memory.student_phase(
        shape, with_settings(config, {"gradient_checkpointing": True}), padded([T, T]), 2, fused=True
    )
    assert phase.parts["layer inputs"] + phase.parts["final norm"] == 2 * T * 4 * SIZES["hidden_size"] * (3 + 1)


def test_flops_are_those_that_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = shape_of(llama(), config_of())
    model = adapted(config_of(), llama())
    ids = torch.ones(2, T, dtype=torch.long)
    # Attention as plain products, since torch does not count the CPU's fused kernel. They are the whole square.
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        states = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    assert forward_flops(shape, 2 * T, 2 * T * T, adapter=True) == pytest.approx(forward.get_total_flops(), rel=0.02)
    model.enable_input_require_grads()  # else the first layer's queries, keys and values need no dx
    with sdpa_kernel(SDPBackend.MATH):
        states = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    with FlopCounterMode(display=False) as backward:
        states.sum().backward()
    # Fused kernels compute the scores again in the backward pass, plain products do not: 5 products for 4.
    counted = backward.get_total_flops() + attention_flops(shape, 2 * T * T) / 2
    assert backward_flops(shape, 2 * T, 2 * T * T) == pytest.approx(counted, rel=0.02)


def test_flops_by_hand() -> None:
    shape = shape_of(llama(), config_of())
    matrices = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
    assert shape.matrix_parameters == matrices
    assert causal_pairs([3, 2]) == 6 + 3
    assert forward_flops(shape, 10, 55, adapter=False) == 2 * matrices * 10 + 4 * 55 * 64 * 3
    config = config_of("optim.turns_per_step=1")
    found = step_flops([Lengths(10, 20, 5)], shape, config, sharing="none")
    assert found.heads == 3 * 2 * 5 * 512 * 64
    assert found.teacher == forward_flops(shape, 25, 25 * 26 / 2, adapter=False)
    assert found.student == forward_flops(shape, 15, 15 * 16 / 2, adapter=True)
    again = step_flops(
        [Lengths(10, 20, 5)], shape, with_settings(config, {"gradient_checkpointing": True}), sharing="none"
    )
    assert again.backward - found.backward == found.student
    assert attention_flops(shape, 1) == 4 * 64 * 3


def test_passes_and_rows() -> None:
    assert padded([5, 5]) == Forward(10, 2, 0)
    assert padded([3, 5]) == Forward(10, 2, 50)
    assert packed([3, 5]) == Forward(8, 2, 0)
    assert packed([8]) == Forward(8, 1, 0)


def test_buffers_of_the_loss() -> None:
    def of(answers: int, size: int = 4, **settings: Any) -> int:
        return loss_bytes(DistillSettings(chunk_rows=256, **settings), answers, 1_000, size)

    assert [of(n) for n in (100, 256, 4000)] == [1_200_000, 3_072_000, 3_072_000]
    assert of(256, divergence="jsd") == of(256, divergence="mixed_kl") == 4_096_000
    assert of(256, token_clip=0.05) == 14_336_000
    assert of(256, token_weights="prefix") == of(256) == 3_072_000
    assert of(256, token_weights="prefix", support="top_k") == 3_072_000
    assert of(256, support="top_k") == 2_048_000
    assert of(256, support="top_k", top_k=1_000) == 3_072_000
    assert of(256, size=2) == 3_072_000 + 256 * 1_000 * 2


def test_the_peak_is_the_largest_phase_and_parts_follow_the_profile() -> None:
    config = config_of()
    shape = shape_of(llama(), config)
    found = step_memory([Lengths(100, 130, 20)] * 2, shape, config, sharing="none")
    assert [p.name for p in found.phases] == ["rollout", "teacher", "student and backward", "optimizer"]
    assert found.peak.total == max(p.total for p in found.phases) < sum(p.total for p in found.phases)
    parts = found.phases[0].parts
    assert parts["frozen weights"] == 4 * shape.parameters
    assert parts["AdamW moments"] == 2 * parts["adapter"] == 8 * shape.adapter_parameters
    assert parts["merged sampling weights"] == 4 * shape.adapted_parameters
    memories = [
        step_memory([Lengths(100, 130, 20)], shape, with_settings(config, {key: value}), sharing="none")
        for key, value in (("teacher.start", 5), ("teacher.kind", "ema"))
    ]
    assert memories[0] == memories[1] != step_memory([Lengths(100, 130, 20)], shape, config, sharing="none")
    own = with_settings(config, {"rollout.weights": "adapter", "teacher.kind": "ema", "dtype": "bfloat16"})
    parts = step_memory([Lengths(100, 130, 20)], shape, own, sharing="none").phases[0].parts
    assert "merged sampling weights" not in parts
    assert parts["averaged adapter"] == 4 * shape.adapter_parameters
    assert parts["frozen weights"] == 2 * shape.parameters


def test_the_longest_step_is_no_smaller_than_any_step() -> None:
    config = config_of("optim.turns_per_step=2", "optim.max_tokens_per_pass=300")
    shape = shape_of(llama(), config)
    rows = rows_of((100, 110, 5), (40, 60, 5), (250, 400, 5), (10, 20, 5), (90, 100, 5))
    worst = longest_step(rows, shape, config, sharing="none", fused=True)
    lengths = lengths_of(rows, config.rollout.max_new_tokens)
    for a in lengths:
        for b in lengths:
            found = step_memory([a, b], shape, config, sharing="none")
            assert worst.peak.total >= found.peak.total * 0.999


def test_the_expert_s_turns_count_where_they_are_trained_on() -> None:
    """As long as they are, beside rollouts at their cap."""
    rows, cap = rows_of((100, 110, 5), (40, 60, 900)), "rollout.max_new_tokens=20"

    def peak(*settings: str) -> int:
        config = config_of("optim.turns_per_step=1", *settings)
        return longest_step(rows, shape_of(llama(), config), config, "none", fused=True).peak.total

    def of(student: int, teacher: int, answer: int, *settings: str) -> int:
        config = config_of("optim.turns_per_step=1", *settings)
        lengths = [Lengths(student, teacher, answer)]
        return step_memory(lengths, shape_of(llama(), config), config, "none").peak.total

    on, mixed = ("distill.lambda_on_policy=1", cap), ("distill.lambda_on_policy=0.5", cap)
    assert peak(*on) == of(100, 110, 20, *on)
    assert peak(*mixed) == of(40, 60, 900, *mixed) > peak(*on)
    assert peak(*on, "teacher.start=1") > peak(*mixed)  # a teacher of its own, too
    assert peak(*on, "distill.lambda_start=0") == peak(*mixed)


def plan_with(rows: Sequence[RecordRow], gigabytes: float, *overrides: str) -> dict[str, Any]:
    config = config_of("optim.max_steps=3", "optim.turns_per_step=2", *overrides)
    shape = shape_of(llama(), config)
    return plan_of(rows, shape, config, "none", ASSUMED, find_gpu(f"{gigabytes}GB"), heldout=rows)


def test_a_verdict_and_what_to_lower() -> None:
    rows = rows_of((100, 110, 5), (40, 60, 7), (250, 400, 9), (10, 20, 5))
    fits = plan_with(rows, 24)
    assert fits["gpu"]["fits"]
    assert fits["gpu"]["margin"] == fits["gpu"]["usable_bytes"] - fits["peak_bytes"] > 0
    assert fits["remedies"] == []
    assert fits["rollout_tokens"] == 6  # (5 + 7 + 9 + 5) / 4 rounds to even
    assert fits["hours"]["total"] == pytest.approx(sum(v for k, v in fits["hours"].items() if k != "total"))
    small = plan_with(rows, 0.006)
    assert not small["gpu"]["fits"]
    peaks = [r["peak"] for r in small["remedies"] if r["change"].startswith("--set")]
    assert peaks == sorted(peaks)
    assert max(peaks) < small["peak_bytes"]
    assert "--set gradient_checkpointing=true" in [r["change"] for r in small["remedies"]]


def test_the_prompt_cap_that_fits_is_the_largest() -> None:
    config = config_of("optim.turns_per_step=1")
    shape = shape_of(llama(), config)
    rows = rows_of(*((n, n + 10, 5) for n in range(50, 1000, 50)))

    def predict(some: Sequence[RecordRow], settings: TrainConfig, sizes: Shape) -> memory.Memory:
        return longest_step(some, sizes, settings, sharing="none", fused=True)

    limit = predict([r for r in rows if r.teacher_prompt_tokens <= 460], config, shape).peak.total
    assert prompt_cap_that_fits(rows, shape, config, predict, limit) == 460
    assert prompt_cap_that_fits(rows, shape, config, predict, 10) is None
    last = remedies(rows, shape, config, predict, limit)[-1]
    assert (last.change, last.records_lost, last.fits) == ("max_prompt_tokens=460", 10, True)


def test_hours_by_hand() -> None:
    """One long record: its passes are bound by the card, its decoding by launches, or as a graph by bytes."""
    long = ["optim.max_steps=2", "optim.turns_per_step=1", "max_prompt_tokens=50000", "max_seq_tokens=60000"]
    config = config_of(*long, "dtype=bfloat16", "prefix_sharing=none", "gradient_checkpointing=true")
    wide, deep = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}, 3
    shape = shape_of(llama(**wide, num_key_value_heads=4), config)
    rows, gpu = rows_of((39_990, 39_996, 5)), find_gpu("h100-80gb")
    work = run_work(rows, (), shape, config, "none", Engine(), 4, gpu, 0.5)
    assert work.hours is not None
    tokens, hidden, products = 40_000, 1024, deep * (2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 4096)
    seconds = 2 * tokens * products / (0.5 * 989e12)
    seconds += 4 * (tokens * (tokens + 1) / 2) * hidden * deep / (ATTENTION * 989e12)
    seconds += tokens * deep * (92 * hidden + 10 * 4096 + 30 * 2 * hidden) / (BANDWIDTH * 3350e9)
    assert work.hours["teacher"] == pytest.approx(2 * seconds / 3600, rel=1e-3)
    # A step of decoding: 3 layers of 2 norms (8), 7 matrices with an adapter (1 + 6) and 17 more, and 86 outside.
    kernels = 3 * (2 * 8 + 7 + 17) + 86
    launches = kernels * LAUNCH + 3 * 7 * 6 * 4.3e-6
    assert work.decode_steps == 2 * 4
    assert work.hours["decode"] == pytest.approx(8 * launches / 3600)
    weights = 2 * shape.parameters + 4 * shape.adapter_parameters
    assert work.decode_bytes == 8 * (weights + 39_992 * shape.kv_bytes(2))
    graph = run_work(rows, (), shape, config, "none", Engine(graphs=True, merged=True), 4, gpu, 0.5)
    read = 8 * (2 * shape.parameters + (39_990 + config.rollout.max_new_tokens) * shape.kv_bytes(2))
    assert graph.decode_bytes == read
    assert graph.hours is not None
    assert graph.hours["decode"] == pytest.approx((read / 3350e9 + 8 * kernels * NODE) / 3600)


def test_sequences_that_are_decoded_together_share_a_step() -> None:
    config = config_of("rollout.max_tokens_per_pass=100000", "dtype=bfloat16")
    shape, gpu = shape_of(llama(), config), find_gpu("h100-80gb")
    speed = Speed(shape, config, gpu, Engine(merged=True))
    one, eight = (speed.decode_bytes([Lengths(100, 110, 20)] * n) for n in (1, 8))
    assert (one[1], eight[1]) == (20, 20)
    assert eight[0] - one[0] == 7 * 20 * 110 * shape.kv_bytes(2)  # the weights are read once for all
    assert speed.decode_seconds(*eight) == speed.decode_seconds(*one)  # bound by launches, both
    apart = Speed(shape, config_of("rollout.max_tokens_per_pass=1", "dtype=bfloat16"), gpu, Engine(merged=True))
    assert apart.decode_bytes([Lengths(100, 110, 20)] * 8)[1] == 160


def test_what_a_run_does_beside_its_steps_has_lines_of_its_own() -> None:
    rows, settings = rows_of((100, 120, 5)), ["optim.max_steps=100", "optim.turns_per_step=1", "dtype=bfloat16"]
    gpu = find_gpu("h100-80gb")

    def hours(*overrides: str, heldout: Sequence[RecordRow] = rows) -> dict[str, float]:
        config = config_of(*settings, *overrides)
        work = run_work(rows, heldout, shape_of(llama(), config), config, "none", Engine(), 4, gpu, 0.75)
        assert work.hours is not None
        return dict(work.hours)

    usual = hours("heldout.every=50", "checkpoint.every=50", "gate.records=32", "rehearse=true")
    assert usual["total"] == pytest.approx(sum(v for k, v in usual.items() if k != "total"))
    assert min(usual[name] for name in ("gate", "heldout", "checkpoints", "start")) > 0
    assert hours("heldout.every=10")["heldout"] == pytest.approx(usual["heldout"] * 11 / 3)  # step 0 is one, too
    assert hours("checkpoint.every=25")["checkpoints"] == pytest.approx(2 * usual["checkpoints"])
    assert hours("gate.action=off")["gate"] == hours("objective=sft")["gate"] == 0
    assert hours(heldout=())["heldout"] == 0
    assert hours("rehearse=false")["start"] < usual["start"]


def test_cards() -> None:
    assert len({card.name for card in known_gpus()}) == len(known_gpus())
    assert find_gpu("H100-80GB").tflops == 989
    assert find_gpu("80GB").note == "speed of a100-80gb"  # the slowest card of that size
    assert find_gpu("80GB").usable == int(80 * 2**30 * 0.94)
    for text in ("h1000", "0GB", "GB"):
        with pytest.raises(UsageError, match=r"choose of|did you mean"):
            find_gpu(text)


def test_a_model_that_cannot_be_had_and_one_that_is_not_modelled(tmp_path: Path) -> None:
    from transformers import MixtralConfig

    with pytest.raises(MachineError, match="Model nobody/nothing is no local folder and could not"):
        read_shape(config_of(), "nobody/nothing")
    with pytest.raises(UsageError, match="mixture of experts"):
        shape_of(MixtralConfig(num_hidden_layers=1), config_of())


def test_the_command(sdft: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    import json

    from tests.datasets import example_dataset

    example_dataset(tmp_path, 3)
    arguments = ("plan", "data", "--profile", "cpu-demo", "--model", tiny_model, "--gpu", "24GB")
    done = sdft(*arguments, "--json", "--rollout-tokens", 3)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["rollout_tokens"] == 3
    assert document["caps"][0] == {
        "name": "max_prompt_tokens",
        "cap": 100,
        "rejected": 0,
        "profile_cap": 7168,
        "over": 0,
    }
    done = sdft(*arguments, "--set", "max_prompt_tokens=10", "--set", "max_seq_tokens=100")
    assert done.returncode == 3
    assert "within 10 tokens" in done.stderr


def test_the_report_says_the_need_without_a_card_and_what_to_lower_on_a_small_one() -> None:
    import io

    from rich.console import Console

    from sdft_cli.report.terminal import plan_report

    def shown(document: dict[str, Any]) -> str:
        console = Console(file=io.StringIO(), width=120, highlight=False)
        console.print(plan_report({**document, "caps": []}))
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    rows = rows_of((250, 400, 9), (10, 20, 5))
    config = config_of("optim.max_steps=1", "optim.turns_per_step=1")
    alone = shown(plan_of(rows, shape_of(llama(), config), config, "none", ASSUMED))
    assert "Needs " in alone
    assert "No card" in alone
    small = shown(plan_with(rows, 0.006))
    assert "Does not fit" in small
    for words in ("gradient_checkpointing=true", "frozen weights", "student and backward (peak)", "fitted to one H100"):
        assert words in small
    assert "speed of t4-16gb" in small


def test_rollouts_of_a_record_are_records_of_their_own() -> None:
    config = config_of("optim.max_steps=2", "optim.turns_per_step=1")
    shape = shape_of(llama(), config)
    rows = rows_of((100, 120, 5))
    one = run_work(rows, (), shape, config, "depth_first", Engine(), 4, None, 0.5)
    triple = with_settings(config, {"rollout.per_record": 3})
    three = run_work(rows, (), shape, triple, "depth_first", Engine(), 4, None, 0.5)
    assert three.flops.total == pytest.approx(3 * one.flops.total)
    assert one.hours is None


@pytest.mark.parametrize(
    ("family", "targets"),
    [("phi", "q_proj, fc1"), ("opt", "out_proj"), ("gpt_neox", "query_key_value"), ("starcoder2", "c_fc")],
)
def test_layers_with_other_matrices_are_refused(family: str, targets: str) -> None:
    config = config_of(f"lora.target_modules=[{targets}]")
    with pytest.raises(UsageError, match=f"{family} is a model with layers of .*, which `sdft plan` does not model"):
        shape_of(make_config(family), config)


def test_a_cap_of_the_logits_takes_a_buffer_and_dropout_of_the_base_is_off() -> None:
    capped = shape_of(make_config("gemma2"), config_of())
    assert capped.softcap
    assert not shape_of(make_config("llama"), config_of()).softcap
    settings = DistillSettings(chunk_rows=256)
    assert loss_bytes(settings, 1000, 50, 4, softcap=True) - loss_bytes(settings, 1000, 50, 4) == 4 * 256 * 50
    assert shape_of(make_config("llama", attention_dropout=0.1), config_of()).path_obstacle is None
