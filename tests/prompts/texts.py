"""The two prompts of a record as a person reads them."""

from __future__ import annotations

from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


def student_text(prompts: ChatPrompts, record: Record) -> str:
    return prompts.encoder.control.restore(prompts.student(record))


def teacher_text(prompts: ChatPrompts, record: Record) -> str:
    return prompts.encoder.control.restore(prompts.teacher_prompt(record))
