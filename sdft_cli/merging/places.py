"""Where the parameters that an adapter changes stand in the base's files."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, equal

from sdft_cli.engine.models.disk_names import DiskNames, Group
from sdft_cli.errors import DataError, VerificationError
from sdft_cli.merging.adapter import Adapter


class Places:
    """The tensors on disk behind an adapter. `groups`: by name on disk, those that change, and what goes with them.

    Without `names` every parameter has its own name on disk.

    Raises:
        VerificationError: the base does not hold a parameter.
        DataError: a parameter shares its weight with another, which the adapter does not change in the same way.
    """

    def __init__(self, adapter: Adapter, names: DiskNames | None) -> None:
        self._names = names
        self.groups: dict[str, Group] = {}
        self.owners: dict[str, str] = {}
        for parameter in adapter.names:
            group = Group((parameter,), (parameter,)) if names is None else self._group(adapter, names, parameter)
            stored = parameter if parameter in group.parameters else group.parameters[0]
            self.owners[stored] = parameter
            self.groups |= dict.fromkeys(group.disk, group)

    def _group(self, adapter: Adapter, names: DiskNames, parameter: str) -> Group:
        if parameter in names.tied:
            _check_tied(adapter, parameter, names.tied[parameter])
        try:
            return names.group(parameter)
        except DataError as error:
            raise VerificationError(
                f"The base holds no tensor {parameter}, which the adapter changes: is this the base that the adapter "
                "was trained on?"
            ) from error

    def to_model(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of a group, made of its tensors on disk."""
        if self._names is None:
            return {group.parameters[0]: tensors[group.disk[0]]}
        return self._names.to_model(group, tensors)

    def to_disk(self, group: Group, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors on disk of a group, made of its parameters."""
        if self._names is None:
            return {group.disk[0]: parameters[group.parameters[0]]}
        return self._names.to_disk(group, parameters)


def _check_tied(adapter: Adapter, parameter: str, other: str) -> None:
    """Refuse a change of one of two parameters that are the same tensor, unless both change alike."""
    mine, theirs = adapter.updates[parameter], adapter.updates.get(other)
    rows = set(mine.keys) == {"rows"} and theirs is None  # peft changes the rows of both
    alike = theirs is not None and set(mine.keys) == set(theirs.keys) == {"start"}
    if alike and theirs is not None:
        alike = equal(adapter.tensor(mine, "start"), adapter.tensor(theirs, "start"))
    if not rows and not alike:
        raise DataError(
            f"The adapter changes {parameter}, which is one tensor with {other} in the base (tie_word_embeddings), and "
            "not both alike: train with ensure_weight_tying, or merge it with peft."
        )
