"""Names in memory and names on disk: transformers renames, stacks and splits tensors while it loads a checkpoint.

Its own functions do the mapping, on a model without weights and the headers of the files, so it is what loading does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.models.backend_transformers import empty_model
from sdft_cli.engine.models.names import loaded_folder
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.engine.models.targets import hits
from sdft_cli.errors import DataError, UsageError
from sdft_cli.records.json_files import read_json

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Group:
    """Parameters of the model and the tensors on disk that hold them.

    `converter`: how transformers makes the ones of the others. Without it, one tensor is one parameter, as it is.
    `patterns` and `middle`: by name on disk, the converter's pattern for it and the name that the converter is given.
    """

    parameters: tuple[str, ...]
    disk: tuple[str, ...]
    converter: Any = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    middle: Mapping[str, str] = field(default_factory=dict)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model folder, from the headers of the files.

    Raises:
        DataError: the folder holds no safetensors weights, or one of its files is damaged.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    listed = read_json(index, "get the model again").get("weight_map") if index.is_file() else None
    names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else ["model.safetensors"]
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        try:
            with safe_open(folder / name, "pt") as file:
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder / name} is missing or damaged ({error}): get the model again.") from error
    return found


def unloaded(model: str | Path, revision: str | None = None, cls: Any = None) -> Any:
    """Return the model of a folder or Hub id without weights; only its config is read.

    Args:
        model: a folder or Hub id.
        revision: of a Hub id.
        cls: an auto class; left out, the one that loads it for training.
    """
    quiet_libraries()
    from transformers import AutoConfig

    return empty_model(AutoConfig.from_pretrained(str(model), revision=revision or "main"), cls)


class DiskNames:
    """Which tensors on disk hold which parameters of a model.

    `model` is without weights. `groups`: by parameter. `tied`: parameters that are another one's, which is loaded.
    """

    def __init__(self, folder: Path, model: Any = None) -> None:
        """Map the names of a model folder.

        Raises:
            DataError: as `stored_shapes`.
        """
        self.folder = folder
        self.model = unloaded(folder) if model is None else model
        self.shapes = stored_shapes(folder)
        self._own = self.model.state_dict()
        self._renamings, self._converters = _mapping(self.model)
        self.groups = _groups(self.model, self.shapes)
        pairs = getattr(self.model, "all_tied_weights_keys", None) or {}
        self.tied: dict[str, str] = {}
        for target, source in pairs.items():
            self.tied |= {target: source, source: target}

    def group(self, parameter: str) -> Group:
        """Return the group of a parameter; of a tied one that is not stored, that of the other.

        Raises:
            DataError: no tensor on disk holds it.
        """
        found = self.groups.get(parameter) or self.groups.get(self.tied.get(parameter, ""))
        if found is None:
            raise DataError(f"No tensor of {self.folder} becomes {parameter}: get the model again.")
        return found

    def at_run_time(self, name: str) -> str | None:
        """Return the model's name of a parameter that has this name in the model, or has it on disk; None: neither."""
        from transformers.core_model_loading import rename_source_key

        if name in self._own:
            return name
        found, pattern = rename_source_key(
            name, self._renamings, self._converters, self.model.base_model_prefix, self._own
        )
        return found if found in self._own and pattern is None else None

    def to_model(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a group's parameters, made of its tensors on disk, as loading makes them."""
        if group.converter is None:
            return {group.parameters[0]: tensors[group.disk[0]]}
        converter = deepcopy(group.converter)
        first = group.parameters[0]
        for name in group.disk:
            converter.add_tensor(first, name, group.patterns[name], tensors[name])
        return _realised(converter, first, self.model)

    def to_disk(self, group: Group, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a group's tensors on disk, made of its parameters, as saving makes them.

        Raises:
            DataError: saving would make other tensors than there are.
        """
        if group.converter is None:
            return {group.disk[0]: parameters[group.parameters[0]]}
        from transformers.core_model_loading import dot_natural_key

        reverse = group.converter.reverse_transform()
        first, collected = "", deepcopy(reverse)
        for name in sorted(group.parameters, key=dot_natural_key):
            renamed, pattern = reverse.rename_source_key(name)
            first = first or renamed
            collected.add_tensor(first, name, pattern, parameters[name])
        made = _realised(collected, first, self.model)
        found = {name: made.pop(group.middle[name], None) for name in group.disk}
        wrong = [n for n, t in found.items() if t is None or tuple(t.shape) != self.shapes[n]]
        if wrong or made:
            raise DataError(
                f"{group.parameters[0]} is made of {len(group.disk)} tensors on disk in a way that cannot be undone "
                f"({(wrong or sorted(made))[0]}): leave this module out of the adapter's targets."
            )
        return {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}

    def obstacle(self, parameter: str) -> str | None:
        """Say why an update of a parameter could not be written to disk, or None."""
        try:
            group = self.group(parameter)
            if group.converter is None:
                return None
            empty = {name: torch.empty(self.shapes[name], device="meta") for name in group.disk}
            self.to_disk(group, self.to_model(group, empty))
        except DataError as error:
            return str(error)
        except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
            kind = type(group.converter.operations[0]).__name__
            return f"transformers makes it by {kind}, which cannot be undone here ({type(error).__name__}: {error})"
        return None


def _realised(converter: Any, first: str, model: Any) -> dict[str, Tensor]:
    made = converter.convert(first, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _mapping(model: Any) -> tuple[list[Any], list[Any]]:
    """Return transformers' renamings and conversions for a model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    return renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)]


def _groups(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Group]:
    """Give every stored tensor the names that loading gives it; tensors that the model does not know are left out."""
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    renamings, converters = _mapping(model)
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix, own = model.base_model_prefix, model.state_dict()
    plain: dict[str, Group] = {}
    parts: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for disk in sorted(shapes, key=dot_natural_key):
        name, pattern = rename_source_key(disk, renamings, converters, prefix, own)
        if name not in own and disk in own:
            name, pattern = rename_source_key(disk, [], [], prefix, own)
        if name not in own:
            continue
        if pattern is None:
            plain[name] = Group((name,), (disk,))
        else:
            middle, _ = rename_source_key(disk, renamings, [], None, None)
            unprefixed, _ = rename_source_key(disk, renamings, converters, None, None)
            parts[name].append((disk, pattern, _like(middle, unprefixed, name)))
    return plain | _converted(model, parts, by_pattern, shapes)


def _like(middle: str, unprefixed: str, name: str) -> str:
    """Put the prefix that the model adds to a name, or takes off, on the name before its conversion too."""
    if name.endswith(unprefixed):
        return name[: len(name) - len(unprefixed)] + middle
    return middle.removeprefix(unprefixed[: len(unprefixed) - len(name)])


def _converted(
    model: Any,
    parts: Mapping[str, Sequence[tuple[str, str, str]]],
    by_pattern: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for first, rows in parts.items():
        converter = deepcopy(by_pattern[rows[0][1]])
        collecting = deepcopy(converter)
        for disk, pattern, _ in rows:
            collecting.add_tensor(first, disk, pattern, torch.empty(shapes[disk], device="meta"))
        try:
            names = tuple(_realised(collecting, first, model))
        except (RuntimeError, ValueError, KeyError):  # told by `obstacle` of whoever wants this parameter
            names = (first,)
        group = Group(
            names,
            tuple(disk for disk, _, _ in rows),
            converter,
            {disk: pattern for disk, pattern, _ in rows},
            {disk: middle for disk, _, middle in rows},
        )
        found |= dict.fromkeys(names, group)
    return found


def check_adapter(model: str, revision: str | None, empty: Any, targets: Sequence[str], loaded: bool = False) -> bool:
    """Refuse, before weights are loaded, targets whose update `sdft merge` could not write.

    Args:
        model: a folder or Hub id.
        revision: of a Hub id.
        empty: the model without weights.
        targets: names of modules, as `targets.target_names` gives them.
        loaded: the model was loaded, so its files must be there.

    Returns whether the names on disk could be looked at: False where the files are not on this machine yet.

    Raises:
        UsageError: names the target, and why.
        DataError: a file of the model is damaged, or after loading it holds no safetensors files.
    """
    folder = loaded_folder(model, revision)
    if is_quantised(empty.config):  # merged into its 16-bit form, whose names are looked at then
        return True
    if folder is None or not (loaded or _has_weights(folder)):
        return False
    check_mergeable(DiskNames(folder, empty), targets)
    return True


def is_quantised(config: Any) -> bool:
    """Say whether a transformers config is of weights that are quantised on disk."""
    return any(getattr(c, "quantization_config", None) for c in (config, config.get_text_config()))


def _has_weights(folder: Path) -> bool:
    """Say whether all files with weights are in a folder of the Hub's cache."""
    if not (folder / INDEX).is_file():
        return (folder / "model.safetensors").is_file()
    listed = read_json(folder / INDEX, "get the model again").get("weight_map")
    return isinstance(listed, dict) and all((folder / str(name)).is_file() for name in set(listed.values()))


def check_mergeable(names: DiskNames, targets: Sequence[str]) -> None:
    """Refuse, before training, targets whose update `sdft merge` could not write into the base's files.

    Raises:
        UsageError: names the first one, and why.
    """
    for module in hits(names.model, targets):
        for parameter, _ in names.model.get_submodule(module).named_parameters(module, recurse=False):
            why = names.obstacle(parameter) if parameter.endswith(".weight") else None
            if why:
                leaf = module.rsplit(".", 1)[-1]
                raise UsageError(
                    f"An adapter on {module} could be trained and not merged ({why.rstrip('.')}): leave {leaf} out of "
                    "lora.target_modules."
                )
