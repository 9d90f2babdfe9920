"""Which models an evaluation compares, loaded one after the other: at most two are in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import open_for_eval
from sdft_cli.engine.passes.choose import choose_sharing
from sdft_cli.engine.passes.start_check import answering_weights, choose_decoding
from sdft_cli.engine.score.scoring import Role
from sdft_cli.errors import UsageError
from sdft_cli.evaluation.evaluation import Contender
from sdft_cli.run_folder import Run

Say = Callable[[str], None]


def _opened(
    model: str, run: Run | None, adapter: Path | None, sharing: str, say: Say, dtype: str | None = None
) -> Backend:
    config = run.config if run else None
    dtype = dtype or (config.dtype if config else None)
    backend = open_for_eval(model, dtype, run.revision if run else None, adapter)
    if backend.kernels:
        say(backend.kernels)
    say(choose_decoding(backend, config.rollout.graphs if config else "auto"))
    say(choose_sharing(backend, sharing))
    return backend


def single_model(model: str, sharing: str, say: Say) -> Iterator[Contender]:
    """Yield a model alone; it is its own teacher."""
    role = Role(_opened(model, None, None, sharing, say), "base", "base")
    yield Contender("model", "model", role, role)


def contenders_of(
    run: Run,
    model: str,
    merged: Path | None,
    controls: Sequence[Run],
    sharing: str,
    say: Say,
    exact: bool = False,
) -> Iterator[Contender]:
    """Yield base and tuned model of a run, then its merged checkpoint and the tuned models of other runs.

    Args:
        run: whose base is the teacher of all.
        model: the run's base, resolved.
        merged: folder of the run's merged checkpoint.
        controls: runs from the same base, such as one with `--objective sft`.
        sharing: `prefix_sharing`.
        exact: the merged checkpoint is in float32, and runs so; the others run in the run's dtype.

    Raises:
        UsageError: a control was trained from another base, or two models have one name; nothing was loaded yet.
    """
    for other in controls:
        own, theirs = (" ".join(filter(None, (one.config.model, one.revision))) for one in (run, other))
        if own != theirs:
            raise UsageError(
                f"{other.path} was trained from {theirs}, {run.path} from {own}: compare runs of one base."
            )
    names = control_names(controls)
    backend = _opened(model, run, run.adapter, sharing, say)
    base = Role(backend, "base", "base")
    yield Contender("base", "base", base, base)
    yield Contender("tuned", "tuned", Role(backend, "adapter", answering_weights(backend)), base)
    if merged:
        alone = _opened(str(merged), run, None, sharing, say, "float32" if exact else None)
        yield Contender("merged", "merged", Role(alone, "base", "base"), base)
        del alone
    del backend, base
    for name, other in zip(names, controls, strict=True):
        backend = _opened(model, run, other.adapter, sharing, say)  # in the run's dtype, as what it is compared with
        yield Contender(
            name, "control", Role(backend, "adapter", answering_weights(backend)), Role(backend, "base", "base")
        )
        del backend


def control_names(controls: Sequence[Run]) -> list[str]:
    """Return a name for each control: `sft` for the only one with that objective, else its folder's name.

    Raises:
        UsageError: two have the same name.
    """
    objectives = [run.config.objective for run in controls]
    names = [
        "sft" if kind == "sft" and objectives.count("sft") == 1 else run.path.resolve().name
        for run, kind in zip(controls, objectives, strict=True)
    ]
    taken = {"base", "tuned", "merged"}
    for name in names:
        if name in taken:
            raise UsageError(f"Two models would be called {name}: rename a run's folder.")
        taken.add(name)
    return names
