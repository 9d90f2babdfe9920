"""What a model answered, taken apart; as lines for a terminal and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sdft_cli.notices import visible
from sdft_cli.prompts.syntaxes.turns import UNTERMINATED, ParsedCall, ParsedTurn


@dataclass(frozen=True)
class Answer:
    """An answer of one model.

    Attributes:
        model: `base`, `tuned` or `merged` of a run, `model` where it is alone.
        text: as the model wrote it, without the token that ended it.
        turn: the same, taken apart in the model's own syntax of calls.
        finished: the model ended it; else the cap did.
        prompt_tokens, tokens: of the prompt and of the answer.
    """

    model: str
    text: str
    turn: ParsedTurn
    finished: bool
    prompt_tokens: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {
            "model": self.model,
            "text": self.text,
            "content": self.turn.content,
            "calls": [{"name": call.name, "arguments": call.arguments} for call in self.turn.calls],
            "broken_calls": list(self.turn.errors),
            "finished": self.finished,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
        }

    def remarks(self) -> list[str]:
        """Return what stands below the text: its calls, what is wrong with others, and whether it was cut off."""
        found = [f"call: {shown(call)}" for call in self.turn.calls]
        found += [_broken(error, self.turn.begun) for error in self.turn.errors]
        if not self.finished:
            found.append(f"(cut off at {self.tokens} tokens: --max-new-tokens)")
        elif not self.text.strip():
            found.append("(an empty answer)")
        return found


def shown(call: ParsedCall) -> str:
    """Return a call on one line, harmless for a terminal."""
    return visible(f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}").replace("\n", "\\n")


def _broken(error: str, begun: str | None) -> str:
    named = f" of {visible(begun)}" if begun and error == UNTERMINATED else ""
    return f"call{named} that cannot be read: {visible(error)}"
