"""A LoRA adapter on disk: which parameters of the model it changes, and into what. What is not known is refused.

Read from its configuration and its tensors, as peft writes them: LoRA, rsLoRA, DoRA, rank and alpha patterns, LoRA on
embeddings and on stacked experts (`target_parameters`), and tensors that replace the base's own (`modules_to_save`,
biases, `trainable_token_indices`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdft_cli.engine.models.disk_names import DiskNames
from sdft_cli.errors import DataError, VerificationError

PREFIX = "base_model.model."
HANDLED = frozenset(
    [
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
        *("layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save", "peft_type"),
        *("peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules"),
        *("target_parameters", "task_type", "trainable_token_indices", "use_dora", "use_rslora"),
    ]
)
"""Keys of `adapter_config.json` that a merge honours, or that only training reads. Any other one that is set is a
feature that is not known."""
INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; the others train on a changed base."""
EXTRAS = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices"),
    "modules_to_save",
)
"""Features besides plain LoRA: an adapter with one of them is compared with what peft itself makes of it."""
_KINDS = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<ends>[AB])|"
    r"(?P<size>lora_magnitude_vector)(?:\.weight)?|token_adapter\.(?P<rows>trainable_tokens_delta))"
)


@dataclass(frozen=True)
class Update:
    """What happens to one parameter: the keys of the tensors in the adapter's file, by their role.

    Roles: `A` and `B` of LoRA, `size` of DoRA, `start` that stands in place of the base's own weight, `rows` that stand
    in place of some of its rows. `turned`: the weight is (in, out). `experts`: so many matrices are stacked in it.
    """

    parameter: str
    keys: Mapping[str, str]
    rank: int = 0
    scaling: float = 0.0
    turned: bool = False
    experts: int = 0
    indices: tuple[int, ...] = ()


class Adapter:
    """A LoRA adapter. `names`: the parameters that it changes, sorted. `plain`: all it does is add (alpha/r) B A.

    Raises:
        DataError: it is damaged, holds no tensors, or uses a feature that is not known; the sentence names it.
    """

    def __init__(self, folder: Path, names: DiskNames | None = None) -> None:
        """Read an adapter.

        Args:
            folder: with `adapter_config.json` and `adapter_model.safetensors`.
            names: the base; without it every module is taken for a linear layer.
        """
        self.folder = folder
        self.config = read_config(folder)
        try:
            self.rank: int = self.config["r"]
            self._scaling(folder.name)
            self._file = safe_open(folder / "adapter_model.safetensors", "pt")
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
            raise _damaged(folder, error) from error
        check_features(self.config)
        keys = sorted(self._file.keys())
        if not keys:
            raise DataError(f"{folder / 'adapter_model.safetensors'} holds no tensors: run `sdft train` again.")
        self._names = names
        self.updates = self._updates(keys)
        self.names = sorted(self.updates)
        self.plain = not any(self.config.get(key) for key in EXTRAS) and all(
            set(update.keys) == {"A", "B"} and not update.turned for update in self.updates.values()
        )

    @property
    def uses(self) -> list[str]:
        """The features that it uses besides plain LoRA, by their names in its configuration."""
        bias = self.config.get("bias") not in (None, "none")
        return [*(key for key in EXTRAS if self.config.get(key)), *(["bias"] if bias else [])]

    def _scaling(self, key: str) -> tuple[int, float]:
        """Return rank and scaling of a target, as the patterns say; the first pattern that fits counts."""
        rank = _by_pattern(self.config.get("rank_pattern"), key, self.config["r"])
        alpha = _by_pattern(self.config.get("alpha_pattern"), key, self.config["lora_alpha"])
        return int(rank), alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _updates(self, keys: list[str]) -> dict[str, Update]:
        modules: dict[str, dict[str, str]] = {}
        found: dict[str, Update] = {}
        for key in keys:
            hit = _KINDS.fullmatch(key.removeprefix(PREFIX))
            if hit is None:
                _add(found, self._replacement(key))
                continue
            role = hit["side"] or hit["ends"] or (hit["size"] and "size") or "rows"
            modules.setdefault(hit["module"], {})[role] = key
        for module, roles in modules.items():
            if "rows" in roles:
                _add(found, self._rows(module, roles["rows"]))
            elif {"A", "B"} <= roles.keys():
                _add(found, self._low_rank(module, roles))
            else:
                raise DataError(
                    f"The adapter holds tensors besides lora_A and lora_B pairs ({min(roles.values())}): merge it with "
                    "peft."
                )
        return found

    def _replacement(self, key: str) -> Update:
        """Read a tensor that replaces one of the base: `modules_to_save`, a trained bias, an embedding."""
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        known = self.config.get("modules_to_save") or self.config.get("bias") not in (None, "none")
        if "lora_" in name or ".modules_to_save." in name or not (known or ".base_layer." in key):
            raise DataError(f"The adapter holds {key}, a tensor besides lora_A and lora_B pairs: merge it with peft.")
        return Update(self._parameter(name), {"start": key})

    def _rows(self, module: str, key: str) -> Update:
        asked = self.config.get("trainable_token_indices")
        if isinstance(asked, dict):
            asked = next((rows for name, rows in asked.items() if re.fullmatch(rf"(.*\.)?{name}", module)), None)
        if not isinstance(asked, list):
            raise DataError(f"The adapter's trainable_token_indices do not name {module}: merge it with peft.")
        return Update(self._parameter(f"{module}.weight"), {"rows": key}, indices=tuple(asked))

    def _parameter(self, name: str) -> str:
        """Return the model's name of a parameter; older versions of transformers had others, as files on disk have.

        Raises:
            DataError: the model has no such parameter.
        """
        if self._names is None:
            return name
        found = self._names.at_run_time(name)
        if found is None:
            raise DataError(
                f"The model has no {name}, which the adapter changes: give --base the model that it was trained on, or "
                "merge it with the version of transformers that trained it."
            )
        return found

    def _low_rank(self, module: str, roles: Mapping[str, str]) -> Update:
        layer, stacked = module.replace(".base_layer", ""), self._stacked(module)
        if stacked:
            parameter, shape = stacked
            rank, scaling = self._scaling(parameter)
            if len(shape) not in (2, 3) or "size" in roles:
                raise DataError(f"The adapter changes {parameter} in a way that is not known: merge it with peft.")
            turned = len(shape) == 3 and self._is_transposed(parameter)
            return Update(parameter, roles, rank, scaling, turned, shape[0] if len(shape) == 3 else 0)
        parameter = self._parameter(f"{layer}.weight")
        turned = self._kind(parameter, roles)
        rank, scaling = self._scaling(parameter.removesuffix(".weight"))
        return Update(parameter, roles, rank, scaling, turned)

    def _kind(self, parameter: str, roles: Mapping[str, str]) -> bool:
        """Say whether the weight is (in, out), as that of an embedding or GPT-2's layers.

        Raises:
            DataError: the module is of a kind that LoRA changes in another way.
        """
        if self._names is None:
            return False
        layer = self._names.model.get_submodule(parameter.rpartition(".")[0])
        embedding = isinstance(layer, torch.nn.Embedding)
        conv1d = type(layer).__name__ == "Conv1D"
        plain = embedding or conv1d or isinstance(layer, torch.nn.Linear)
        if not plain or (embedding and "size" in roles) or embedding != roles["A"].endswith("lora_embedding_A"):
            what = f"{'DoRA' if 'size' in roles else 'LoRA'} on {type(layer).__name__}"
            raise DataError(f"The adapter uses {what}, which sdft merge does not know: merge it with peft.")
        return embedding or conv1d

    def _stacked(self, module: str) -> tuple[str, tuple[int, ...]] | None:
        """Return name and shape of the parameter that a target of `target_parameters` is, or None of a layer.

        peft wraps a module once for each of its parameters that are targeted, in the module's own order; so the
        parameter is told by how deep its wrapper lies.
        """
        wanted = self.config.get("target_parameters") or []
        layer = module.replace(".base_layer", "")
        if self._names is None or not wanted:
            return None
        try:
            owner = self._names.model.get_submodule(layer)
        except AttributeError:
            return None
        names = [f"{layer}.{name}" for name, _ in owner.named_parameters(recurse=False)]
        hit = [n for n in names if any(n == w or n.endswith(f".{w}") for w in wanted)]
        depth = module.count(".base_layer")
        if not hit:
            return None
        if depth >= len(hit):
            raise DataError(f"The adapter's target_parameters do not name that of {module}: merge it with peft.")
        parameter = hit[len(hit) - 1 - depth]
        return parameter, tuple(owner.get_parameter(parameter.rpartition(".")[2]).shape)

    def _is_transposed(self, parameter: str) -> bool:
        assert self._names is not None
        return bool(getattr(self._names.model.get_submodule(parameter.rpartition(".")[0]), "is_transposed", False))

    def tensor(self, update: Update, role: str) -> Tensor:
        """Return one of an update's tensors in fp32."""
        found: Tensor = self._file.get_tensor(update.keys[role]).float()
        return found

    def delta(self, name: str) -> Tensor:
        """Return (alpha/r) B A in fp32, shaped like the weight.

        Raises:
            DataError: A and B are not of the rank that the configuration says.
        """
        update = self.updates[name]
        a, b = self.tensor(update, "A"), self.tensor(update, "B")
        rows = update.rank * (update.experts or 1)
        if a.dim() != 2 or len(a) != rows or b.shape[1:] != (rows,):
            raise DataError(
                f"The adapter's A {tuple(a.shape)} and B {tuple(b.shape)} of {name} are not of its rank {update.rank}: "
                "run `sdft train` again."
            )
        if update.experts:  # experts of a parameter: A is (experts * r, in), B is (out, r * experts)
            per_a = a.reshape(update.experts, update.rank, -1)
            per_b = b.reshape(len(b), update.rank, update.experts).permute(2, 0, 1)
            stacked = torch.bmm(per_b, per_a).mul_(update.scaling)
            return stacked.transpose(1, 2).contiguous() if update.turned else stacked
        delta: Tensor = (b @ a).mul_(update.scaling)
        return delta.T.contiguous() if update.turned else delta

    def updated(self, name: str, base: Tensor) -> Tensor:
        """Return what a parameter becomes, in fp32.

        Args:
            name: one of `names`.
            base: what it is in the base, of any float dtype.

        Raises:
            VerificationError: it has another shape in the adapter.
            DataError: as `delta`.
        """
        update = self.updates[name]
        start = self.tensor(update, "start") if "start" in update.keys else base
        if "rows" in update.keys:
            found = start.float().clone()
            found[list(update.indices)] = self.tensor(update, "rows")
            return found
        total = self.delta(name) if "A" in update.keys else start.float()
        if total.shape != base.shape or start.shape != base.shape:
            raise VerificationError(
                f"{name} is {tuple(base.shape)} in the base and {tuple(total.shape)} in the adapter: is this the base "
                "that the adapter was trained on?"
            )
        if "A" not in update.keys:
            return total
        total.add_(start)  # in the delta's fp32
        if "size" in update.keys:
            total = _resized(total, self.tensor(update, "size"), update.turned)
        return total


def _resized(total: Tensor, size: Tensor, turned: bool) -> Tensor:
    """Give the rows that make each output of a weight their trained length (DoRA)."""
    length = torch.linalg.vector_norm(total, dim=0 if turned else 1)
    factor = size.reshape(-1) / length
    return total.mul_(factor if turned else factor[:, None])


def _add(found: dict[str, Update], update: Update) -> None:
    """Add an update; an embedding that is saved whole and adapted too has both."""
    before = found.get(update.parameter)
    if before is not None:
        keys = {**before.keys, **update.keys}
        one = update if "A" in update.keys else before
        if len(keys) != len(before.keys) + len(update.keys) or "start" not in keys:
            raise DataError(f"The adapter changes {update.parameter} twice: merge it with peft.")
        update = Update(one.parameter, keys, one.rank, one.scaling, one.turned, one.experts, one.indices)
    found[update.parameter] = update


def _by_pattern(patterns: Mapping[str, Any] | None, key: str, otherwise: Any) -> Any:
    return next((v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", key)), otherwise)


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder} holds no whole adapter ({type(error).__name__}: {error}): run `sdft train` again.")


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        found = json.loads((folder / "adapter_config.json").read_bytes())
        if not isinstance(found, dict):
            raise TypeError("adapter_config.json is no JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error
    return found


def check_features(config: Mapping[str, Any]) -> None:
    """Refuse an adapter that does what a merge does not know.

    Raises:
        DataError: names the feature.
    """
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise DataError(f"The adapter is of the kind {kind}, which sdft merge does not know: merge it with peft.")
    init = config.get("init_lora_weights")
    if init not in INITS:
        raise DataError(
            f"The adapter was started by init_lora_weights={init}, which changes the base that it belongs to: save it "
            "with peft's path_initial_model_for_weight_conversion first, or merge it with peft."
        )
    unknown = sorted(key for key, value in config.items() if key not in HANDLED and value)
    if unknown:
        raise DataError(f"The adapter uses {unknown[0]}, which sdft merge does not know: merge it with peft.")
