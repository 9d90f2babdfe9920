"""Each fault is planted, and its own line fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.choices import DIVERGENCES  # noqa: E402
from sdft_cli.config import DistillSettings, TrainConfig, load_train_config  # noqa: E402
from sdft_cli.engine.doctor.examine import Question, examine  # noqa: E402
from sdft_cli.engine.doctor.finding import Finding, run_checks  # noqa: E402
from sdft_cli.engine.doctor.self_test import by_hand, engine_checks  # noqa: E402
from sdft_cli.engine.doctor.small import small_backend, small_prompts  # noqa: E402
from sdft_cli.engine.models.backend_transformers import TransformersBackend  # noqa: E402
from sdft_cli.engine.objective import formula, loss  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402

CONFIG = load_train_config("qwen3.5-9b-64k", ["lora.rank=4"])


@pytest.fixture
def backend() -> TransformersBackend:
    return small_backend(CONFIG, torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts() -> ChatPrompts:
    return small_prompts()


def found(backend: Any, prompts: ChatPrompts, config: TrainConfig = CONFIG) -> dict[str, Finding]:
    return {finding.what: finding for finding in run_checks(engine_checks(backend, prompts, config))}


def failed(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.level == "fail"}


def test_all_is_well_here() -> None:
    findings = list(examine(Question(CONFIG)))
    assert [f for f in findings if f.level != "ok"] == []
    assert [f.what for f in findings][:5] == ["packages", "GPU", "memory", "disk", "engine"]


def test_weights_and_gradients_are_left_as_they_were(backend: TransformersBackend, prompts: ChatPrompts) -> None:
    before = {name: p.detach().clone() for name, p in backend.model.named_parameters()}
    modes = [module.training for module in backend.model.modules()]
    assert failed(found(backend, prompts)) == set()
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in backend.model.named_parameters())
    assert modes == [module.training for module in backend.model.modules()]


def test_a_wrong_target() -> None:
    asked = Question(load_train_config("qwen3.5-9b-64k", ["lora.target_modules=[q_proj, nope]", "lora.rank=4"]))
    findings = {finding.what: finding for finding in examine(asked)}
    assert failed(findings) == {"targets"}
    assert "nope" in findings["targets"].text


def test_an_adapter_on_the_vision_tower(prompts: ChatPrompts) -> None:
    import peft

    base = small_backend(CONFIG, torch.device("cpu")).model.unload()
    wrong = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=r".*(q_proj|visual.*linear_fc1)"))
    findings = found(TransformersBackend(wrong.eval(), torch.device("cpu")), prompts)
    assert failed(findings) == {"adapter"}
    assert "visual" in findings["adapter"].text


def test_an_adapter_that_is_never_off(backend: TransformersBackend, prompts: ChatPrompts) -> None:
    backend.model.disable_adapter = nullcontext
    assert failed(found(backend, prompts)) == {"adapter off"}


def test_an_adapter_that_is_never_on(
    backend: TransformersBackend, prompts: ChatPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "forward", lambda self, x, *_, **__: self.base_layer(x))
    assert {"adapter", "adapter off"} <= failed(found(backend, prompts))


def test_the_reference_kernel_on_a_gpu(backend: TransformersBackend, prompts: ChatPrompts) -> None:
    checks = engine_checks(backend, prompts, CONFIG)
    assert checks["kernels"]().startswith("transformers' reference for gated delta rule")
    backend.device = torch.device("cuda")  # nothing runs there: the reference is not compared with itself
    (finding,) = run_checks({"kernels": checks["kernels"]})
    assert finding.level == "fail"
    assert "pip install 'sdft-cli[gpu]'" in finding.text


def test_a_kernel_that_is_wrong(
    backend: TransformersBackend, prompts: ChatPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module

    own = module.torch_chunk_gated_delta_rule

    def wrong(*arguments: Any, **settings: Any) -> Any:
        out, state = own(*arguments, **settings)
        return 1.05 * out, state

    wrong.__module__ = "fla.ops"
    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", wrong)
    findings = found(backend, prompts)
    assert "kernels" in failed(findings)
    assert "fla-core for gated delta rule disagrees with transformers' reference" in findings["kernels"].text


def test_a_divergence_that_is_reversed(
    backend: TransformersBackend, prompts: ChatPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.FUSED, "reverse_kl", loss.FUSED["forward_kl"])
    monkeypatch.setitem(formula.FORMULAS, "reverse_kl", formula.forward_kl)
    assert failed(found(backend, prompts)) == {"divergence"}
    monkeypatch.undo()
    own = loss.distillation_loss

    def uphill(student: Any, *rest: Any) -> loss.LossOutput:
        output = own(student, *rest)
        return loss.LossOutput(2 * output.loss.detach() - output.loss, output.per_token)

    monkeypatch.setattr(loss, "distillation_loss", uphill)
    assert failed(found(backend, prompts)) == {"divergence", "loss in chunks"}


def test_every_divergence_is_counted_by_hand(backend: TransformersBackend, prompts: ChatPrompts) -> None:
    for name in DIVERGENCES:
        config = CONFIG.model_copy(update={"distill": CONFIG.distill.model_copy(update={"divergence": name})})
        assert name in engine_checks(backend, prompts, config)["divergence"]()
    p, q = (1.0, 0.0), (0.0, 0.0)  # p = e / (1 + e), q = 1 / 2
    assert by_hand(DistillSettings(), p, q) == pytest.approx(0.7310586 * 0.3798855 - 0.2689414 * 0.6201145, abs=1e-6)


def test_a_tokenizer_that_is_off_by_one_token(backend: TransformersBackend) -> None:
    from tokenizers import Tokenizer

    tokenizer = small_prompts().tokenizer
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in document["added_tokens"]:
        token["id"] += 1
    document["model"]["vocab"] = {word: place + 1 for word, place in document["model"]["vocab"].items()}
    document["model"]["vocab"]["<|new|>"] = 0
    shifted = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    shifted.chat_template = tokenizer.chat_template
    findings = found(backend, ChatPrompts(shifted, load_teacher_template("expert_reference")))
    assert failed(findings) == {"tokens"}


def test_decoding_that_is_not_what_is_scored(backend: TransformersBackend, prompts: ChatPrompts) -> None:
    layer = backend.base.get_decoder().layers[0].mlp
    own = layer.forward
    layer.forward = lambda states: own(states) * (2 if states.shape[1] == 1 else 1)
    assert {"rollout"} <= failed(found(backend, prompts))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
