"""What a step costs on a CPU: attention of packed passes, a decoded token and its parts, and whole steps.

    python -m benchmarks.bench_cpu_step [--threads 2] [--model smollm2-135m] [--rows 8] [--tokens 24]
                                        [--dataset DATASET [--steps 3] [--only-steps] [--only-token]]

Each line compares two ways on the same inputs in this process, which take turns; times are the best of some rounds, so
that other work on the machine counts little. The first way is that of version 0.1: attention behind a dense mask in
blocks of 512 queries, transformers' `generate`, its warpers over the whole vocabulary. With a dataset of `sdft
prepare`, steps of the profile `cpu-demo` are timed by phase; the same script runs on older commits for that
(`--only-steps`). `--only-token` times a decoded token behind prompts of the dataset, and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Way = Callable[[], Any]


def best(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Return the least seconds of each way; they take turns."""
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def tell(what: str, seconds: dict[str, float], per: int = 1) -> None:
    """Print a line: milliseconds of two ways, and how many times as fast the second one is."""
    (first, before), (second, now) = seconds.items()
    print(
        f"{what:<44} {first} {1e3 * before / per:8.2f} ms   {second} {1e3 * now / per:8.2f} ms   {before / now:5.2f} x",
        flush=True,
    )


def dense_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block: int = 512) -> Tensor:
    """Attention behind a dense mask (1, 1, N, N), each block of queries to all keys before its end."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    parts = []
    for start in range(0, query.shape[2], block):
        stop = min(start + block, query.shape[2])
        parts.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, :stop],
                value[:, :, :stop],
                attn_mask=mask[:, :, start:stop, :stop],
            )
        )
    return torch.cat(parts, 2)


def attention(rounds: int) -> None:
    """Attention of one layer of SmolLM2-135M over a tree like that of a demo step's teacher: 8 turns, 1,184 tokens."""
    from sdft_cli.engine.passes.attention import attend_packed
    from sdft_cli.engine.passes.packed import branches_of, build_tree

    trunk = list(range(108))
    own = (145, 137, 100, 92, 143, 139, 225, 89)
    tree = build_tree([[*trunk, *range(1000 * i, 1000 * i + n)] for i, n in enumerate(own, 1)])
    seen = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for row in tree.rows:
        places = torch.from_numpy(row)
        seen[places[:, None], places] = torch.ones(len(row), len(row), dtype=torch.bool).tril()
    branches = branches_of(tree, torch.device("cpu"))
    module = torch.nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    tensors = [torch.randn(1, len(tree), n, 64).transpose(1, 2).requires_grad_() for n in (9, 3, 3)]

    def forward(new: bool) -> Tensor:
        if new:
            return attend_packed(module, *tensors, branches)[0]
        return dense_blocks(*tensors, seen[None, None]).transpose(1, 2)

    def back(new: bool) -> None:
        torch.autograd.grad(forward(new).square().sum(), tensors)

    with torch.no_grad():
        gap = float((forward(True) - forward(False)).abs().max())
        seconds = best({"masked": lambda: forward(False), "branches": lambda: forward(True)}, rounds)
    tell(f"attention, {len(tree)} tokens (differ by {gap:.0e})", seconds)
    tell("the same with its gradient", best({"masked": lambda: back(False), "branches": lambda: back(True)}, rounds))


def draw(rows: int, rounds: int) -> None:
    """A token of each row from 49,152 words, at the profile's temperature 0.8 and top_p 0.95."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

    from sdft_cli.engine.passes.decode_steps import Sampling

    logits = 3 * torch.randn(rows, 49152)
    logits[:, :20] += 12  # most of a trained model's mass is on a few words
    sampling = Sampling(0.8, 0.95, (), 0, list(range(rows)))
    places = sampling.places(1, logits.device)
    assert places is not None

    def theirs() -> Tensor:
        warped = TopPLogitsWarper(0.95)(None, TemperatureLogitsWarper(0.8)(None, logits))
        return torch.multinomial(warped.softmax(-1), num_samples=1)

    tell(
        f"drawing a token of {rows} rows",
        best({"all words": theirs, "nucleus": lambda: sampling.draw(logits, places[:, 0])}, rounds),
    )


def products(model: Any, rows: int, rounds: int) -> None:
    """All products of a step of decoding: plain, with packed weights, and with weights read as float16."""
    from sdft_cli.engine.kernels.halves import pack_halves
    from sdft_cli.engine.kernels.packed import packable, packed_product

    weights = [layer.weight.detach() for layer in packable(model)]
    inputs = {width: torch.randn(rows, width) for width in {w.shape[1] for w in weights}}
    plain = [(lambda x, w=w: functional.linear(x, w)) for w in weights]
    start = time.perf_counter()
    packed = [packed_product(w, rows) for w in weights]
    middle = time.perf_counter()
    halves = pack_halves(weights)
    print(f"packed in {middle - start:.2f} s, as float16 in {time.perf_counter() - middle:.2f} s")

    def way(products: list[Any]) -> Way:
        return lambda: [product(inputs[w.shape[1]]) for product, w in zip(products, weights, strict=True)]

    tell(f"products of {rows} rows", best({"plain": way(plain), "packed": way(packed)}, rounds))
    if halves is not None:
        read = [halves.product(w) for w in weights]
        tell(f"products of {rows} rows", best({"plain": way(plain), "as float16": way(read)}, rounds))


def made_up(rows: int) -> list[list[int]]:
    """Prompts of 120 to 190 tokens and more; what follows them has no likely word."""
    drawn = torch.Generator().manual_seed(0)
    return [torch.randint(100, 40000, (120 + 10 * i,), generator=drawn).tolist() for i in range(rows)]


def decode(backend: Any, prompts: list[list[int]], tokens: int, rounds: int, what: str) -> None:
    """A decoded token of a batch, prefill and packing left out and told: of a merged copy by `generate`, and as now."""
    from sdft_cli.engine.models.adapters import weights
    from sdft_cli.engine.passes.decode import generate
    from sdft_cli.engine.passes.start_check import answering_weights, choose_decoding

    print(choose_decoding(backend))
    now = backend.decoder, backend.packed_steps

    def run(new: int, case: Any, decoder: str, packed: bool) -> Way:
        def way() -> None:
            backend.decoder, backend.packed_steps = decoder, packed
            with weights(backend.model, case) if hasattr(backend.model, "disable_adapter") else nullcontext():
                generate(backend, prompts, new, [], 0, 0.8, 0.95, record_log_probs=True)

        return way

    both = {"generate": ("merged", "generate", False), "now": (answering_weights(backend), *now)}
    short = best({name: run(8, *way) for name, way in both.items()}, rounds)
    long = best({name: run(8 + tokens, *way) for name, way in both.items()}, rounds)
    tell(f"a decoded token of {what}", {name: long[name] - short[name] for name in both}, tokens)
    tell(f"{8 + tokens} tokens with prefill and packing", long)
    backend.decoder, backend.packed_steps = now


FIRST_DEMO = ["distill.divergence=reverse_kl", "distill.lambda_on_policy=1", "rollout.max_new_tokens=24"]
"""What the profile had at commit b3f7de5, against which steps are timed."""


def steps(dataset: Path, count: int, chosen: argparse.Namespace) -> None:
    """Steps of the profile `cpu-demo` by phase, all of it on-policy; a token behind prompts of the dataset before."""
    from sdft_cli.config import load_train_config
    from sdft_cli.engine.objective.batches import Order
    from sdft_cli.engine.passes.timing import Phases
    from sdft_cli.records import read_dataset

    where = "opening" if find_spec("sdft_cli.engine.train.opening") else "run"  # as on commits before that module
    opening = import_module(f"sdft_cli.engine.train.{where}")
    config, data = load_train_config("cpu-demo", FIRST_DEMO), read_dataset(dataset)
    if hasattr(config.rollout, "start_tokens"):  # every rollout has the same length, as at that commit
        config = load_train_config("cpu-demo", [*FIRST_DEMO, "rollout.start_tokens=null"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = opening.load(opening.Job(config, data, Path(folder)), lambda text: print(text)).trainer
        order = Order([record.row for record in data.train], config.optim, 0)
        found: dict[str, float] = {}
        if not chosen.only_steps:
            prompts = [trainer.example(record).student for record in data.train[: chosen.rows]]
            decode(trainer.backend, prompts, chosen.tokens, chosen.rounds, f"{chosen.rows} rows, adapter on")
        if chosen.only_token:
            return
        for step in range(1, count + 1):
            turns: Any = order.step(step)  # older commits have them in an object
            examples = [trainer.example(data.train[i]) for i in getattr(turns, "indices", turns)]
            with _products(trainer.backend):
                phases, start = Phases(), time.perf_counter()
                taken = trainer.sample(examples, step, 0)
                seconds = {"rollout": time.perf_counter() - start}
                trainer.backward(taken.examples, taken.rollouts, phases)
                seconds |= {**phases.seconds, "step": time.perf_counter() - start}
            trainer.optimizer.zero_grad()
            found = {name: min(value, found.get(name, value)) for name, value in seconds.items()}
    print("least seconds of a step's phases: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


def _products(backend: Any) -> AbstractContextManager[None]:
    """Products as a training step has them; an older commit has one kind only."""
    if not hasattr(backend, "products"):
        return nullcontext()
    from sdft_cli.engine.kernels.products import products

    return products(backend.products)


def parts(chosen: argparse.Namespace) -> None:
    """Each part, before and now."""
    from sdft_cli.engine.models.load import open_for_eval
    from sdft_cli.engine.models.names import resolve_model

    attention(4 * chosen.rounds)
    draw(chosen.rows, 4 * chosen.rounds)
    backend = open_for_eval(resolve_model(chosen.model), "float32", None, None)
    products(backend.base, chosen.rows, 2 * chosen.rounds)
    decode(
        backend, made_up(chosen.rows), chosen.tokens, max(1, chosen.rounds // 2), f"{chosen.rows} rows, made-up text"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="as torch has them, if it is left out")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only-steps", action="store_true", help="as on commits before these kernels")
    parser.add_argument("--only-token", action="store_true", help="nothing but a decoded token; needs --dataset")
    chosen = parser.parse_args(arguments)
    if chosen.dataset is None and (chosen.only_steps or chosen.only_token):
        parser.error("--only-steps and --only-token need --dataset")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    if not chosen.only_steps and not chosen.only_token:
        parts(chosen)
    if chosen.dataset:
        steps(chosen.dataset, chosen.steps, chosen)


if __name__ == "__main__":
    main()
