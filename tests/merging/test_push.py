"""`sdft merge --push`, as a user runs it, against a Hub on this machine; and everything that has to stop it."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.errors import UsageError, VerificationError  # noqa: E402
from sdft_cli.merging.certificate import file_hashes  # noqa: E402
from sdft_cli.merging.push import check_repo_name  # noqa: E402
from sdft_cli.records.folders import sha256_of  # noqa: E402
from sdft_cli.records.json_files import write_json  # noqa: E402
from sdft_cli.run_folder import read_run  # noqa: E402
from sdft_cli.stages.merge import run_merge  # noqa: E402
from sdft_cli.stages.model_card import evaluated_card, is_own_card, name_in_card, write_model_card  # noqa: E402
from sdft_cli.stages.push import check_no_secrets, push  # noqa: E402
from tests.fork_server import ForkServer  # noqa: E402
from tests.merging.conftest import make_run  # noqa: E402
from tests.merging.fake_hub import FakeHub, serving, url  # noqa: E402

Sdft = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "hf_" + "aZ3kQ9xL2mN8vB4cR7tY1wE5uI0oP6sD"[:30]


@pytest.fixture(scope="module")
def merged_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "run", tiny_model)
    run_merge(read_run(run), run / "merged")
    return run


@pytest.fixture
def ready(merged_run: Path, tmp_path: Path) -> Path:
    """A run with a checkpoint that passed, of which a test may change what it likes."""
    shutil.copytree(merged_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def online() -> Iterator[ForkServer]:
    """Commands that know the fake Hub and no other."""
    endpoint = {"HF_ENDPOINT": url(), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    server = ForkServer(**endpoint, HF_HOME="hf", no_proxy="127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def pushed(sdft: Sdft, online: ForkServer) -> Sdft:
    """Run `sdft merge` with a token, which nothing may tell."""

    def run(*arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        environment = {**online.environment, "HF_TOKEN": token}
        assert online.serves(environment)
        done = sdft("merge", *arguments, server=online, **environment)
        assert "Traceback" not in done.stderr + done.stdout
        assert TOKEN not in done.stderr + done.stdout
        return done

    return run


def test_exactly_the_certified_files_arrive_in_a_private_repository(pushed: Sdft, ready: Path) -> None:
    (ready / "merged" / ".DS_Store").write_text("hidden")
    with serving(FakeHub()) as hub:
        done = pushed(ready, "--push", "me/model")
        assert done.returncode == 0, done.stderr
        assert "it is not merged again" in done.stderr
        assert "not searched: model.safetensors" in done.stderr
        assert f"to {hub.url}/me/model (private)" in done.stderr
        assert hub.private
        on_disk = {p.name: p.read_bytes() for p in (ready / "merged").iterdir() if not p.name.startswith(".")}
        assert hub.files == on_disk
        assert {"README.md", "merge-certificate.json", "model.safetensors", "tokenizer.json"} <= hub.files.keys()
        assert b'model_id = "me/model"' in hub.files["README.md"]
        assert hub.tokens == {f"Bearer {TOKEN}"}
        # Again, into the repository that is there now.
        again = pushed(ready, "--push", "me/model", "--bf16")
        assert again.returncode == 0, again.stderr
        assert hub.files == on_disk


def test_a_public_repository_is_asked_for_by_name(pushed: Sdft, ready: Path) -> None:
    with serving(FakeHub(exists=True, private=False)) as hub:
        done = pushed(ready, "--push", "me/model")
        assert done.returncode == 2
        assert "me/model exists and is public: add --public" in done.stderr
        assert not hub.files
        done = pushed(ready, "--push", "me/model", "--public")
        assert done.returncode == 0, done.stderr
        assert "(public)" in done.stderr
        hub.files["old.safetensors"] = b""
        done = pushed(ready, "--push", "me/model", "--public")
        assert done.returncode == 2
        assert "me/model holds files of another checkpoint (old.safetensors)" in done.stderr
    with serving(FakeHub()) as hub:
        pushed(ready, "--push", "me/model", "--public")
        assert not hub.private


def test_files_of_another_checkpoint_in_the_repository_are_listed(pushed: Sdft, ready: Path) -> None:
    stale = ("adapter_config.json", "additional_chat_templates/rag.jinja", "pytorch_model.bin", "tokenizer.model")
    harmless = (".gitattributes", "LICENSE", "plots/loss.png", "logs/config.json")
    with serving(FakeHub(exists=True)) as hub:
        hub.files = dict.fromkeys((*stale, *harmless), b"")
        done = pushed(ready, "--push", "me/model")
        assert done.returncode == 2
        assert f"holds files of another checkpoint ({', '.join(stale)}): delete them there" in done.stderr
        assert hub.files == dict.fromkeys((*stale, *harmless), b"")
        hub.files = dict.fromkeys(harmless, b"")
        assert pushed(ready, "--push", "me/model").returncode == 0


def test_a_further_template_is_sent_in_its_folder(pushed: Sdft, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    run = make_run(tmp_path / "run", base)
    run_merge(read_run(run), run / "merged")
    with serving(FakeHub()) as hub:
        done = pushed(run, "--push", "me/model")
        assert done.returncode == 0, done.stderr
        assert hub.files["additional_chat_templates/rag.jinja"] == b"{{ 1 }}"
        (run / "merged" / "additional_chat_templates" / "rag.jinja").write_text("{{ 2 }}")
        done = pushed(run, "--push", "me/model")
        assert done.returncode == 4
        assert "additional_chat_templates/rag.jinja was changed" in done.stderr


def test_only_binaries_of_the_base_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "speech.spm").write_bytes(b"\xff\x00")
    (tmp_path / "notes.txt").write_text("words")
    names = ["notes.txt", "speech.spm"]
    assert check_no_secrets(tmp_path, names, dict.fromkeys(names, "identical")) == ["notes.txt"]
    with pytest.raises(VerificationError, match=r"speech\.spm cannot be searched for secrets"):
        check_no_secrets(tmp_path, names, {"speech.spm": "differs"})


def test_a_deleted_card_comes_back_with_its_licence_and_an_edited_one_stays(
    ready: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    shutil.rmtree(ready / "merged")
    run, card = read_run(ready), ready / "merged" / "README.md"
    run_merge(run, ready / "merged", base=str(base))
    written = card.read_text()
    assert "license: apache-2.0" in written
    card.unlink()
    write_model_card(run, ready / "merged")
    assert card.read_text() == written

    found = {"adapter": {"sha256": sha256_of(ready / "adapter" / "adapter_model.safetensors")}}
    name_in_card(ready / "merged", "me/model")
    assert is_own_card(ready / "merged")
    card.write_text(f"{card.read_text()}\nMy own words.\n")
    edited = card.read_text()
    assert evaluated_card(run, found) is None
    assert "is not as sdft wrote it, so it was left alone" in capsys.readouterr().err
    assert card.read_text() == edited
    name_in_card(ready / "merged", "me/other")
    assert card.read_text() == edited.replace("me/model", "me/other")
    assert not is_own_card(ready / "merged")


SECRET = "ghp_" + "aZ3kQ9xL2mN8vB4cR7tY" + "1wE5uI0oP6sDq7Xk"  # as long as a real one


def certified_again(merged: Path) -> None:
    """The certificate's hashes made true again, so that only the search is left to refuse."""
    document = json.loads((merged / "merge-certificate.json").read_text())
    write_json(merged / "merge-certificate.json", {**document, "sha256": file_hashes(merged)})


def certificate_with(merged: Path, **values: Any) -> None:
    document = json.loads((merged / "merge-certificate.json").read_text())
    write_json(merged / "merge-certificate.json", {**document, **values})


def with_secret(merged: Path, name: str) -> None:
    path = merged / name
    text = path.read_text()
    path.write_text(text.rstrip()[:-1] + f', "api": "{SECRET}"}}' if name.endswith(".json") else f"{text}\n{SECRET}\n")
    certified_again(merged)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a secret in the card": (lambda m: with_secret(m, "README.md"), "README.md gives something away"),
    "one in the config": (lambda m: with_secret(m, "config.json"), "config.json gives something away"),
    "one in the template": (
        lambda m: with_secret(m, "chat_template.jinja"),
        "chat_template.jinja gives something away",
    ),
    "one beside the vocabulary": (lambda m: with_secret(m, "tokenizer.json"), "tokenizer.json gives something away"),
    "one in the certificate": (lambda m: certificate_with(m, note=SECRET), "merge-certificate.json gives something"),
    "a file that is no text": (
        lambda m: ((m / "chat_template.jinja").write_bytes(b"\xff\xfe"), certified_again(m)),
        "chat_template.jinja cannot be searched for secrets (UnicodeDecodeError)",
    ),
    "a token table that is not the base's": (
        lambda m: ((m / "vocab.json").write_bytes(b"\xff"), certified_again(m)),
        "vocab.json cannot be searched",
    ),
    "a mark of failure": (lambda m: (m / "FAILED.txt").write_text("x"), "holds no certificate that passed"),
    "no certificate": (lambda m: (m / "merge-certificate.json").unlink(), "holds no certificate that passed"),
    "a failed certificate": (lambda m: certificate_with(m, passed=False), "holds no certificate that passed"),
    "weights that were changed": (
        lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-1] + b"x"),
        "model.safetensors was changed",
    ),
    "a file of the user's": (lambda m: (m / "notes.txt").write_text("x"), "notes.txt is no file of the checkpoint"),
    "another adapter": (lambda m: certificate_with(m, adapter={"name": "adapter", "sha256": "0"}), "not from"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_nothing_is_sent_after(ready: Path, refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def no_hub() -> None:
        raise AssertionError("the Hub was about to be called")

    monkeypatch.setattr(huggingface_hub, "HfApi", no_hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AssertionError, match="about to be called"):
        push(read_run(ready), ready / "merged", "me/model", False)  # as it is, it would be sent
    change, why = REFUSALS[refusal]
    change(ready / "merged")
    with pytest.raises(VerificationError) as caught:
        push(read_run(ready), ready / "merged", "me/model", False)
    assert why in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_card_of_the_users_that_is_no_utf_8_is_refused(ready: Path) -> None:
    card = ready / "merged" / "README.md"
    card.write_bytes(card.read_bytes() + "Für mich\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"^Model card .* \(it is no UTF-8 text\): save it as UTF-8"):
        push(read_run(ready), ready / "merged", "me/model", False)


def test_a_scanner_that_fails_stops_the_push(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sdft_cli.redaction.redactor as redact

    def broken(self: object, data: bytes) -> None:
        raise RuntimeError("scanner")

    monkeypatch.setattr(redact._scanner().__class__, "scan", broken, raising=True)
    with pytest.raises(VerificationError, match=r"cannot be searched for secrets \(RuntimeError\)"):
        check_no_secrets(ready / "merged", ["config.json"], {})


@pytest.mark.parametrize("refusal", ["a secret in the card", "weights that were changed"])
def test_the_command_refuses_with_its_exit_code(pushed: Sdft, ready: Path, refusal: str) -> None:
    change, why = REFUSALS[refusal]
    change(ready / "merged")
    with serving(FakeHub()) as hub:
        done = pushed(ready, "--push", "me/model")
    assert done.returncode == 4, done.stderr
    assert why in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert hub.calls == []


def test_a_fresh_merge_that_fails_is_not_sent(pushed: Sdft, ready: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = ready / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].mul_(1e-9)
    save_file(tensors, file, metadata={"format": "pt"})
    with serving(FakeHub()) as hub:
        assert pushed(ready, "--push", "me/model").returncode == 4  # the one there is of the old adapter
        done = pushed(ready, "--push", "me/model", "--bf16", "--overwrite")
        assert done.returncode == 4
        assert "its update vanishes" in done.stderr
        assert hub.calls == []


def test_no_token_no_network_and_a_hub_that_refuses_are_one_sentence(sdft: Sdft, pushed: Sdft, ready: Path) -> None:
    with serving(FakeHub(refuse=403)) as hub:
        done = pushed(ready, "--push", "me/model", token="")
        assert (done.returncode, hub.calls) == (1, [])
        assert "sdft: There is no Hub token on this machine" in done.stderr
        done = pushed(ready, "--push", "me/model")
        assert done.returncode == 1
        assert "sdft: The Hub refused me/model (HTTP 403): check" in done.stderr
    done = pushed(ready, "--push", "me/model")  # nobody listens there any more
    assert done.returncode == 1
    assert "sdft: The Hub could not be reached (ConnectError): check the network" in done.stderr
    done = sdft("merge", ready, "--push", "me/model", HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "sdft: The Hub could not be reached (OfflineModeIsEnabled)" in done.stderr


def test_options_that_do_not_fit_are_refused_before_anything(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from sdft_cli.cli.main import app

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cases: list[tuple[tuple[str, ...], int, str]] = [
        ((), 2, "add --bf16, or --dtype float32"),
        (("--public", "--bf16"), 2, "add --push REPO"),
        (("--push", "model"), 2, "give owner/name"),
        (("--push", "me/model.git"), 2, "give owner/name"),
        (("--bf16", "--prompts", "9"), 2, "should be less than or equal to 8"),
        (("--push", "me/model", "--base", "owner/other"), 4, "its base is tiny-llama (folder), not owner/other"),
        (("--push", "me/model", "--bf16", "--dtype", "float32"), 2, "not both"),
        (("--gguf", "x.gguf"), 2, "give both"),
        (("--gguf", "x.gguf", "--llama-cpp", "."), 2, "holds no convert_hf_to_gguf.py"),
        (("--push", "me/model", "--dtype", "float32"), 4, "its weights are bfloat16, not float32"),
    ]
    inside = ready / "merged" / "model.gguf"
    converter = ready.parent / "convert_hf_to_gguf.py"
    converter.touch()
    gguf = ("--gguf", str(inside), "--llama-cpp", str(ready.parent))
    cases.append(((*gguf, "--bf16"), 2, f"{inside} would be a file of the checkpoint"))
    for arguments, code, why in cases:
        done = CliRunner().invoke(app, ["merge", str(ready), *arguments])
        assert (done.exit_code, why in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "me",
        "me/",
        "/model",
        "a/b/c",
        "../x",
        "me/mo del",
        "me/x\n",
        "https://hub/me/x",
        "a/b..c",
        "me/-x",
        "me/x.",
        "me/x.git",
        "me/" + 97 * "x",
    ],
)
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(UsageError, match="give owner/name"):
        check_repo_name(name)
    check_repo_name("me/Qwen3.5-9B_sdft")


def test_the_calls_fit_the_installed_library() -> None:
    from huggingface_hub import HfApi

    create, upload = inspect.signature(HfApi.create_repo), inspect.signature(HfApi.upload_folder)
    create.bind(None, "me/model", repo_type="model", private=True, exist_ok=True)
    upload.bind(None, repo_id="me/model", repo_type="model", folder_path="x", allow_patterns=["a"], commit_message="m")
    inspect.signature(HfApi.model_info).bind(None, "me/model")
