"""A step of decoding as a CUDA graph: captured once for each batch, replayed for each token.

A step of a 9B model is some thousands of kernels of a few microseconds, and launching each of them takes longer than
running it. A replayed graph launches them at once. It is captured anew for every batch, which takes as long as one step
without it: so no graph outlives the weights and buffers whose addresses it holds, and batch and width can be any.

The first steps of a batch run as they are, and count: they compile and tune kernels, and show whether the model waits
for the GPU anywhere, which a graph cannot hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sdft_cli.engine.passes.decode_steps import FixedStep, Runner
from sdft_cli.errors import WARNING

WARM = 2
"""Steps of a batch that run before the capture, and the last of which is watched."""

Capture = Callable[[Callable[[], Tensor]], Runner]


class Replay:
    """Runs a step: as it is at first, then as a graph, or on as it is if there cannot be one.

    `trouble` says why there is none, once that is known.
    """

    def __init__(self, step: FixedStep, capture: Capture, watched: Callable[[], Iterator[list[str]]]) -> None:
        """Take what captures a step, and a context that lists what it saw of waiting."""
        self.step, self.capture, self.watched = step, capture, contextmanager(watched)
        self.ran = 0
        self.replay: Runner | None = None
        self.trouble: str | None = None

    def __call__(self) -> Tensor:
        """Run the next step: (B, V) logits, which hold until the one after it."""
        if self.replay is None and self.trouble is None and self.ran == WARM:
            self._capture()
        if self.replay is not None:
            return self.replay()
        self.ran += 1
        return self._watched_step() if self.ran == WARM else self.step()

    def _watched_step(self) -> Tensor:
        before = self.step.addresses()
        with self.watched() as seen:
            logits = self.step()
        if self.step.addresses() != before:
            self._give_up("its cache is not written in place")
        elif seen:
            self._give_up(f"its forward pass waits for the GPU: {seen[0]}")
        return logits

    def _capture(self) -> None:
        try:
            self.replay = self.capture(self.step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            self._give_up(f"capture failed: {lines[0]}")

    def _give_up(self, trouble: str) -> None:
        """Say so, and let the rest of the run decode with `generate`."""
        backend = self.step.backend
        self.trouble, backend.decoder = trouble, "generate"
        kind = backend.base.config.model_type
        warnings.warn(
            f"{WARNING}steps of decoding are launched kernel by kernel from now on, which is slower, since a step of "
            f"{kind} cannot be a CUDA graph ({trouble})",
            RuntimeWarning,
            stacklevel=2,
        )


def runner_of(step: FixedStep) -> Runner:
    """Return what runs a step: as a graph on a GPU, as it is elsewhere."""
    return Replay(step, cuda_graph, waits_for_gpu) if step.token.is_cuda else step


def cuda_graph(step: Callable[[], Tensor]) -> Runner:
    """Capture a step, which does not run it; return what replays it.

    Raises:
        RuntimeError: it does something that a graph cannot hold; nothing of it has run.
    """
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    logits: list[Tensor] = []
    errors: list[BaseException] = []
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            try:
                logits.append(step())
            except BaseException as error:  # the capture has to end first; what it says then is less
                errors.append(error)
    except RuntimeError as error:
        errors.append(error)
        _after_failed_capture(before)
    if errors:
        raise errors[0]

    def replay() -> Tensor:
        graph.replay()
        return logits[0]

    return replay


def _after_failed_capture(stream: torch.cuda.Stream) -> None:
    """Take back the stream, and give the generator a state that is not in the middle of a capture."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[stream.device_index]
    generator.graphsafe_set_state(generator.clone_state())


def waits_for_gpu() -> Iterator[list[str]]:
    """For a `with`: afterwards the list has the places of calls that waited for the GPU."""
    seen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode(before)
        waits = [w for w in caught if "called a synchronizing" in str(w.message)]
        seen += [f"{Path(w.filename).name}, line {w.lineno}" for w in waits]
