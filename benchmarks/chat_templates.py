"""What chat templates say, TRL's and our own, as a table: `python -m benchmarks.chat_templates` prints it.

Part of `python -m benchmarks.families --out docs/models.md`. The tokenizer is SmolLM2's, with the control tokens that a
template names.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sdft_cli.engine.models.names import resolve_model
from sdft_cli.errors import SdftError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.template import chat_templates, load_chat_template
from sdft_cli.prompts.unsaid import ANSWERS, PHRASES
from tests.prompts.trl_templates import prompts_of

HEAD = """## Chat templates

What each template of TRL {version} and of `templates/chat/` writes of a conversation with tools. Turns that have what a
template drops are rejected as `template_loses`; what it refuses by an error of its own, as `template_error`.
"""
COLUMNS = ["template", "turns end with", "calls are read as", "drops", "refuses", "notes"]


def texts() -> dict[str, str]:
    """Return the templates by name: TRL's but for its variants for training, then our own."""
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    paths = sorted(path for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))
    own = {f"{name} (ours)": load_chat_template(name) for name in chat_templates()}
    return {path.stem: path.read_text(encoding="utf-8") for path in paths} | own


def refused(prompts: ChatPrompts) -> str:
    """Return the kinds of turns that the template does not write, each with its reason."""
    why: dict[str, list[str]] = {}
    for part, (message, _) in ANSWERS.items():
        try:
            prompts.turn(message)
        except SdftError as error:
            text = str(error).removeprefix("The chat template refuses this conversation: ").removesuffix(".")
            why.setdefault(text, []).append(PHRASES[part])
    return "; ".join(f"{', '.join(parts)} ({text})" for text, parts in why.items())


def row(name: str, prompts: ChatPrompts) -> list[str]:
    """Return a line of the table."""
    ends = prompts.tokenizer.convert_ids_to_tokens(list(prompts.turn_end_ids))
    dropped = prompts.unsaid.prompt | prompts.unsaid.reference
    notes = ["asks for the date"] * bool(prompts.template.date) + ["users' messages are joined"] * prompts.joins_users
    return [
        name,
        ", ".join(f"`{end}`" for end in ends),
        prompts.syntax.syntax.name if prompts.syntax.syntax else "",
        ", ".join(phrase for part, phrase in PHRASES.items() if part in dropped),
        refused(prompts),
        ", ".join(notes),
    ]


def page() -> str:
    """Return the section of docs/models.md."""
    import trl

    model = Path(resolve_model("smollm2-135m"))
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [row(name, prompts_of(model, text)) for name, text in texts().items()]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([HEAD.format(version=trl.__version__), *table]) + "\n"


if __name__ == "__main__":
    print(page())
