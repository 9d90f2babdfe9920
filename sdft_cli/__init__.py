"""sdft: recorded coding-agent sessions in, a self-distilled, merged and evaluated open model out.

cli/         the commands, one thin file each
stages/      what a command does behind its options
records/     the contract: messages, sessions, records, the dataset folder
traces/      sessions of Claude Code and others, from a file, a folder or the Hub
prompts/     chat rendering, token ids, the teacher's message, tool calls out of text
redaction/   secrets and personal names
preparation/ sessions -> records, with a funnel that counts everything
engine/      models, passes, objective, plan, training
merging/     adapter -> checkpoint, and the proof that it is the same model
evaluation/  what was learned and what was forgotten
chat/        what is said in a chat with a model, and the commands that serve one
report/      tables, cards and pages
inspection/  looking at a dataset: sessions, records, what was dropped, search
api          the commands as functions: what this package hands on
choices      divergences and backends: what stands behind their names
config       one typed configuration per stage
run_folder   what a training run leaves behind
metrics      every number of an evaluation: how an item counts, its label, unit and direction
intervals    confidence intervals over sessions
notices      what a command tells a person while it works
places       where datasets and runs are, and which one a wrong name may mean
addresses    sources and targets that are addresses, as fsspec opens them
threads      how torch's threads wait for each other
resources    templates/ and data_cards/, in a wheel or a checkout
texts        files and YAML that people write, and what is wrong with them
errors       every error is a sentence with the next step and an exit code
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdft_cli.api import Evaluation, Merged, evaluate, load_dataset, merge, prepare, train

__version__ = "0.1.0"
__all__ = ["Evaluation", "Merged", "__version__", "evaluate", "load_dataset", "merge", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """Load the Python API (`api.py`) when one of its names is first asked for: `import sdft_cli` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdft_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
