"""What a model is to sdft, and what would be refused with which sentence: each check in turn, nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sdft_cli.config import TrainConfig
from sdft_cli.engine.doctor.finding import Check, Finding, fail, run_checks
from sdft_cli.engine.models.backend_transformers import empty_model
from sdft_cli.engine.models.disk_names import check_adapter
from sdft_cli.engine.models.head import head_of
from sdft_cli.engine.models.limits import check_ends, check_words, positions_of
from sdft_cli.engine.models.load import choose_backend, config_of
from sdft_cli.engine.models.targets import target_names, targets_told
from sdft_cli.errors import SdftError
from sdft_cli.prompts.chat import ChatPrompts, prompts_for
from sdft_cli.prompts.unsaid import PHRASES, TemplateLoses


def examine_model(config: TrainConfig, model: str, chat_template: str | None) -> Iterator[Finding]:
    """Yield a finding for each check of a model, in the order in which a run makes them; no weights are loaded.

    Args:
        config: of the run that would train it.
        model: a folder or Hub id, resolved.
        chat_template: name or file of a chat template; None: the model's own.
    """
    try:
        model_config = config_of(model, config.revision)
        empty = empty_model(model_config)
    except SdftError as error:
        yield fail("model", str(error), error.exit_code)
        return
    text = model_config.get_text_config()
    yield Finding(
        "model", f"{model_config.model_type}, {type(empty).__name__}, {positions_of(text) or 'any'} positions"
    )
    checks: dict[str, Check] = {
        "backend": lambda: ": ".join(choose_backend(config.backend, model_config.model_type)),
        "head": lambda: _head(empty),
        "targets": lambda: "; ".join(targets_told(empty, config.lora.target_modules)),
        "merge": lambda: _merge(config, model, empty),  # needs targets, so it may repeat what "targets" says
        "prompts": lambda: _prompts(
            prompts_for(model, "expert_reference", chat_template, None, config.revision),
            model_config,
            _generation_config(model, config.revision),
        ),
    }
    yield from run_checks(checks)


def _head(empty: Any) -> str:
    head = head_of(empty)
    parts = [f"{head.words} words"]
    parts += [f"scale {head.scale:g}"] * (head.scale != 1)
    parts += [f"cap {head.softcap}"] * (head.softcap is not None) + ["bias"] * (head.bias is not None)
    return ", ".join(parts)


def _merge(config: TrainConfig, model: str, empty: Any) -> str:
    known = check_adapter(model, config.revision, empty, target_names(empty, config.lora.target_modules))
    return "each adapted tensor has its place in the files" if known else "not known: the files are not here yet"


def _generation_config(model: str, revision: str | None) -> Any:
    """Return what a model's generation_config.json says, or None: not every model has one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model, revision=revision or "main")
    except OSError:
        return None


def _prompts(prompts: ChatPrompts, model_config: Any, generation_config: Any) -> str:
    check_words(prompts, model_config.get_text_config())
    check_ends(prompts, model_config, generation_config)
    ends = ", ".join(prompts.tokenizer.convert_ids_to_tokens(list(prompts.turn_end_ids)))
    found, dropped = prompts.syntax, prompts.unsaid.prompt | prompts.unsaid.reference
    calls = found.syntax.name if found.syntax else f"not scored, since {found.reason}"
    lost = ", ".join(PHRASES[part] for part in PHRASES if part in dropped)
    if dropped & {"tools", "calls", "results"}:
        raise TemplateLoses(f"The chat template drops {lost}: name one that writes them with --chat-template.")
    return f"turns end with {ends}; calls: {calls}; the template drops: {lost or 'nothing'}"
