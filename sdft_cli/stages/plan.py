"""A dataset and a configuration -> what the run will need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.config import TrainConfig
    from sdft_cli.engine.plan.model_shape import Shape
    from sdft_cli.engine.plan.several import Cards
    from sdft_cli.records import Dataset, RecordRow

UTILISATION = 0.75
"""Share of a card's peak arithmetic that large products reach, if nothing else is said."""
NETWORK = 25.0
"""GB/s of a machine's network, if nothing else is said."""


def make_plan(
    config: TrainConfig,
    data: Dataset,
    gpu: str | None = None,
    rollout_tokens: int | None = None,
    utilisation: float = UTILISATION,
    fused: bool | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    network: float = NETWORK,
) -> dict[str, Any]:
    """Return the plan of a training run, with what each cap loses; nothing is loaded or run.

    Args:
        config: of the run.
        data: its dataset.
        gpu: a card by name or size; None: this machine's.
        rollout_tokens: length of a rollout for hours; None: the mean of the experts' turns.
        utilisation: share of the card's peak arithmetic that large products reach.
        fused: whether linear attention has fused kernels; None: what is installed here, or with `gpu`, yes.
        gpus, nodes: how many cards like this one on how many machines; None: nothing is said of several.
        network: GB/s of each machine's network.

    Raises:
        UsageError: the model is of a kind that the plan does not know, or the card is unknown.
        DataError: no training record is within the caps.
    """
    from sdft_cli.engine.plan.assumed import assume
    from sdft_cli.engine.plan.cards import find_gpu, machine_gpu
    from sdft_cli.engine.plan.model_shape import possible_sharing
    from sdft_cli.engine.plan.plan import choose_sharing, plan_of
    from sdft_cli.report.statistics import cap_losses

    rows = rows_within(config, data)
    card = find_gpu(gpu) if gpu else machine_gpu()
    shape, model_type = _checked_shape(config, rows)
    assumed = assume(config, shape, model_type, card, gpu is not None, fused)
    possible = possible_sharing(shape, config, assumed.backend.attends_itself(model_type))
    sharing = choose_sharing(possible, rows, shape, config, card.usable if card else None, assumed.engine.fused)
    heldout = [r.row for r in data.validation]
    document = plan_of(rows, shape, config, sharing, assumed, card, rollout_tokens, utilisation, heldout)
    counted = data.manifest["config"]["model"]
    if counted != config.model:
        document["assumptions"].append(f"lengths were counted with the tokenizer of {counted}")
    caps = {
        "max_prompt_tokens": config.max_prompt_tokens,
        "max_rollout_tokens": config.rollout.max_new_tokens,
        "max_seq_tokens": config.max_seq_tokens,
    }
    document["caps"] = [vars(loss) for loss in cap_losses(data, caps)]
    if gpus is not None:
        from sdft_cli.engine.plan.several import Cards

        sizes = shape, model_type, document["rollout_tokens"], utilisation
        cards = Cards(gpus, nodes, card, network)
        document["gpus"] = _several(config, rows, heldout, sizes, cards, gpu is not None, fused)
    return document


def _several(
    config: TrainConfig,
    rows: Sequence[RecordRow],
    heldout: Sequence[RecordRow],
    sizes: tuple[Shape, str, int, float],
    cards: Cards,
    elsewhere: bool,
    fused: bool | None,
) -> dict[str, Any]:
    """Return the plan on several cards, which run the transformers backend; `sizes` as `engine/plan/several.py` says.

    Raises:
        UsageError: several processes refuse a setting.
    """
    from sdft_cli.config import with_settings
    from sdft_cli.engine.plan.assumed import assume
    from sdft_cli.engine.plan.model_shape import possible_sharing
    from sdft_cli.engine.plan.several import Run, check_several, several

    check_several(config)
    shape, model_type, rollout, utilisation = sizes
    asked = with_settings(config, {"backend": "transformers"})
    assumed = assume(asked, shape, model_type, cards.card, elsewhere, fused)
    weights = "merged" if assumed.engine.merged else "adapter"
    config = with_settings(asked, {"rollout.weights": weights})
    possible = possible_sharing(shape, config, assumed.backend.attends_itself(model_type))
    return several(Run(rows, heldout, shape, config, assumed.engine, rollout, utilisation), possible, cards)


def rows_within(config: TrainConfig, data: Dataset) -> list[RecordRow]:
    """Return the training records that training takes; raises `DataError` if there is none."""
    from sdft_cli.errors import DataError

    rows = [r.row for r in data.train if r.row.teacher_prompt_tokens <= config.max_prompt_tokens]
    if not rows:
        raise DataError(
            f"No training record has a teacher prompt within {config.max_prompt_tokens} tokens: prepare more sessions, "
            "or raise max_prompt_tokens."
        )
    return rows


def _checked_shape(config: TrainConfig, rows: Sequence[RecordRow]) -> tuple[Shape, str]:
    """Return the shape of the model and its type, after refusing what `sdft train` would refuse before loading it."""
    from sdft_cli.engine.models.backend_transformers import empty_model
    from sdft_cli.engine.models.disk_names import check_adapter
    from sdft_cli.engine.models.limits import check_limits
    from sdft_cli.engine.models.load import config_of
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.engine.models.targets import target_names, targets_told
    from sdft_cli.engine.plan.model_shape import read_shape

    model = resolve_model(config.model, say)
    check_limits(model, config.revision, rows, config.rollout.max_new_tokens)
    empty = empty_model(config_of(model, config.revision))
    for sentence in targets_told(empty, config.lora.target_modules):
        say(sentence)
    check_adapter(model, config.revision, empty, target_names(empty, config.lora.target_modules))
    return read_shape(config, model), empty.config.model_type
