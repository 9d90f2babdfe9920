"""Which executor a run takes, and the check that it is exact on the loaded model."""

from __future__ import annotations

from sdft_cli.engine.models.backend import Backend, Sharing
from sdft_cli.engine.passes.attention import use_tree_attention
from sdft_cli.engine.passes.sharing_check import SharingCheck, sharing_obstacle
from sdft_cli.engine.passes.start_check import check_decoding
from sdft_cli.engine.passes.tree_attention import choose_tree_attention
from sdft_cli.errors import WARNING, UsageError


def choose_sharing(backend: Backend, requested: str, room: str | None = None) -> str:
    """Set `backend.sharing` by the configured `prefix_sharing`, and return a sentence that says what it is.

    Then decoding is compared with scoring (`start_check.py`).

    Args:
        backend: loaded.
        requested: `auto`, `packed`, `depth_first` or `none`.
        room: why packed passes do not fit into memory (`packed_room`); None: they fit.

    Raises:
        UsageError: a kind was asked for by name and this model cannot be run so. One that runs and is further from
            turns alone than rounding explains is taken, with a warning.
        MachineError: the model decodes another distribution than it scores.
    """
    packs = requested in ("auto", "packed") and sharing_obstacle(backend, "packed") is None
    attention = choose_tree_attention(backend) if packs else None
    told = [_choose(backend, requested, room), attention if backend.sharing == "packed" else None]
    return "\n".join(text for text in (*told, check_decoding(backend)) if text)


def _choose(backend: Backend, requested: str, room: str | None) -> str:
    if requested == "none":
        backend.sharing = "none"
        return "Prefix sharing: none (as asked)"
    order: tuple[Sharing, ...] = ("depth_first", "packed") if room else ("packed", "depth_first")
    check = SharingCheck(backend)
    errors: list[str] = []
    for kind in (kind for kind in order if requested in ("auto", kind)):
        refusal = check.refusal(kind)
        if refusal is None or (refusal.distance and requested == kind):
            _take(backend, kind)
            if refusal:
                return f"{WARNING}prefix sharing is {kind} as asked, although {refusal.reason}"
            why = [check.summary(kind), *errors, *([room] if room and kind == "depth_first" else [])]
            return f"Prefix sharing: {kind} ({'; '.join(why)})"
        errors.append(f"not {kind}, since {refusal.reason}")
    backend.sharing = "none"
    if requested != "auto":
        raise UsageError(f"prefix_sharing is {requested}, but {errors[0].partition(', since ')[2]}: use auto or none.")
    return f"{WARNING}no prefix sharing, every turn pays for its whole prompt ({'; '.join(errors)})"


def _take(backend: Backend, kind: Sharing) -> None:
    backend.sharing = kind
    if kind == "packed":
        use_tree_attention(backend.base.config.get_text_config())
