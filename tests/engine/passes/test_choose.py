from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.passes import sharing_check as module  # noqa: E402
from sdft_cli.engine.passes.choose import choose_sharing  # noqa: E402
from sdft_cli.engine.passes.sharing_check import SharingCheck  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from tests.engine.models.families import make_model  # noqa: E402
from tests.engine.trees import make, tiny  # noqa: E402


def sharing_error(backend: Backend, kind: Any) -> str | None:
    refusal = SharingCheck(backend).refusal(kind)
    return refusal.reason if refusal else None


@pytest.fixture
def llama() -> Backend:
    return make("llama")


@pytest.fixture
def hybrid() -> Backend:
    return make("hybrid")


def test_attention_models_are_packed_and_hybrids_run_depth_first(llama: Backend, hybrid: Backend) -> None:
    number = r"\d\.\de[-+]\d\d"
    checked = rf"checked on this model against turns alone: states {number}, caches {number}, gradients {number}"
    assert re.fullmatch(rf"Prefix sharing: packed \({checked}\)", choose_sharing(llama, "auto"))
    assert llama.sharing == "packed"
    told = choose_sharing(hybrid, "auto")
    assert re.fullmatch(rf"Prefix sharing: depth_first \({checked}; not packed, since the model has linear.*\)", told)
    assert hybrid.sharing == "depth_first"
    assert re.fullmatch(rf"Prefix sharing: depth_first \({checked}\)", choose_sharing(llama, "depth_first"))
    assert llama.sharing == "depth_first"
    assert choose_sharing(llama, "none") == "Prefix sharing: none (as asked)"
    assert llama.sharing == "none"


def test_where_packed_passes_do_not_fit_the_choice_is_depth_first(llama: Backend) -> None:
    sentence = choose_sharing(llama, "auto", "a packed pass takes 9 GB")
    assert sentence.startswith("Prefix sharing: depth_first (checked on this model")
    assert sentence.endswith("; a packed pass takes 9 GB)")
    assert choose_sharing(llama, "packed", "a packed pass takes 9 GB").startswith("Prefix sharing: packed")


def test_a_library_with_its_own_attention_shares_nothing_and_says_so_aloud(llama: Backend) -> None:
    llama.own_attention = "its kernels are its own"
    sentence = choose_sharing(llama, "auto")
    assert sentence.startswith("WARNING: no prefix sharing, every turn pays for its whole prompt (not packed, since")
    assert llama.sharing == "none"
    for kind in ("packed", "depth_first"):
        with pytest.raises(UsageError, match=f"prefix_sharing is {kind}, but its kernels are its own: use"):
            choose_sharing(llama, kind)


def test_a_model_that_ignores_the_mask_is_found_out(llama: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = type(llama.trunk)
    forward = trunk.forward

    def deaf(self: object, *arguments: object, attention_mask: Any = None, **rest: object) -> object:
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
        return forward(self, *arguments, attention_mask=mask, **rest)

    monkeypatch.setattr(trunk, "forward", deaf)
    sentence = choose_sharing(llama, "auto")
    assert sentence.startswith("Prefix sharing: depth_first (checked on this model")
    assert "; not packed, since packed states differ from those of independent turns by " in sentence
    asked = choose_sharing(llama, "packed")  # by name it runs all the same, and says how far it is
    assert re.match(
        r"WARNING: prefix sharing is packed as asked, although packed states differ from those of independent turns by "
        r"\d\.\de[-+]\d\d, where ways that share nothing differ by \d\.\de-\d\d \(up to 1\.0e-04 counts as rounding\)",
        asked,
    )
    assert llama.sharing == "packed"


def test_a_model_that_forgets_its_past_is_found_out(llama: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = type(llama.trunk)
    forward = trunk.forward

    def deaf(self: Any, *arguments: Any, position_ids: Any = None, **rest: Any) -> Any:
        zero = None if position_ids is None else position_ids - position_ids[:, :1]
        return forward(self, *arguments, position_ids=zero, **rest)

    monkeypatch.setattr(trunk, "forward", deaf)
    reason = str(sharing_error(llama, "depth_first"))
    assert reason.startswith("states of ways that share nothing differ by ")
    assert "which is no rounding" in reason


@pytest.mark.parametrize("kind", ["packed", "depth_first"])
def test_a_gradient_that_is_wrong_is_found_out(llama: Backend, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are right, and a part of the gradient is lost."""
    passes = module.student_passes

    def lossy(backend: Backend, prompts: Any, answers: Any, *rest: Any) -> Any:
        return passes(backend, prompts[:-1], answers[:-1], *rest)

    monkeypatch.setattr(module, "student_passes", lossy)
    assert f"{kind} gradients differ" in str(sharing_error(llama, kind))


@pytest.mark.parametrize("kind", ["packed", "depth_first"])
def test_what_decoding_leaves_behind_is_found_out(llama: Backend, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As offsets of positions, or a mode that is not put back."""
    own = llama.generate

    def leaky(**inputs: Any) -> Any:
        output = own(**inputs)
        llama.trunk.register_forward_pre_hook(
            lambda module, args, inputs: (args, {**inputs, "input_ids": inputs["input_ids"] // 2}), with_kwargs=True
        )
        return output

    monkeypatch.setattr(llama, "generate", leaky)
    assert f"{kind} states differ" in str(sharing_error(llama, kind))


def test_a_model_that_decodes_otherwise_behind_a_shared_cache_is_found_out() -> None:
    backend = make("llama")
    own = backend.base.lm_head.forward
    backend.base.lm_head.forward = lambda states: 2 * own(states)
    assert "tokens decoded behind packed prompts have other log-prob" in str(sharing_error(backend, "packed"))


def test_a_model_with_attention_code_of_its_own_gets_none_of_ours() -> None:
    """Falcon asks for the name of its attention and knows no other; with one of ours it read no mask."""
    model = make_model("falcon").requires_grad_(False)
    backend = TransformersBackend(PlainModel(model).eval(), torch.device("cpu"))
    assert sharing_error(backend, "packed") == "the model has an attention of its own"


def test_passes_that_end_in_an_error_are_not_taken_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TransformersBackend(PlainModel(make_model("falcon").requires_grad_(False)).eval(), torch.device("cpu"))
    sentence = choose_sharing(backend, "auto")
    assert sentence.startswith("WARNING: no prefix sharing")
    assert "depth_first passes end in an error on it (TypeError: " in sentence

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "answer_states", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        sharing_error(make("llama"), "packed")


@pytest.mark.parametrize("kind", ["packed", "depth_first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_passes_and_leaves_everything_as_it_was(kind: Any, dtype: Any) -> None:
    backend = make("llama", dtype)
    values = [p.data for p in backend.parameters()]
    copies = [p.data.clone() for p in backend.parameters()]
    for i, p in enumerate(backend.parameters()):
        p.grad = torch.full_like(p, float(i))
    gradients = [p.grad for p in backend.parameters()]
    attention = backend.base.config.get_text_config()._attn_implementation
    backend.model.train()
    state = torch.get_rng_state()
    assert sharing_error(backend, kind) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert backend.model.training
    assert (backend.sharing, backend.segment_tokens) == ("none", 2048)
    assert backend.base.config.get_text_config()._attn_implementation == attention
    for i, p in enumerate(backend.parameters()):
        assert p.data.data_ptr() == values[i].data_ptr()
        assert torch.equal(p.data, copies[i])
        assert p.grad is gradients[i]
        assert bool((p.grad == i).all())


def test_a_model_without_an_adapter_is_checked_on_its_states() -> None:
    plain: Any = PlainModel(tiny("hybrid").eval().requires_grad_(False))
    backend = TransformersBackend(plain, torch.device("cpu"))
    assert choose_sharing(backend, "auto").startswith("Prefix sharing: depth_first")


def test_dropout_of_the_adapter_is_an_obstacle(tiny_model: Any) -> None:
    backend = load_backend(load_train_config("cpu-demo", ["lora.dropout=0.1"]), "transformers", str(tiny_model))
    assert "dropout" in str(sharing_error(backend, "depth_first"))
