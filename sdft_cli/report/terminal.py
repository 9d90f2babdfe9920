"""Tables and progress on the terminal. Data goes to stdout, progress to stderr; untrusted text is never markup."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sdft_cli.notices import visible
from sdft_cli.records.reasons import meaning_of
from sdft_cli.report.bars import HistogramBars
from sdft_cli.report.merge_rows import merge_rows
from sdft_cli.report.statistics import CapChoice, Statistics, cells_of
from sdft_cli.report.templates import shortened

TOP_TOOLS = 15


class HarmlessConsole(Console):
    """A console that writes out what would steer a terminal, wherever in a text it comes from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def stdout() -> Console:
    """The console for results."""
    return HarmlessConsole(highlight=False)


def stderr() -> Console:
    """The console for progress and notices."""
    return HarmlessConsole(stderr=True, highlight=False)


def plain(value: Any) -> Text:
    """Return a text that is no markup and steers no terminal; a very long one is shortened."""
    return Text(visible(shortened(str(value))))


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str | None = None, texts: int = 1
) -> Table:
    """Build a table: the first `texts` columns hold text, the others numbers, right-aligned."""
    built = Table(title=plain(title), title_justify="left", caption=caption and plain(caption), caption_justify="left")
    for index, column in enumerate(columns):
        built.add_column(plain(column), justify="left" if index < texts else "right")
    for row in rows:
        built.add_row(*(plain(cell) for cell in row))
    return built


def funnel_table(funnel: Mapping[str, Any]) -> Table:
    """Show where every turn went."""
    rejected = sorted(funnel["rejected"].items(), key=lambda item: -item[1])
    sums = f"{funnel['turns']:,} = {funnel['kept']:,} + {sum(funnel['rejected'].values()):,}"
    rows: list[tuple[str, int, str]] = [
        ("sessions", funnel["sessions"], ""),
        ("assistant turns", funnel["turns"], ""),
        *((f"  - {reason}", count, meaning_of(reason)) for reason, count in rejected),
        ("records kept", funnel["kept"], sums),
        ("  train", funnel["train"], ""),
        ("  validation", funnel["validation"], f"{funnel['validation_sessions']} session(s), none of them in train"),
    ]
    built = table("Funnel", ["stage", "count", ""], [(stage, f"{count:,}", why) for stage, count, why in rows])
    built.columns[2].justify, built.columns[2].style = "left", "dim"
    return built


def cards_table(cards: Sequence[Mapping[str, Any]]) -> Table:
    """List data cards, a row each; `-` stands for a licence that is not known."""
    rows = [(card["dataset"], card["format"], card.get("license") or "-", card["description"]) for card in cards]
    built = table("Datasets with a card", ["dataset", "format", "license", "description"], rows, texts=4)
    for column in built.columns[:3]:
        column.no_wrap = True
    return built


def card_table(card: Mapping[str, Any]) -> Table:
    """Show one data card, a row per fact."""
    rows: list[tuple[str, Any]] = []
    for key, value in card.items():
        rows += [(f"{key}.{name}", fact) for name, fact in value.items()] if isinstance(value, dict) else [(key, value)]
    if "license" not in card:
        rows.append(("license", "not known here: read the dataset's own card"))
    built = table(str(card["dataset"]), ["fact", "value"], rows, texts=2)
    built.show_header, built.columns[0].no_wrap = False, True
    return built


def lengths_table(statistics: Statistics) -> Table:
    """Show how long the records are, against the caps, and how long the sessions are."""
    rows = [(x.what, *cells_of(x.kept), f"{x.cap:,}" if x.cap else "") for x in statistics.lengths]
    rows += [
        ("turns per session", *cells_of(statistics.session_turns), ""),
        ("tokens per session", *cells_of(statistics.session_tokens), ""),
    ]
    caption = "Tokens of the records; a session's tokens are those of its longest tokenised turn."
    return table("Lengths", ["", "min", "median", "p90", "max", "cap"], rows, caption)


def tools_table(statistics: Statistics, top: int = TOP_TOOLS) -> Table:
    """Show the tools that are called most."""
    rows = [(tool.name, f"{tool.calls:,}", f"{tool.in_records:,}") for tool in statistics.tools[:top]]
    rest = statistics.tools[top:]
    if rest:
        calls, in_records = sum(t.calls for t in rest), sum(t.in_records for t in rest)
        rows.append((f"{len(rest)} other tool(s)", f"{calls:,}", f"{in_records:,}"))
    return table("Tools called", ["tool", "calls", "in records"], rows)


def caps_tables(statistics: Statistics) -> Columns:
    """Show how many records each cap would keep at other values, side by side where they fit."""

    def one(name: str, choices: Sequence[CapChoice]) -> Table:
        rows = [(f"{c.value:,}" + (" (now)" if c.current else ""), f"{c.kept:,}") for c in choices]
        return table(f"--{name.replace('_', '-')}", ["if it were", "records"], rows)

    return Columns([one(name, choices) for name, choices in statistics.caps.items()])


def statistics_report(funnel: Mapping[str, Any], statistics: Statistics, full: bool = False) -> RenderableType:
    """Show a dataset: funnel and lengths, and the caps if one of them rejected a turn; `full` shows everything."""
    parts: list[RenderableType] = [funnel_table(funnel), lengths_table(statistics)]
    if full:
        parts += [HistogramBars(length) for length in statistics.lengths]
        parts += [tools_table(statistics)]
    if full or any(any(length.histogram.over_cap) for length in statistics.lengths):
        parts += [Text("Records kept if one cap were different, the other two as they are:"), caps_tables(statistics)]
    return Group(*parts)


_LIFT_ROWS = (
    ("likelihood, over no reference", "likelihood", "nats/token"),
    ("likelihood, over another's reference", "likelihood_over_control", "nats/token"),
    ("agreement, over no reference", "agreement", "share"),
)
_CONDUCT_ROWS = (
    ("expert's first token", "first_token", "probability"),
    ("copies the whole turn", "copied", "share"),
    ("answers with its block", "begins_with_block", "share"),
    ("lift over no reference", "likelihood", "nats/token"),
    ("lift over another's", "likelihood_over_control", "nats/token"),
)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def gate_table(result: Mapping[str, Any]) -> RenderableType:
    """Show the teacher-lift gate: the base model's metrics under each prompt, and the lifts with their intervals."""
    summary = result["summary"]
    shown = "another's, as if its own" if result["shuffled"] else "its own"
    metrics = table(
        f"Base model on {summary['records']} {result['split']} records of {summary['sessions']} sessions "
        f"({summary['tool_turns']} tool turns), by the reference in its prompt",
        ["", "none", shown, "another's"],
        [
            ("expert NLL per token (nats)", *(f"{summary[f'nll_{p}']:.3f}" for p in ("without", "with", "control"))),
            ("answers that agree", *(_share(summary[f"agreement_{p}"]) for p in ("without", "with")), "-"),
        ],
    )
    columns = ["mean", f"{result['settings']['confidence']:.0%} interval", "must be", "holds"]
    # Where no record's calls can be scored, or hardly any turn is of a kind, there is no such row.
    lifts = [
        (f"{label} ({unit})", *_criterion(result["lifts"][name]))
        for label, name, unit in _LIFT_ROWS
        if name in result["lifts"]
    ]
    conduct = [
        (f"{kind}: {label} ({unit})", *_criterion(result["conduct"][f"{kind}.{name}"]))
        for kind in ("tool", "prose")
        for label, name, unit in _CONDUCT_ROWS
        if f"{kind}.{name}" in result["conduct"]
    ]
    return Group(
        metrics,
        table("Lift of the reference, paired by record, resampled by session", ["lift", *columns], lifts),
        table("What the teacher does, by kind of turn", ["", *columns], conduct),
    )


def ranking_table(ranked: Sequence[Mapping[str, Any]]) -> Table:
    """Show wordings and divergences, the best first: what the teacher does, and where the objective points."""

    def conduct(one: Mapping[str, Any], name: str) -> str:
        found = [one["gate"]["conduct"].get(f"{kind}.{name}") for kind in ("tool", "prose")]
        return "/".join(f"{100 * x['value']:.0f}" if x else "-" for x in found)

    divergences = list(dict.fromkeys(one["divergence"] for one in ranked))
    rows = []
    for one in ranked:
        summary = one["gate"]["summary"]
        rows.append(
            (
                one["template"],
                *([one["divergence"]] if len(divergences) > 1 else []),
                "passes" if one["gate"]["passed"] else "FAILS",
                f"{summary['nll_with']:.3f}" if summary else "-",
                f"{one['alignment']['value']:.3f}",
                *(conduct(one, name) for name in ("first_token", "copied", "begins_with_block")),
            )
        )
    texts = ["wording", *(["divergence"] if len(divergences) > 1 else []), "gate"]
    columns = [*texts, "NLL", "align", "first", "copied", "block"]
    caption = (
        "NLL: of the expert's turns under the teacher, nats per token; align: cosine of the objective's gradient and "
        "that of the expert's likelihood; first: probability of the expert's first token; copied whole; begins with "
        "the block's text: % of tool turns/prose"
    )
    what = "Wordings and divergences" if len(divergences) > 1 else f"Wordings, {divergences[0]}"
    built = table(f"{what}, the best first", columns, rows, caption, texts=len(texts))
    for column in built.columns[: len(texts) - 1]:
        column.overflow = "fold"
    return built


def _criterion(found: Mapping[str, Any]) -> tuple[str, ...]:
    interval = "all equal" if found["degenerate"] else f"{found['low']:+.3f} to {found['high']:+.3f}"
    return f"{found['value']:+.3f}", interval, found["rule"], "yes" if found["passed"] else "NO"


def profile_table(profile: Mapping[str, Any]) -> Table:
    """Show where the time of the profiled steps went, and the share of the machine's arithmetic that each part used."""
    steps, ceiling = profile["steps"], profile["ceiling_operations_per_second"]
    rows = [(name, *_profile_row(part, len(steps))) for name, part in profile["phases"].items()]
    whole = {**{k: profile[k] for k in ("seconds", "operations", "utilisation")}, "share": 1.0}
    saved = profile["independent_operations"] / profile["operations"]
    return table(
        f"Steps {steps[0]} to {steps[-1]}, per step",
        ["phase", "seconds", "share", "TFLOP", "of the ceiling"],
        [*rows, ("all", *_profile_row(whole, len(steps)))],
        f"ceiling: {ceiling / 1e9:,.0f} GFLOP/s, measured with matrix products ({profile['dtype']}, "
        f"{profile['threads']} threads); prefix sharing {profile['sharing']}: each turn on its own would take "
        f"{saved:.2f} times the operations",
    )


def _profile_row(part: Mapping[str, Any], steps: int) -> tuple[str, ...]:
    counted = part["operations"] > 0
    return (
        f"{part['seconds'] / steps:.2f}",
        f"{part['share']:.0%}",
        f"{part['operations'] / steps / 1e12:.3f}" if counted else "-",
        f"{part['utilisation']:.0%}" if counted else "-",
    )


def merge_table(check: Mapping[str, Any]) -> Table:
    """Show a merge certificate."""
    title = "Merge certificate: the checkpoint on disk against base + adapter"
    return table(title, ["", "value"], merge_rows(check))


def _memory_table(plan: Mapping[str, Any]) -> Table:
    """Bytes by part, a column per phase of a step; the peak is the largest phase, not their sum."""
    phases = plan["memory"]["phases"]
    parts = list(dict.fromkeys(name for phase in phases for name in phase["parts"]))

    def row(name: str, values: Sequence[int | None]) -> list[str]:
        return [name, *("" if value is None else f"{value / 1e9:,.2f}" for value in values)]

    rows = [row(part, [phase["parts"].get(part) for phase in phases]) for part in parts]
    rows.append(row("all", [phase["total"] for phase in phases]))
    columns = [f"{p['name']} (peak)" if p["name"] == plan["memory"]["peak"] else p["name"] for p in phases]
    return table("Memory of the longest step, GB (10^9 bytes), by phase", ["", *columns], rows)


def _work_table(plan: Mapping[str, Any]) -> Table:
    hours = plan["hours"] or {}
    names = {
        "prefill": "rollouts: prompts",
        "decode": "rollouts: decoding",
        "teacher": "teacher",
        "student": "student, forward",
        "backward": "student, again and backward",
        "heads": "output head and loss",
        "gate": "gate",
        "heldout": "held-out evaluations",
        "checkpoints": "checkpoints",
        "start": "loading, checks, rehearsal",
        "total": "all",
    }
    work = plan["flops"]
    rows = [
        [label, f"{work[key] / 1e15:,.3f}" if key in work else "", f"{hours[key]:,.3f}" if hours else "-"]
        for key, label in names.items()
        if key in work or hours
    ]
    caption = (
        f"Operations are those of the {plan['steps']:,} training steps; {plan['decode_steps']:,.0f} steps of decoding "
        f"in them read {plan['decode_bytes'] / 1e12:,.2f} TB."
    )
    return table("Work of the run", ["", "PFLOP", "hours"], rows, caption)


def _losses_table(plan: Mapping[str, Any]) -> Table:
    rows = [
        [x["name"], f"{x['cap']:,}", f"{x['rejected']:,}", f"{x['profile_cap']:,}", f"{x['over']:,}"]
        for x in plan["caps"]
    ]
    caption = (
        "Training refuses records over the profile's max_prompt_tokens; they are left out above. An expert's turn over "
        "the rollout cap is no loss. `sdft report` shows what other caps would keep."
    )
    columns = ["cap", "dataset's", "turns rejected", "profile's", "records over"]
    return table("Records lost to caps", columns, rows, caption)


WAYS = {"one": "one card", "data_parallel": "data parallel", "fsdp2": "FSDP2"}


def _cards_table(cards: Mapping[str, Any]) -> Table:
    """Memory of the card with the most, and hours by what all wait for, of each way to use several cards."""
    ways = cards["ways"]

    def row(label: str, found: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [label, *map(found, ways)]

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    hours = {
        "rollouts": "rollouts",
        "scoring": "teacher, student, loss",
        "network": "network",
        "rest": "the rest",
        "total": "all",
    }
    rows = [
        row("memory of the fullest card, GB", lambda w: number(w["peak_bytes"] / 1e9)),
        row("fits", lambda w: {None: "-", True: "yes", False: "no"}[w["fits"]]),
        *(
            [f"{label}, hours", *(number((w["hours"] or {}).get(name), 3) for w in ways)]
            for name, label in hours.items()
        ),
        row("times as fast as one card", lambda w: number(w["speedup"])),
        row("cards with work in a step", lambda w: number(w["cards_with_work"], 1)),
        row(
            "largest share of a step's tokens, %", lambda w: number(w["largest_share"] and 100 * w["largest_share"], 0)
        ),
        row(
            "sent by a card in a step, GB",
            lambda w: number(w["sent_bytes_per_step"] and w["sent_bytes_per_step"] / 1e9),
        ),
    ]
    machines = f" in {cards['nodes']} machines" if cards["nodes"] > 1 else ""
    title = f"{cards['count']} cards{machines}, {cards['turns_per_step']} turns in a step"
    return table(title, ["", *(WAYS[way["name"]] for way in ways)], rows)


def _cards_verdict(cards: Mapping[str, Any]) -> str:
    if cards["take"] is None:
        return f"Take neither: {cards['why']}."
    return f"Take {WAYS[cards['take']]}: {cards['why']}.\n    {cards['launch']} ..."


def plan_verdict(plan: Mapping[str, Any]) -> str:
    """Say whether a plan fits the card."""
    need, gpu = f"{plan['peak_bytes'] / 1e9:,.2f} GB in phase {plan['memory']['peak']}", plan["gpu"]
    if gpu is None:
        return f"Needs {need}. No card: name one with --gpu for a verdict and hours."
    room = f"{gpu['usable_bytes'] / 1e9:,.2f} GB usable on {gpu['name']}"
    note = f" ({gpu['note']})" if gpu["note"] else ""
    if gpu["fits"]:
        return f"Fits: {need}, {room}{note}, {gpu['margin'] / 1e9:,.2f} GB to spare."
    return f"Does not fit: {need}, {room}{note}, {-gpu['margin'] / 1e9:,.2f} GB too much."


def plan_report(plan: Mapping[str, Any]) -> RenderableType:
    """Show a plan: verdict, memory by part and phase, work and hours, lost records, what to lower, assumptions."""
    head = (
        f"{plan['model']}: {plan['parameters'] / 1e9:,.3f} B parameters, "
        f"adapter {plan['adapter_parameters'] / 1e6:,.2f} M; {plan['records']:,} records; "
        f"{plan['kv_bytes_per_token']:,} bytes of cache per token"
    )
    parts: list[RenderableType] = [Text(head), Text(plan_verdict(plan)), _memory_table(plan)]
    if plan["gpu"] and not plan["gpu"]["fits"]:
        rows = [
            [r["change"], f"{r['peak'] / 1e9:,.2f}", "yes" if r["fits"] else "no", f"{r['records_lost']:,}"]
            for r in plan["remedies"]
        ]
        columns = ["change, alone", "peak, GB", "fits", "records lost"]
        parts.append(table("What lowers the peak", columns, rows))
    parts += [_work_table(plan), _losses_table(plan)]
    assumptions = [*plan["assumptions"]]
    if "gpus" in plan:
        parts += [_cards_table(plan["gpus"]), Text(_cards_verdict(plan["gpus"]))]
        assumptions += plan["gpus"]["assumptions"]
    parts += [Text("Assumptions:"), *(Text(f"- {line}") for line in assumptions)]
    return Group(*parts)


STYLES = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


def finding_line(level: str, what: str, text: str) -> Text:
    """Show a finding of `sdft doctor`."""
    return Text.assemble((f"{level:4}", STYLES[level]), f"  {what}: ", text)
