"""Run as a process of its own: a nursery of training runs that may be killed.

Reads one command per line, `FOLDER DATASET OVERRIDE...`; forks a child that starts the run in that folder, or goes on
with it; answers `started PID`, `running` when the first step is about to begin, and `ended CODE` when the child is
gone. The libraries are imported once, before any fork, and no tensor is computed here, so that each child starts in a
moment and on its own.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import accelerate
import accelerate.optimizer
import accelerate.scheduler  # noqa: F401
import peft.tuners.lora  # noqa: F401
import torch
import transformers.models.llama.modeling_llama
import transformers.models.llama.tokenization_llama  # noqa: F401

import sdft_cli.engine.models.backend_transformers
import sdft_cli.engine.score.gate
import sdft_cli.engine.train.heldout
import sdft_cli.engine.train.rehearsal
import sdft_cli.engine.train.trackers  # noqa: F401
from sdft_cli.config import load_train_config
from sdft_cli.engine.train.loop import Silent
from sdft_cli.engine.train.opening import Job
from sdft_cli.engine.train.run import start_training
from sdft_cli.records import read_dataset

torch.set_num_threads(1)


@contextmanager
def announced():  # type: ignore[no-untyped-def]
    print("running", flush=True)
    yield Silent()


def train(folder: Path, dataset: Path, overrides: list[str]) -> None:
    config = load_train_config("cpu-demo", overrides)
    resume = (folder / "run.json").exists()
    start_training(Job(config, read_dataset(dataset), folder, resume=resume), lambda text: None, announced)


def main() -> None:
    gc.freeze()  # no fork looks through what the libraries made
    for line in sys.stdin:
        folder, dataset, *overrides = line.split()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(Path(folder), Path(dataset), overrides)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print("started", child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
