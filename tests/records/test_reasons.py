from __future__ import annotations

import pytest

from sdft_cli.records import Message, RecordRow, Session, ToolCall, ToolSchema
from sdft_cli.records.reasons import REASON_OF_CAP, REASONS, Candidate, first_reason, meaning_of, register

CAPS = {"max_prompt_tokens": 10, "max_rollout_tokens": 5, "max_seq_tokens": 12}
ASKED = Message("user", "a")


def reason_of(*messages: Message, lengths: tuple[int, int] | None = None, reasoning_only: bool = False) -> str | None:
    """Return the reason against the last message; without `lengths`, its tokens must not be counted."""
    session = Session("s", messages, (ToolSchema("f", "", "{}"),))
    turn = len(messages) - 1

    def row() -> RecordRow:
        assert lengths is not None, "tokens were counted of a turn that is rejected by what it says"
        return RecordRow("s/1", "s", turn, 1, *lengths, False)

    reason = first_reason(Candidate(session, turn, reasoning_only, CAPS, row))
    return reason and reason.key


def test_a_turn_is_rejected_for_the_first_reason_that_holds() -> None:
    assert reason_of(ASKED, Message("assistant", "b"), lengths=(8, 4)) is None
    assert reason_of(Message("assistant", " ", status="synthetic"), reasoning_only=True) == "synthetic"
    assert reason_of(Message("assistant", " "), reasoning_only=True) == "reasoning_only"
    assert reason_of(Message("assistant", " \n")) == "empty_reference"
    assert reason_of(Message("system", "x"), Message("assistant", "b")) == "no_context"
    assert reason_of(ASKED, Message("assistant", "", (ToolCall("1", "g", "{}"),))) == "unknown_tool"
    assert reason_of(ASKED, Message("assistant", "", (ToolCall("1", "f", "{}"),)), lengths=(1, 1)) is None


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ((10, 2), None),
        ((7, 5), None),
        ((11, 6), "over_prompt_cap"),
        ((7, 6), "over_rollout_cap"),
        ((8, 5), "over_sequence_cap"),
    ],
)
def test_a_cap_holds_what_is_as_long_as_it(lengths: tuple[int, int], reason: str | None) -> None:
    assert reason_of(ASKED, Message("assistant", "b"), lengths=lengths) == reason


def test_every_reason_has_a_key_of_its_own_and_a_meaning() -> None:
    assert all(key == reason.key and reason.meaning for key, reason in REASONS.items())
    assert [REASONS[key].cap for key in REASON_OF_CAP.values()] == list(REASON_OF_CAP)
    assert meaning_of("no_context") == "no user message before it"
    assert meaning_of("of another version") == ""
    with pytest.raises(ValueError, match="there is a reason no_context already"):
        register("no_context", "other")


def test_a_status_that_is_no_reason_is_refused() -> None:
    with pytest.raises(KeyError):
        reason_of(ASKED, Message("assistant", "b", status="word"))
