"""Tasks of EleutherAI's lm-evaluation-harness on the models of an evaluation, in process (extra `eval`).

The harness renders, runs and scores; what is kept here is its result, and the score of each document, so that models
are compared document by document like everything else. Its tasks download their data unless a task's own file says
where it is (`dataset_path: json`, `dataset_kwargs: {data_files: ...}`), so local tasks run offline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from math import isclose, isfinite
from typing import Any

from sdft_cli.config import EvalConfig
from sdft_cli.engine.measure import Role
from sdft_cli.errors import DataError, UsageError
from sdft_cli.prompts.chat import ChatPrompts

Harness = Callable[[Role], dict[str, Any]]


def open_harness(config: EvalConfig, prompts: ChatPrompts) -> Harness | None:
    """Return what measures a model on `config.lm_eval`; None where no task is asked for.

    The result of a measurement is `{"version", "documents", "summary", "higher_is_better", "items"}`; keys of numbers
    are `task/metric`, and `task/metric,filter` for a filter other than the harness's `none`. An item is a document with
    those of its numbers whose mean is the task's number.

    Raises:
        UsageError: the package is missing, or a task is not known.
    """
    if not config.lm_eval:
        return None
    if find_spec("lm_eval") is None:
        raise UsageError("--lm-eval needs lm-evaluation-harness: pip install 'sdft-cli[eval]'.")
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=config.lm_eval_path)
    unknown = [name for name in config.lm_eval if name not in manager.all_tasks]
    if unknown:
        where = f" or {config.lm_eval_path}" if config.lm_eval_path else ""
        raise UsageError(
            f"lm-evaluation-harness{where} has no task {unknown[0]}: `lm-eval ls tasks` lists its own, and "
            "--lm-eval-path DIR adds a folder of yours."
        )
    return lambda role: _run(role, config, prompts, manager)


def _run(role: Role, config: EvalConfig, prompts: ChatPrompts, manager: Any) -> dict[str, Any]:
    with _quiet(), role.weights(role.scoring):
        from lm_eval import __version__, simple_evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            model = HFLM(
                pretrained=role.backend.model, tokenizer=prompts.tokenizer, batch_size=config.max_records_per_pass
            )
            found = simple_evaluate(
                model,
                tasks=list(config.lm_eval),
                limit=config.lm_eval_limit,
                bootstrap_iters=0,  # intervals are made here, from the documents' own numbers
                task_manager=manager,
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
            )
        except (OSError, ValueError, KeyError) as error:  # a data set that is not there, a task's file that is wrong
            raise DataError(
                f"lm-evaluation-harness could not run {', '.join(config.lm_eval)} "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}): tasks "
                "whose data is not on this machine need a network; --lm-eval-path DIR takes tasks with local data."
            ) from error
    return {"version": __version__, **kept(found)}


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation keeps of the harness's result."""
    summary: dict[str, float] = {}
    higher: dict[str, bool | None] = {}
    for task, numbers in found["results"].items():
        for name, value in numbers.items():
            metric, _, where = name.partition(",")
            if where and "_stderr" not in metric and isinstance(value, int | float):
                summary[_key(task, metric, where)] = value
                higher[_key(task, metric, where)] = found["higher_is_better"].get(task, {}).get(metric)
    items = list(_items(found.get("samples", {}), summary))
    return {
        "documents": {task: count["effective"] for task, count in found["n-samples"].items()},
        "summary": summary,
        "higher_is_better": higher,
        "items": _whose_mean_is_known(items, summary),
    }


def _key(task: str, metric: str, where: str) -> str:
    return f"{task}/{metric}" if where == "none" else f"{task}/{metric},{where}"


def _items(samples: Mapping[str, Any], summary: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield each document of a task with its numbers, those of all filters together."""
    for task, rows in samples.items():
        documents: dict[str, dict[str, float]] = {}
        for row in rows:
            values = documents.setdefault(f"{task}/{row['doc_id']}", {})
            for metric in row["metrics"]:
                value, key = row[metric], _key(task, metric, row["filter"])
                if key in summary and isinstance(value, int | float) and isfinite(value):
                    values[key] = float(value)
        yield from ({"document": name, "values": values} for name, values in documents.items())


def _whose_mean_is_known(items: list[dict[str, Any]], summary: Mapping[str, float]) -> list[dict[str, Any]]:
    """Leave out numbers that the harness does not average over documents (perplexities, corpus scores)."""
    columns: dict[str, list[float]] = {}
    for item in items:
        for key, value in item["values"].items():
            columns.setdefault(key, []).append(value)
    means = {key for key, all_ in columns.items() if isclose(sum(all_) / len(all_), summary[key], abs_tol=1e-9)}
    return [{**item, "values": {k: v for k, v in item["values"].items() if k in means}} for item in items]


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's log holds what concerns its own command line; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
