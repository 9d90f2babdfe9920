"""The engine, in rooms, each of which imports only those above it.

kernels/    which functions of torch and other packages run a model, and whether they are right
models/     a model behind a backend, and which of its weights are on
passes/     hidden states, gradients and new tokens for the turns of a step
parallel/   several processes that share the work of a run
objective/  which tokens count, and the divergence
remote/     rollouts that a vLLM server samples
plan/       memory, operations and hours of a run, before it starts
score/      a model on records: answers, divergence, likelihood; the gate
train/      the SDFT step, and the run around it
doctor/     is the machine ready, does the engine compute here what it should
"""

import logging
import warnings

from sdft_cli.notices import loudness

if loudness() != "verbose":  # here, since some libraries tell of themselves while a module of a room imports them
    for _name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(_name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torchao\..*")
