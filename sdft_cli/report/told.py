"""What a reader of a dataset must be told, in sentences: what the records lack, and why most turns are no records.

The same sentences stand on the terminal, in the data card and on the page. Manifests of older versions lack the facts;
then nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdft_cli.records.reasons import advice_of, meaning_of
from sdft_cli.report.visible import printable

NAMED = 5
"""So many names stand in a sentence; the manifest has more."""
Quote = Callable[[str], str]


def _listed(names: list[str], more: int) -> str:
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def coverage_sentence(manifest: Mapping[str, Any]) -> str | None:
    """Say how many tokens of its prompts the model saw that the records do not hold, by the provider's counts."""
    found = manifest.get("coverage")
    if not found:
        return None
    counted = f"by the provider's token counts, which {found['turns']:,} turn(s) state"
    if found["median_unseen"] <= 0:
        return f"These records hold all that the model saw in a median turn, {counted}."
    return (
        f"The model saw a median of {found['median_unseen']:,} more tokens a turn than these records hold (system "
        f"prompt, tools and memory files that this version does not record), {counted}."
    )


def gaps_sentence(manifest: Mapping[str, Any], quote: Quote = printable) -> str | None:
    """Name the turns that are far from what their session usually lacks."""
    found, notes = manifest.get("coverage"), manifest["funnel"].get("notes", {})
    count = notes.get("context_gaps", 0)
    if not found or not count:
        return None
    gaps = found["gaps"][:NAMED]
    named = [
        f"{abs(tokens):,} {'more' if tokens > 0 else 'fewer'} in {turns:,} turn(s) from {quote(name)} on"
        for name, tokens, turns in gaps
    ]
    others = count - sum(turns for _, _, turns in gaps)
    rest = f", and {others:,} turn(s) more" if others > 0 else ""
    return (
        f"In {count:,} turn(s) what the model saw and what the records hold differ by far more than at the session's "
        f"start. Tokens that the model saw: {', '.join(named)}{rest}."
    )


def system_sentence(manifest: Mapping[str, Any]) -> str | None:
    """Say how long the system prompts are, and what dropping them would keep."""
    found = manifest.get("system_prompt")
    if not found:
        return None
    begin = (
        f"{found['sessions']:,} session(s) begin with a system prompt, of a median of {found['median_tokens']:,} tokens"
    )
    if found["dropped"]:
        return f"{begin}: it was dropped (--system-prompt none)."
    if not found["more_without"]:  # no cap was the reason of anything
        return f"{begin}."
    return f"{begin}; --system-prompt none would keep {found['more_without']:,} more record(s) under the caps."


def unknown_sentence(manifest: Mapping[str, Any], quote: Quote = printable) -> str | None:
    """Name what the reader was not tested with: versions, types of lines and of attachments."""
    found = manifest.get("unknown")
    if not found or not found["kinds"]:
        return None
    named = [f"{quote(name)} ({count:,})" for name, count in found["named"][:NAMED]]
    return (
        "The reader was not tested with all that the files hold, and the records may lack what the model saw there: "
        f"{_listed(named, found['kinds'] - len(named))}."
    )


def refusals_sentence(manifest: Mapping[str, Any], quote: Quote = printable) -> str | None:
    """Say in the chat template's own words why it takes some turns not."""
    found = manifest.get("refusals")
    if not found:
        return None
    named = [f"{quote(text)} ({count:,} turn(s))" for text, count in found]
    return f"The chat template does not take every turn: {'; '.join(named)}"


def template_sentence(manifest: Mapping[str, Any]) -> str | None:
    """Say which chat template and which date all later stages use, where it is not just the model's own."""
    other, date = manifest.get("chat_template"), manifest.get("template_date")
    found = []
    if other or date:
        name = f"{other['name']}, not the model's own" if other else "the model's own"
        told = f"; asked for the date, it is told {date}" if date else ""
        found.append(f"The chat template of this dataset and of all later stages is {name}{told}.")
    if not date and manifest["config"].get("template_date"):
        found.append("The chat template does not ask for the date: --template-date changes nothing.")
    return " ".join(found) or None


def split_sentence(manifest: Mapping[str, Any]) -> str | None:
    """Say how many turns with parallel calls were taken apart."""
    count = manifest["funnel"].get("notes", {}).get("parallel_calls_split", 0)
    return f"{count:,} turn(s) with parallel calls became consecutive turns, each with its result." if count else None


def dominant_sentence(funnel: Mapping[str, Any]) -> str | None:
    """Name the reason that rejects more than half of all turns, and what to do about it."""
    reason, count = max(funnel["rejected"].items(), key=lambda item: item[1], default=("", 0))
    if 2 * count <= funnel["turns"]:
        return None
    meaning = meaning_of(reason)
    shown = f"{reason} ({meaning})" if meaning else reason
    return f"Most turns ({count:,} of {funnel['turns']:,}) were rejected as {shown}: {advice_of(reason)}."


def sentences(manifest: Mapping[str, Any], quote: Quote = printable) -> list[str]:
    """Return all that must be told of a dataset; `quote` writes a name that comes from a file."""
    found = (
        coverage_sentence(manifest),
        gaps_sentence(manifest, quote),
        system_sentence(manifest),
        unknown_sentence(manifest, quote),
        template_sentence(manifest),
        split_sentence(manifest),
        refusals_sentence(manifest, quote),
        dominant_sentence(manifest["funnel"]),
    )
    return [sentence for sentence in found if sentence]
