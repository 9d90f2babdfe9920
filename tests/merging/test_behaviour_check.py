from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.backend_transformers import load_model  # noqa: E402
from sdft_cli.errors import VerificationError  # noqa: E402
from sdft_cli.merging.behaviour_check import (  # noqa: E402
    compare,
    compare_models,
    failures,
    greedy_answers,
    has_call,
    log_probabilities,
    same_answers,
)
from sdft_cli.merging.merge import merge_run  # noqa: E402
from sdft_cli.merging.tensor_check import Certificate  # noqa: E402
from sdft_cli.prompts.syntaxes.hermes import HERMES  # noqa: E402
from sdft_cli.run_folder import CheckPrompt, read_check_prompts, read_run  # noqa: E402

CPU = torch.device("cpu")


def test_a_call_that_was_cut_off_is_a_call() -> None:
    call = '<tool_call>{"name": "Bash", "arguments": {"command": "ls"}}</tool_call>'
    assert [has_call(text, HERMES) for text in ("a", call, f"x {call}", '<tool_call>{"name": "Ba')] == [
        False,
        True,
        True,
        True,
    ]


def test_comparison_by_hand_and_what_fails() -> None:
    trained = torch.tensor([[0.75, 0.25]]).log()
    base = torch.tensor([[0.5, 0.5]]).log()
    found = compare(trained, trained, base)
    assert found["mean_kl"] == 0.0
    assert found["base_mean_kl"] == pytest.approx(0.1308, abs=1e-4)
    assert found["base_is_told_apart"]
    assert failures(found) == []
    assert failures(compare(trained, base, base))
    assert failures({"mean_kl": float("nan"), "base_mean_kl": 0.0, "base_is_told_apart": False})
    assert failures({"mean_kl": 0.009, "base_mean_kl": 0.02, "base_is_told_apart": False})
    near = {"mean_kl": 0.004, "base_mean_kl": 0.015, "base_is_told_apart": False}
    assert failures(near)
    assert failures({**near, "as_written_kl": 1e-6}) == []  # what is lost is what rounding loses
    assert failures({**near, "as_written_kl": 0.004}) == failures(near)  # half of the update, for example
    costly = {"mean_kl": 0.014, "base_mean_kl": 0.9, "base_is_told_apart": True}
    assert failures({**costly, "as_written_kl": 0.01}) == ["mean KL 1.40e-02 is over 0.01"]
    assert failures({**costly, "as_written_kl": 0.0}) == []
    assert failures({**costly, "as_written_kl": float("nan")})
    small = {"mean_kl": 1e-4, "base_mean_kl": 2e-4, "base_is_told_apart": False}
    assert failures(small) == []  # the tensors are judged by the certificate; here it is only told


def test_greedy_answers_are_known_from_one_pass(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), torch.float32, CPU)
    prompts = [CheckPrompt([5, 6, 7, 8], [1] * 9), CheckPrompt([11, 12], [1] * 4), CheckPrompt([9] * 7, [1] * 2)]
    own, log_p = greedy_answers(model, prompts, CPU)
    assert own == [greedy_answers(model, [CheckPrompt(p.prompt, [1] * 9)], CPU)[0][0] for p in prompts]  # alone too
    assert max(map(len, own)) == 9
    replays = [CheckPrompt(p.prompt, answer) for p, answer in zip(prompts, own, strict=True)]
    at_once = log_probabilities(model, replays, CPU)
    torch.testing.assert_close(log_p, at_once, rtol=0, atol=1e-5)  # decoded step by step, and in one pass
    likeliest = at_once.argmax(-1).tolist()
    texts = ["a", '<tool_call>{"name": "Ba', '<tool_call>{"name": "Ba']
    found = {"answers": 3, "same_answers": 3, "answers_with_calls": 2, "same_answers_with_calls": 2}
    assert same_answers(own, texts, likeliest, HERMES) == found
    likeliest[len(own[0])] += 1  # the first token of the second answer
    found = {"answers": 3, "same_answers": 2, "answers_with_calls": 2, "same_answers_with_calls": 1}
    assert same_answers(own, texts, likeliest, HERMES) == found
    unknown = {"answers_with_calls": None, "same_answers_with_calls": None}
    assert same_answers(own, texts, likeliest, None) == found | unknown


def test_an_answer_ends_with_its_stop_token_and_no_later(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), torch.float32, CPU)
    prompts = [CheckPrompt([5, 6, 7, 8], [1] * 9)]
    free = greedy_answers(model, prompts, CPU)[0][0]
    place = next(i for i in range(1, 9) if free[i] not in free[:i])  # the first time that this token comes
    model.generation_config.eos_token_id = [free[place]]
    answers, log_p = greedy_answers(model, prompts, CPU)
    assert answers == [free[: place + 1]]
    assert log_p.argmax(-1).tolist() == answers[0]


def test_settings_that_the_base_generates_with_have_no_say(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), torch.float32, CPU)
    prompts = [CheckPrompt([5, 6, 7, 8], [1] * 9)]
    plain = greedy_answers(model, prompts, CPU)[0]
    own = model.generation_config
    own.update(repetition_penalty=50.0, suppress_tokens=[plain[0][0]], min_new_tokens=9, no_repeat_ngram_size=1)
    own.update(do_sample=True, temperature=9.0, num_beams=3, forced_bos_token_id=7)
    assert greedy_answers(model, prompts, CPU)[0] == plain
    assert model.generation_config is own


def test_what_only_running_the_checkpoint_shows_is_caught(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors' certificate is made to see nothing: the base under the name of the merge must fail all the same."""
    import sdft_cli.merging.merge as module

    monkeypatch.setattr(module, "certify", lambda *arguments: Certificate("bfloat16"))
    monkeypatch.setattr(
        module,
        "merge_weights",
        lambda base, adapter, out, dtype, names: shutil.copyfile(base / "model.safetensors", out / "model.safetensors"),
    )
    with pytest.raises(VerificationError, match="mean KL"):
        merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    assert (tmp_path / "merged" / "FAILED.txt").is_file()


def test_base_and_adapter_rounded_alike_are_the_checkpoint(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """In bfloat16 the checkpoint is a little off the trained model, and not at all off the same sums rounded alike."""
    found = merge_run(read_run(run), str(tiny_model), tmp_path / "merged")["behaviour"]
    assert found["mean_kl"] > 1e-5
    assert found["as_written_kl"] < 1e-6
    other = compare_models(
        tiny_model,
        read_run(run).adapter,
        tiny_model,
        read_check_prompts(run / "check_prompts.jsonl", 8),
        torch.float32,
        written=torch.bfloat16,
    )
    assert other["as_written_kl"] > 0.01
    assert len(failures(other)) == 2


def test_the_checkpoint_is_loaded_from_disk(run: Path, tiny_model: Path) -> None:
    found = read_run(run)
    prompts = read_check_prompts(run / "check_prompts.jsonl", 8)
    check = compare_models(tiny_model, found.adapter, tiny_model, prompts, torch.float32)
    assert check["mean_kl"] == pytest.approx(check["base_mean_kl"], rel=1e-4)
    assert check["mean_kl"] > 0.01
    assert not check["base_is_told_apart"]
    assert check["device"] == "cpu"
    assert check["answers"] == len(prompts) > check["same_answers"]
