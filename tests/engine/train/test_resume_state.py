from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator  # noqa: E402

from sdft_cli.config import DistillSettings, load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import EmaAdapter, weights  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.objective.loss import distillation_loss  # noqa: E402
from sdft_cli.engine.passes.executors import response_states  # noqa: E402
from sdft_cli.engine.train.checkpoints import Checkpoints  # noqa: E402
from sdft_cli.engine.train.resume_state import capture, random_state, restore, set_random_state, unwrapped  # noqa: E402
from sdft_cli.errors import DataError  # noqa: E402

SHAPES = {"a.lora_A": (3, 5), "a.lora_B": (4, 3), "frozen": (5, 5), "b.lora_A": (2, 7)}


class Adapter(torch.nn.Module):
    """Named parameters, one of them frozen."""

    def __init__(self, seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES, dtype: Any = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator).to(dtype)
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(values, name != "frozen"))


class Run:
    """A training run whose gradients come from the global generator, as dropout or sampling would."""

    def __init__(
        self,
        seed: int = 0,
        *,
        ema: bool = False,
        accelerate: bool = False,
        rate: float = 0.01,
        shapes: dict[str, tuple[int, ...]] = SHAPES,
        dtype: Any = torch.float32,
        **options: Any,
    ) -> None:
        self.model: Any = Adapter(seed, shapes, dtype)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer: Any = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.1, **options)
        self.schedule: Any = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 1 / (1 + n) ** 0.5)
        self.ema = EmaAdapter(self.model, 0.9) if ema else None
        if accelerate:
            self.model, self.optimizer, self.schedule = Accelerator(cpu=True).prepare(
                self.model, self.optimizer, self.schedule
            )

    def steps(self, count: int) -> None:
        for _ in range(count):
            for number, p in enumerate(self.parameters):
                scale = random.random() * np.random.normal() + random.gauss(0, 1)
                p.grad = (torch.randn(p.shape) * scale * (number + 1)).to(p.dtype)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema:
                self.ema.update()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "ema": self.ema}

    def everything(self) -> dict[str, Any]:
        """All numbers that matter, read without `capture`."""
        found: dict[str, Any] = {f"p{i}": p.detach().clone() for i, p in enumerate(self.parameters)}
        inner = unwrapped(self.optimizer)
        for i, p in enumerate(self.parameters):
            found |= {f"{key}{i}": value.clone() for key, value in inner.state.get(p, {}).items()}
        if self.ema:
            found |= {f"ema {name}": t.clone() for name, t in self.ema.tensors.items()}
        found["rates"] = torch.tensor(self.schedule.get_last_lr(), dtype=torch.float64)
        found["group rates"] = torch.tensor([g["lr"] for g in inner.param_groups], dtype=torch.float64)
        return found


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def save(run: Run, folder: Path, step: int = 1) -> Checkpoints:
    checkpoints = Checkpoints(folder, 2)
    tensors, state = capture(**run.parts())
    checkpoints.save(step, tensors, state)
    return checkpoints


def load(run: Run, checkpoints: Checkpoints) -> None:
    found = checkpoints.newest(pytest.fail)
    assert found
    restore(found, **run.parts())


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.device == second[name].device, name
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=["single", "foreach", "fused"])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, before: int, ema: bool, accelerate: bool, options: dict[str, Any]
) -> None:
    seed_all(1)
    run = Run(0, ema=ema, accelerate=accelerate, **options)
    run.steps(before)
    checkpoints = save(run, tmp_path)
    at_save = run.everything()
    run.steps(5)
    uninterrupted = run.everything()
    assert not torch.equal(at_save["p0"], uninterrupted["p0"])

    seed_all(2)
    other = Run(99, ema=ema, accelerate=accelerate, **options)  # other values, other moments, other place in time
    other.steps(2)
    load(other, checkpoints)
    assert_equal(other.everything(), at_save)
    other.steps(5)
    assert_equal(other.everything(), uninterrupted)


def test_nothing_of_the_state_can_be_left_out(tmp_path: Path) -> None:
    """The test above would see it: each part of the state changes the next five steps."""
    seed_all(1)
    run = Run(0, ema=True)
    run.steps(3)
    checkpoints = save(run, tmp_path)
    run.steps(5)
    uninterrupted = run.everything()

    def resumed(spoil: Any) -> bool:
        other = Run(0, ema=True)
        load(other, checkpoints)
        spoil(other)
        other.steps(5)
        return all(torch.equal(t, uninterrupted[name]) for name, t in other.everything().items())

    def first(key: str) -> Any:
        return lambda r: r.optimizer.state[r.parameters[0]][key].mul_(1.5)

    assert resumed(lambda r: None)
    assert not resumed(first("step"))
    assert not resumed(first("exp_avg"))
    assert not resumed(first("exp_avg_sq"))
    assert not resumed(lambda r: r.schedule.step())
    assert not resumed(lambda r: r.ema.tensors["a_lora_A"].mul_(1.5))
    assert not resumed(lambda r: random.random())
    assert not resumed(lambda r: np.random.random())
    assert not resumed(lambda r: torch.rand(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_bit_comes_back(tmp_path: Path, dtype: Any) -> None:
    seed_all(1)
    run = Run(0, dtype=dtype)
    run.steps(2)
    with torch.no_grad():
        special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, torch.finfo(dtype).tiny / 2], dtype=dtype)
        run.parameters[0][0] = special
    checkpoints = save(run, tmp_path)
    other = Run(1, dtype=dtype)
    load(other, checkpoints)
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for mine, theirs in zip(run.parameters, other.parameters, strict=True):
        assert torch.equal(mine.data.view(size), theirs.data.view(size))
        for key, value in run.optimizer.state[mine].items():
            assert torch.equal(value, other.optimizer.state[theirs][key])
            assert value.dtype == other.optimizer.state[theirs][key].dtype


def test_a_parameter_without_a_gradient_has_no_moments(tmp_path: Path) -> None:
    seed_all(1)
    run = Run(0)
    run.parameters[0].grad = torch.ones_like(run.parameters[0])
    run.optimizer.step()
    run.schedule.step()
    checkpoints = save(run, tmp_path)
    other = Run(1)
    other.steps(1)
    load(other, checkpoints)
    assert [len(other.optimizer.state.get(p, {})) for p in other.parameters] == [3, 0, 0]


def test_parameters_that_are_transposed_views_are_saved_and_restored(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        run = Run(seed)
        run.parameters[0].data = torch.randn(5, 3).t()
        run.steps(2)
        runs.append(run)
    load(runs[1], save(runs[0], tmp_path))
    assert_equal(runs[1].everything(), runs[0].everything())


def test_what_was_captured_does_not_change_with_the_run() -> None:
    run = Run(0, ema=True)
    run.steps(1)
    tensors, _ = capture(**run.parts())
    before = {(part, name): t.clone() for part, group in tensors.items() for name, t in group.items()}
    run.steps(1)
    assert set(tensors["adapter"]) == {"a_lora_A", "a_lora_B", "b_lora_A"}
    assert set(tensors["optimizer"]) == {
        f"{key}/{name}"
        for key, name in itertools.product(("step", "exp_avg", "exp_avg_sq"), ("a_lora_A", "a_lora_B", "b_lora_A"))
    }
    assert all(torch.equal(tensors[part][name], t) for (part, name), t in before.items())


def test_every_generator_continues_its_sequence() -> None:
    def draws() -> list[Any]:
        return [
            [random.random(), random.gauss(0, 1), random.getrandbits(70), random.sample(range(100), 5)],
            [*np.random.random(3), np.random.normal(), *np.random.permutation(9)],
            torch.cat([torch.rand(3), torch.randn(5), torch.randperm(5).float()]).tolist(),
        ]

    seed_all(5)
    random.gauss(0, 1)  # each keeps its second normal number for the next call
    np.random.normal()
    torch.randn(1)
    state = random_state()
    expected = draws()
    assert draws() != expected
    seed_all(6)
    set_random_state(state)
    assert draws() == expected


def test_a_real_adapter_goes_on_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    """Sampling, dropout and the loss of this package; the resumed model is built again, with another generator."""

    def build() -> tuple[Any, dict[str, Any]]:
        config = load_train_config("cpu-demo", ["lora.rank=2", "lora.alpha=4", "lora.dropout=0.2"])
        backend = load_backend(config, "transformers", str(tiny_model))
        backend.model.train()
        optimizer = torch.optim.AdamW(backend.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
        ema = EmaAdapter(backend.model, 0.9)
        backend.model, optimizer, schedule = Accelerator(cpu=True).prepare(backend.model, optimizer, schedule)
        return backend, {"model": backend.model, "optimizer": optimizer, "schedule": schedule, "ema": ema}

    def steps(backend: Any, parts: dict[str, Any], count: int) -> None:
        for _ in range(count):
            answer = torch.randint(3, 8_000, (4,)).tolist()
            prompt = [random.randrange(3, 8_000), int(np.random.randint(3, 8_000))]
            with weights(backend.model, "ema", parts["ema"]):
                teacher = response_states(backend, [[7, *prompt]], [answer], 2)
            student = response_states(backend, [prompt], [answer], 2)
            distillation_loss(student, teacher, backend.head, torch.full((4,), 0.25), DistillSettings()).loss.backward()
            parts["optimizer"].step()
            parts["schedule"].step()
            parts["optimizer"].zero_grad(set_to_none=True)
            parts["ema"].update()

    def result(parts: dict[str, Any]) -> dict[str, Any]:
        own = {name: p.detach().clone() for name, p in parts["model"].named_parameters() if p.requires_grad}
        return own | {f"ema {name}": t.clone() for name, t in parts["ema"].tensors.items()}

    backend, parts = build()
    seed_all(1)
    steps(backend, parts, 2)
    checkpoints = Checkpoints(tmp_path, 1)
    tensors, state = capture(**parts)
    checkpoints.save(2, tensors, state)
    half_way = result(parts)
    steps(backend, parts, 2)
    uninterrupted = result(parts)
    assert not any(torch.equal(half_way[name], t) for name, t in uninterrupted.items())

    backend, parts = build()
    seed_all(2)
    found = checkpoints.newest(pytest.fail)
    assert found
    restore(found, **parts)
    assert_equal(result(parts), half_way)
    steps(backend, parts, 2)
    assert_equal(result(parts), uninterrupted)


OTHER = {"a.lora_A": (3, 5), "a.lora_B": (4, 3), "b.lora_A": (2, 7)}
MISMATCHES = [
    ({"shapes": {**OTHER, "c": (1,)}}, "adapter.safetensors lacks c:"),
    ({"shapes": {k: v for k, v in OTHER.items() if k[0] == "a"}}, "has b_lora_A, which this model does not train"),
    ({"shapes": {**OTHER, "a.lora_B": (4, 4)}}, r"has a_lora_B as float32 \(4, 3\), this model as float32 \(4, 4\)"),
    ({"dtype": torch.bfloat16}, r"has a_lora_A as float32 \(3, 5\), this model as bfloat16 \(3, 5\)"),
    ({"ema": True}, "lacks ema.safetensors"),
    ({"rate": 0.02}, r"learning rates \[0.005"),
]


@pytest.mark.parametrize(("changes", "text"), MISMATCHES, ids=[text for _, text in MISMATCHES])
def test_another_configuration_is_refused_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    run = Run(0)
    run.steps(3)
    checkpoints = save(run, tmp_path)
    other = Run(1, **changes)
    other.steps(1)
    before, generators = other.everything(), random_state()
    with pytest.raises(DataError, match=rf"checkpoints/step-000001.*{text}.*was this run started with another profile"):
        load(other, checkpoints)
    assert_equal(other.everything(), before)
    assert random_state() == generators


def test_an_average_that_this_run_has_not_is_refused(tmp_path: Path) -> None:
    checkpoints = save(Run(0, ema=True), tmp_path)
    with pytest.raises(DataError, match=r"has ema\.safetensors, unlike this configuration"):
        load(Run(0), checkpoints)


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "shape", "dtype"])
def test_moments_that_do_not_fit_are_refused_by_name(tmp_path: Path, spoil: str) -> None:
    run = Run(0)
    run.steps(1)
    tensors, state = capture(**run.parts())
    moments = tensors["optimizer"]
    name = "exp_avg/a_lora_A"
    if spoil == "missing":
        del moments[name]
    elif spoil == "unexpected":
        name = "max_exp_avg_sq/a_lora_A"
        moments[name] = torch.zeros(3, 5)
    else:
        moments[name] = torch.zeros(5, 3) if spoil == "shape" else moments[name].half()
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, tensors, state)
    with pytest.raises(DataError, match=rf"optimizer.safetensors (lacks|has) {name}"):
        load(Run(0), checkpoints)


def test_a_run_goes_on_with_other_gpus(tmp_path: Path) -> None:
    """Every step seeds all generators anew, so those of GPUs that are not here are not missed."""
    tensors, state = capture(**Run(0).parts())
    state["random"]["cuda"] = [*state["random"]["cuda"], ""]
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, tensors, state)
    load(Run(0), checkpoints)


def test_what_cannot_be_captured_whole_is_refused() -> None:
    run = Run(0, amsgrad=True)
    run.steps(1)
    with pytest.raises(ValueError, match="max_exp_avg_sq"):
        capture(**run.parts())
    run = Run(0)
    run.model.frozen.requires_grad_(False)
    run.optimizer.add_param_group({"params": [run.model.frozen]})
    with pytest.raises(ValueError, match="not a trainable one"):
        capture(**run.parts())
    run = Run(0, accelerate=True)
    run.optimizer.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="gradient scaler"):
        capture(**run.parts())
