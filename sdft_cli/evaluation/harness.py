"""Tasks of EleutherAI's lm-evaluation-harness on the models of an evaluation, in process (extra `eval`).

The harness renders, runs and scores; what is kept here is its result, and the score of each document, so that models
are compared document by document like everything else. Its tasks download their data unless a task's own file says
where it is (`dataset_path: json`, `dataset_kwargs: {data_files: ...}`), so local tasks run offline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import isclose, isfinite
from typing import Any

from sdft_cli.config import EvalConfig
from sdft_cli.engine.models.device_memory import is_out_of_memory
from sdft_cli.engine.score.scoring import Role
from sdft_cli.errors import DataError, MissingPackage, SdftError, UsageError
from sdft_cli.prompts.chat import ChatPrompts

Harness = Callable[[Role], dict[str, Any]]


def open_harness(config: EvalConfig, prompts: ChatPrompts) -> Harness | None:
    """Return what evaluates a model on `config.lm_eval`; None where no task is asked for.

    The result is `{"version", "documents", "summary", "higher_is_better", "items"}`; keys of numbers
    are `task/metric`, and `task/metric,filter` for a filter other than the harness's `none`. An item is a document with
    those of its numbers whose mean is the task's number.

    Raises:
        MachineError: the package is missing.
        UsageError: a task is not known or of a kind that is not run here.
        DataError: a task cannot be loaded: its data is not to be had, its file is wrong, it needs another package.
    """
    if not config.lm_eval:
        return None
    if find_spec("lm_eval") is None:
        raise MissingPackage("--lm-eval", "lm_eval")
    hint = "tasks whose data is not on this machine need a network; --lm-eval-path DIR takes tasks with local data"
    with _explained(f"could not load {', '.join(config.lm_eval)}", hint):
        manager = _checked(config)
    return lambda role: _run(role, config, prompts, manager)


def _checked(config: EvalConfig) -> Any:
    """Return what loads tasks, having loaded those asked for once: a wrong one is not found out hours later."""
    from lm_eval.tasks import get_task_dict

    manager = _manager(config.lm_eval_path)
    unknown = [name for name in config.lm_eval if name not in manager.all_tasks]
    if unknown:
        where = f" or {config.lm_eval_path}" if config.lm_eval_path else ""
        raise UsageError(
            f"lm-evaluation-harness{where} has no task {unknown[0]}: `lm-eval ls tasks` lists its own, and "
            "--lm-eval-path DIR adds a folder of yours (a file in it that is not valid YAML counts as not there)."
        )
    # `TaskManager.load`, which is to replace this function, came with lm-eval 0.4.12.
    for name, task in _tasks(get_task_dict(list(config.lm_eval), manager)):
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UsageError(f"Task {name} runs code that a model wrote, or shows it more than text: leave it out.")
    return manager


@cache
def _manager(path: str | None) -> Any:
    """Return what knows the harness's tasks and those of a folder; it reads thousands of files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=path)


def _tasks(found: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tasks of groups, and of groups in them, by name."""
    for name, value in found.items():
        yield from _tasks(value) if isinstance(value, Mapping) else [(name, value)]


def _run(role: Role, config: EvalConfig, prompts: ChatPrompts, manager: Any) -> dict[str, Any]:
    hint = "leave out the task that this is of, or mend its file"
    with role.weights(role.scoring), _explained(f"could not run {', '.join(config.lm_eval)}", hint):
        from lm_eval import __version__, simple_evaluate
        from lm_eval.models.huggingface import HFLM

        # The model under the adapter: an adapter is on or off in its layers, and not every model has one around it.
        model = HFLM(pretrained=role.backend.base, tokenizer=prompts.tokenizer, batch_size=config.max_records_per_pass)
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
    return {"version": __version__, **kept(found)}


@contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Run the harness quietly; what it, its libraries or a task's own code raises becomes a `DataError`."""
    try:
        with _quiet():
            yield
    except Exception as error:  # a task may be any code: each fails in its own way
        if isinstance(error, SdftError) or is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise DataError(f"lm-evaluation-harness {what} ({type(error).__name__}: {reason}): {hint}.") from error


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
