"""What is wrong with a server is one sentence and exit code 1, before step 1; nothing is sampled here instead."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config, resumed_config  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.engine.remote.conftest import Serve  # noqa: E402

Sdft = Callable[..., subprocess.CompletedProcess[str]]
FEW = ["lora.rank=4", "rollout.max_new_tokens=4", "rollout.start_tokens=null", "optim.max_steps=1"]
FEW += ["gate.action=off", "products=exact"]


def sentence_of(sdft: Sdft, data: Dataset, model: Path, url: str, *settings: str) -> str:
    """Train with a server that is no good; return the sentence that ends the run."""
    changed = [x for setting in (*FEW, *settings) for x in ("--set", setting)]
    asked = ["--profile", "cpu-demo", "--model", model, "--rollouts", "vllm", "--vllm-url", url, "--out", "run"]
    done = sdft("train", data.path, *asked, *changed)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("sdft: ")]
    assert done.stderr.splitlines()[-1] == sentence
    assert sentence.endswith((".", "`."))
    assert "step 1" not in done.stderr
    return sentence.removeprefix("sdft: ")


def nobody() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


def test_a_stopped_server(sdft: Sdft, data: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    url = nobody()
    sentence = sentence_of(sdft, data, tiny_model, url)
    assert sentence.startswith(f"The rollout server {url} does not answer (")
    assert "Connection refused" in sentence
    assert "): start it, or name it by --vllm-url; a run that had begun goes on with" in sentence
    assert not (tmp_path / "run").exists()


def test_a_slow_server(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve) -> None:
    server = serve(tiny_model, adapters=True, delay=20)
    sentence = sentence_of(sdft, data, tiny_model, server.url, "rollout.vllm_timeout=1")
    assert sentence.startswith(f"The rollout server {server.url} did not answer /v1/completions within 1 s: look")
    assert "raise rollout.vllm_timeout" in sentence


def other_weights(model: Path, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(model, folder)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(folder)
    return folder


def test_another_model(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve, tmp_path: Path) -> None:
    """The same architecture and tokenizer, other weights."""
    server = serve(other_weights(tiny_model, tmp_path / "other"), adapters=True)
    sentence = sentence_of(sdft, data, tiny_model, server.url)
    assert sentence.startswith(f"The rollout server {server.url} serves {tmp_path / 'other'}, whose log-probabilities ")
    assert f"differ from those of {tiny_model} by " in sentence
    assert f"start it with {tiny_model}, the run's revision and dtype" in sentence


def test_log_probabilities_behind_the_temperature(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve) -> None:
    server = serve(tiny_model, adapters=True, logprobs_mode="processed_logprobs")
    settings = ("rollout.temperature=0.5", "rollout.top_p=0.5")
    assert sentence_of(sdft, data, tiny_model, server.url, *settings).endswith("--logprobs-mode raw_logprobs.")


def test_another_tokenizer(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve, tmp_path: Path) -> None:
    """The same weights; two words have changed places."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words: dict[str, int] = tokenizer["model"]["vocab"]
    words["Ġx"], words["Ġ#"] = words["Ġ#"], words["Ġx"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    server = serve(folder, adapters=True)
    sentence = sentence_of(sdft, data, tiny_model, server.url)
    assert sentence == (
        f"The rollout server {server.url} serves {folder} with another tokenizer than that of {tiny_model}: start it "
        f"with {tiny_model} itself, without --tokenizer."
    )


def test_a_server_that_takes_no_adapters(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve) -> None:
    server = serve(tiny_model)
    sentence = sentence_of(sdft, data, tiny_model, server.url)
    assert sentence.startswith(f"The rollout server {server.url} takes no adapters at runtime: start it with --enable")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in sentence


def test_a_server_that_cannot_load_the_adapter(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve) -> None:
    server = serve(tiny_model, adapters=True, max_lora_rank=2)
    sentence = sentence_of(sdft, data, tiny_model, server.url)
    assert "(LoRA rank 4 is greater than max_lora_rank 2): it has to see that folder by this path" in sentence


def test_a_server_that_takes_shorter_prompts(sdft: Sdft, data: Dataset, tiny_model: Path, serve: Serve) -> None:
    longest = max(record.row.prompt_tokens for record in data.train) + 4
    server = serve(tiny_model, adapters=True, max_model_len=longest - 1)
    sentence = sentence_of(sdft, data, tiny_model, server.url)
    assert (
        f"takes {longest - 1} tokens, and the longest prompt with its answer has {longest}: start it with " in sentence
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["rollout.source=vllm"], "rollout: source is vllm, but which server: add --vllm-url http://HOST:PORT"),
        (["rollout.vllm_url=http://here:1"], "rollout: vllm_url is set, but rollouts are local: add --rollouts vllm"),
        (["rollout.ahead=true"], "rollout: ahead and sync_every are for a server's rollouts: add --rollouts vllm"),
        (["rollout.sync_every=2"], "rollout: ahead and sync_every are for a server's rollouts"),
        (
            ["rollout.vllm_url=http://here:1", "rollout.source=vllm", "lora.dropout=0.1"],
            "configuration: rollout.source=vllm weighs rollouts by the student's probabilities: set lora.dropout=0",
        ),
        (["rollout.vllm_url=here:1", "rollout.source=vllm"], "rollout.vllm_url: here:1 is no URL: write e.g. http"),
    ],
)
def test_settings_that_do_not_go_together(settings: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_train_config("cpu-demo", settings)
    assert str(caught.value).startswith(sentence)


def test_a_url_may_end_as_that_of_an_openai_client() -> None:
    config: Any = load_train_config("cpu-demo", ["rollout.source=vllm", "rollout.vllm_url=http://here:8000/v1/"])
    assert config.rollout.vllm_url == "http://here:8000"


def test_a_resumed_run_may_find_the_server_elsewhere() -> None:
    """But not sample in another way."""
    config = load_train_config("cpu-demo", ["rollout.source=vllm", "rollout.vllm_url=http://here:8000"])
    stored = config.model_dump(mode="json")
    found = resumed_config(stored, ["rollout.vllm_timeout=5"], {"rollout.vllm_url": "http://there:1"})
    assert (found.rollout.vllm_url, found.rollout.vllm_timeout) == ("http://there:1", 5)
    for other in ("rollout.ahead=true", "rollout.sync_every=2", "rollout.importance=off"):
        with pytest.raises(UsageError, match="would make it another run"):
            resumed_config(stored, [other], {})
