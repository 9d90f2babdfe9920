"""The frozen base of a model in shards: each process holds a part of every layer, and a layer is whole while it runs.

torch's `fully_shard` (FSDP2) cuts the layers, puts one together by an all-gather, and frees it again. An all-gather
needs all processes at once, while these run passes of their own: another number of them, of other lengths, some decode
longer than others, some have nothing to do. So they agree on each one:

    a process that needs a layer asks for it; one that waits for the others (`processes.py`) asks for none
    all learn which is the first layer, in the order of the model, that anybody asks for
    all gather that one; those that asked for it go on, the others free it and ask again

Whoever asks for a later layer waits for those behind it, so passes fall into step by themselves, and no process holds
more than its own layer and the one that is gathered. That goes on until all ask for none: the work between two points
at which processes wait for each other may be any, and the code that does it knows nothing of shards.

Embeddings, output head, last norm and adapter are whole on each process. Gathered weights are the very bits of the
files, so what is computed is what one process computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from sdft_cli.engine.parallel.sharding import Sharding
from sdft_cli.errors import UsageError


def blocks_of(model: Any, sharding: Sharding) -> list[nn.Module]:
    """Return the layers of a Hugging Face model that are sharded, in its order; none is inside another one.

    Raises:
        UsageError: the model names no layers, or accelerate's configuration others than it has.
    """
    known = set(getattr(model, "_no_split_modules", None) or ())
    names = known if sharding.blocks is None else set(sharding.blocks)
    if wrong := sorted(names - known):
        raise UsageError(
            f"{wrong[0]} is no layer of {model.config.model_type} ({', '.join(sorted(known)) or 'it names none'}): "
            "launch without --fsdp_transformer_layer_cls_to_wrap."
        )
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in names and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    if not found:
        raise UsageError(f"{model.config.model_type} names no layers that could be sharded: launch without FSDP.")
    return list(found.values())


def shard_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    device: torch.device,
    mesh: DeviceMesh,
    receive: Callable[[Tensor], object],
) -> None:
    """Cut the frozen weights of layers in shards, one layer after the other, and move all of a model to the device.

    Args:
        model: on the CPU; what is trainable stays as it is.
        blocks: its layers, each of which is whole on the device until it is cut.
        device: where shards and all the rest go.
        mesh: of one dimension, of all processes.
        receive: gets each frozen tensor, in an order that is the same on all processes, before it is cut.
    """
    for block in blocks:
        block.to(device)
        frozen = [p for p in block.parameters() if not p.requires_grad]
        for tensor in (*frozen, *block.buffers()):
            receive(tensor.data)
        whole = {p for p in block.parameters() if p.requires_grad or p.dim() == 0}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    inside = {id(tensor) for block in blocks for tensor in (*block.parameters(), *block.buffers())}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.to(device)
            if not parameter.requires_grad:
                receive(parameter.data)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in inside:
                module._buffers[name] = buffer.to(device)
                receive(module._buffers[name])  # type: ignore[arg-type]


class Layers:
    """The sharded layers of a model, as one of the processes sees them."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        least: Callable[[int], int],
        together: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Take what `shard_blocks` has cut, and fetch each layer whenever it is about to run, or a gradient comes back.

        Each layer is a root of its own for FSDP2, which would else gather layers ahead by itself.

        Args:
            blocks: see above.
            least: called by all processes, returns the least of the numbers that they give.
            together: around what all processes do at once (`Several`).
        """
        self._blocks, self._least, self._together = list(blocks), least, together
        self._marks = [next(_sharded(block)) for block in blocks]
        self.none = len(self._blocks)
        for place, block in enumerate(self._blocks):
            # In front of FSDP2's own hooks, which find the layer whole then.
            block.register_forward_pre_hook(partial(self._runs, place), prepend=True)
            block.register_forward_hook(partial(self._ran, place), prepend=True)

    @property
    def bytes(self) -> int:
        """How much memory the layers take when they are whole, all together."""
        sharded = (p for block in self._blocks for p in block.parameters() if isinstance(p, DTensor))
        return sum(p.numel() * p.element_size() for p in sharded)

    def __len__(self) -> int:
        return len(self._blocks)

    def serve(self) -> None:
        """Gather what the others need, until no process needs a layer."""
        while self._round(self.none) != self.none:
            pass

    def fetch(self, place: int) -> None:
        """Put a layer together, if it is not."""
        while not self._is_whole(place):
            self._round(place)

    def _round(self, wanted: int) -> int:
        """Have all processes gather one layer, the first that one of them wants; return its place."""
        place = self._least(wanted)
        if place == self.none:
            return place
        block: Any = self._blocks[place]
        keep = place == wanted or self._is_whole(place)
        with self._together():
            block.reshard()  # FSDP2 gathers no layer that is whole here, and the others wait for this part of it
            block.unshard()
        if not keep:
            block.reshard()
        return place

    def _is_whole(self, place: int) -> bool:
        owner, name = self._marks[place]
        return not isinstance(owner._parameters[name], DTensor)

    def _runs(self, place: int, block: nn.Module, inputs: Any) -> None:
        self.fetch(place)

    def _ran(self, place: int, block: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(partial(self._comes_back, place))

    def _comes_back(self, place: int, gradient: Tensor) -> None:
        self.fetch(place)


def _sharded(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the sharded parameters of a layer: the module that has each, and its name there."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                yield module, name
