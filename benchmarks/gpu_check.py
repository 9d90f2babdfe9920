"""Does the engine work on a GPU, how fast, and is a shared step the same step? One JSON line per measurement.

    python -m benchmarks.gpu_check --size tiny [--bf16]                        # on a CPU, seconds: checks the script
    python -m benchmarks.gpu_check --size 9b --budget 430 --out results.jsonl  # on one GPU of 80 GB

It runs as a plain script too, `python gpu_check.py ...`, where the package can be imported. Nothing is downloaded: the
model has random weights, and `9b` the sizes of Qwen3.5-9B. Stages run in the order of what is worth knowing. One that
does not fit into what is left of --budget is skipped and says so. One that fails says why in `failed`, the next one
runs all the same, and the exit code is 1. Times are seconds, sizes 10^9 bytes, distances relative (L2).

env        versions, kernels that are bound, the largest speed of a matrix product
attention  attention behind a path as it runs here (flash, from the lower right) against blocks with a mask
delta      the gated delta rule that is bound against the reference in fp32: values and all gradients
lora       one adapted matrix: fp32 adapter, the same with TF32, and under autocast as the engine runs it
head       logits and the gradient in the states through the head, against fp64
load       the model, its adapter, the trainer
sharing    which executor is chosen; how far depth-first is from turns alone, and ways that share nothing (floor)
step       teacher and student of one turn: seconds by phase, speed, peak memory, what `sdft plan` predicts
tree       attention of a packed pass: FlexAttention against branch by branch, values, gradients and times
decoding   steps over fixed buffers, on a GPU as a CUDA graph: their log-probabilities against those of a pass
rollout    prefill, and decoding steps with the adapter and with merged weights: by `generate`, and replayed
shared     turns of one session in one step, and each alone, with the gradients compared
alone      all of these turns alone, with padded passes
trl        some of these turns by TRL's SDFTTrainer, where TRL is installed: loss, gradient, seconds, memory
merge      a smaller model: written, merged, certified, loaded again and compared
unsloth    such turns of a smaller model by transformers and by unsloth, where it is installed, each in a process
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Absent(types.ModuleType):
    """Stands in for a package that the engine's modules import and nothing here calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return Absent("made")

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (object,)


def stand_in(packages: Sequence[str]) -> list[str]:
    """Put `Absent` in the place of packages that are not installed, as on a machine without a network; name them."""
    found = []
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = Absent(name)
            found.append(name)
    return found


STAND_INS = stand_in(("polars", "jsonschema_rs", "msgspec"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

KERNEL_PACKAGES = ("fla", "causal_conv1d")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest distance of two computations of the same: bf16 rounds to 2^-8 in every layer, fp32 differs in order only."""
CEILING_SIZE = 8192
PROMPT, ANSWER = 200, 32
"""Tokens on which the merged model is compared."""

Ids = list[int]


@dataclass(frozen=True)
class Size:
    """A model, and how much is measured of it."""

    text: dict[str, Any]
    vision: dict[str, int]
    settings: tuple[str, ...]
    new: int
    paths: tuple[int, ...]
    delta_tokens: tuple[int, ...]
    lora: tuple[int, int, int, int]
    """In, out, tokens, rank."""
    warm: tuple[int, int]
    """Tokens of prompt and answer of the first step; `middle` and `deep` are prompts of the others."""
    middle: int
    deep: int
    answer: int
    reference: int
    """Tokens by which the teacher's prompt is longer."""
    turns: int
    turn_answer: int
    decoded: tuple[int, int]
    """Decoding steps that are timed, with the adapter and with merged weights."""
    batch: int
    """Prompts of a decoding batch differ by so many tokens."""
    merged_layers: int
    packed: tuple[int, ...]
    """Tokens of packed passes whose attention is timed."""
    copied: int
    """Bytes that are copied to measure how fast memory is."""


ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True}
NINE = Size(
    text={
        "vocab_size": 248_320,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "full_attention_interval": 4,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": 248_044,
        "rope_parameters": {**ROPE, "mrope_section": [11, 11, 10]},
    },
    vision={"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096},
    settings=(),
    new=2048,
    paths=(0, 14_336, 55_296),
    delta_tokens=(512, 2048),
    lora=(4096, 12_288, 2048, 64),
    warm=(4096, 64),
    middle=16_384,
    deep=57_344,
    answer=512,
    reference=400,
    turns=16,
    turn_answer=256,
    decoded=(48, 96),
    batch=500,
    merged_layers=4,
    packed=(8192, 32_768),
    copied=4 * 2**30,
)
TINY = Size(
    text={
        **NINE.text,
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "eos_token_id": 3,
        "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]},
    },
    vision={"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64},
    settings=("lora.rank=4", "lora.alpha=8", "segment_tokens=64"),
    new=64,
    paths=(0, 200),
    delta_tokens=(70,),
    lora=(64, 128, 64, 4),
    warm=(96, 8),
    middle=160,
    deep=400,
    answer=24,
    reference=20,
    turns=4,
    turn_answer=12,
    decoded=(6, 6),
    batch=8,
    merged_layers=4,
    packed=(),
    copied=2**24,
)
SIZES = {"tiny": TINY, "9b": NINE}


def limit_autotuning(count: int) -> None:
    """Let Triton try so many configurations per kernel, else it compiles for minutes; speeds are lower bounds then."""
    try:
        from triton.runtime.autotuner import Autotuner
    except ImportError:
        return
    own = Autotuner.__init__

    def init(self: Any, fn: Any, arg_names: Any, configs: Any, *args: Any, **kwargs: Any) -> None:
        usual = sorted(configs or [], key=lambda c: (abs(c.num_warps - 4), abs(c.num_stages - 3)))
        own(self, fn, arg_names, usual[:count], *args, **kwargs)

    Autotuner.__init__ = init


def kernel_package(function: str) -> str:
    """Name the package whose kernel transformers runs for a function of Qwen3.5; `torch` is its own slow reference."""
    from transformers.models.qwen3_5 import modeling_qwen3_5

    found = getattr(modeling_qwen3_5, function)
    inside = []
    for cell in getattr(found, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            inside.append(cell.cell_contents)
    for each in (found, *inside):
        package = str(getattr(each, "__module__", "")).partition(".")[0]
        if package in KERNEL_PACKAGES:
            return package
    return "torch"


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the L2 norm of the difference, relative to that of what is expected."""
    return float(f"{float((found.float() - expected.float()).norm() / expected.float().norm()):.3g}")


class Check:
    """What all stages share: options, the clock, the log, and from `load` on the model and its trainer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.size = SIZES[options.size]
        self.start = time.perf_counter()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda or options.bf16 else torch.float32
        self.vocabulary: int = self.size.text["vocab_size"]
        self.ceiling = math.nan
        self.bandwidth = math.nan
        self.config = self.backend = self.trainer = self.shape = None  # type: Any
        self.failures = 0

    def left(self) -> float:
        """Return the seconds that are left."""
        return float(self.options.budget - (time.perf_counter() - self.start))

    def tell(self, stage: str, **numbers: Any) -> None:
        """Write a line."""
        self.failures += "failed" in numbers
        line = json.dumps({"stage": stage, "at_s": round(time.perf_counter() - self.start, 1), **numbers}, default=str)
        print(line, flush=True)
        if self.options.out:
            with open(self.options.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def compared(self, distances: dict[str, float]) -> dict[str, Any]:
        """Return distances for `tell`, with `failed` where one is over the tolerance of this dtype."""
        over = [name for name, value in distances.items() if not value <= TOLERANCE[self.dtype]]
        return {**distances, **({"failed": f"too far: {', '.join(over)}"} if over else {})}

    def fresh(self) -> None:
        """Free memory and gradients, and start a new peak."""
        for parameter in self.backend.parameters() if self.backend else ():
            parameter.grad = None
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        """Return the peak of memory since `fresh`; nothing on a CPU."""
        if not self.cuda:
            return {}
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_gb": round(allocated / 1e9, 2), "reserved_gb": round(reserved / 1e9, 2)}

    def timed(self, run: Callable[[], object], repeat: int = 1) -> float:
        """Return the seconds of a call, the mean of some."""
        self.settle()
        start = time.perf_counter()
        for _ in range(repeat):
            run()
        self.settle()
        return (time.perf_counter() - start) / repeat

    def settle(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def ids(self, count: int, seed: int) -> Ids:
        """Return made-up token ids, none of them a control token."""
        generator = torch.Generator().manual_seed(seed)
        drawn: Ids = torch.randint(10, min(self.vocabulary, 240_000) - 1, (count,), generator=generator).tolist()
        return drawn

    def run(self, name: str, needs: float, stage: Callable[[Check], None]) -> None:
        """Run a stage, unless less time is left than it needs on a GPU, in seconds."""
        if self.left() < needs:
            self.tell(name, skipped=f"{self.left():.0f} s left, {needs:.0f} wanted")
            return
        self.fresh()
        try:
            stage(self)
        except Exception as error:  # the next stage runs all the same
            where = traceback.format_exc()[-1500:]
            self.tell(name, failed=f"{type(error).__name__}: {str(error)[:600]}", where=where, **self.peak())


def env(check: Check) -> None:
    """Tell versions, kernels, the ceiling of arithmetic, and how fast memory is read."""
    import accelerate
    import peft
    import transformers

    from sdft_cli.engine.kernels.cudnn import leave_cudnn_attention
    from sdft_cli.engine.train.profile import matrix_ceiling

    leave_cudnn_attention()  # as `load_model` does

    facts = {module.__name__: module.__version__ for module in (torch, transformers, peft, accelerate)}
    with contextlib.suppress(ImportError):
        facts["triton"] = importlib.import_module("triton").__version__
    rules = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule", "causal_conv1d_fn")
    kernels = {name: kernel_package(name) for name in rules}
    check.ceiling = matrix_ceiling(check.device, check.dtype)
    if check.cuda:
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        a = torch.randn(CEILING_SIZE, CEILING_SIZE, device=check.device, dtype=check.dtype)
        torch.mm(a, a)
        check.ceiling = max(check.ceiling, 2 * CEILING_SIZE**3 / check.timed(lambda: torch.mm(a, a), 5))
    a = torch.zeros(check.size.copied, dtype=torch.uint8, device=check.device)
    b = torch.zeros_like(a)
    check.bandwidth = 2 * check.size.copied / check.timed(lambda: b.copy_(a), 5)  # read and written
    facts |= {"ceiling_tflops": round(check.ceiling / 1e12, 2), "memory_gb_per_s": round(check.bandwidth / 1e9, 1)}
    check.tell("env", **facts, cuda=torch.version.cuda, stand_ins=STAND_INS, kernels=kernels)


def attention(check: Check) -> None:
    """Compare attention behind paths of some lengths with its form in blocks, and time both, a first call too."""
    text = check.size.text
    heads, kv_heads, width = (text[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    for path in check.size.paths:
        make = partial(torch.randn, device=check.device, dtype=check.dtype)
        query = make(1, heads, check.size.new, width).requires_grad_()
        key, value = (make(1, kv_heads, path + check.size.new, width).requires_grad_() for _ in "kv")
        _attention_behind(check, path, query, key, value)
        check.fresh()


def _attention_behind(check: Check, path: int, query: Tensor, key: Tensor, value: Tensor) -> None:
    from sdft_cli.engine.passes.attention import attend_along_path, attend_behind

    new, scale = query.shape[2], query.shape[3] ** -0.5

    def engine() -> Tensor:
        return attend_along_path(None, query, key, value, None, scaling=scale)[0]

    def blocks() -> Tensor:
        return attend_behind(query, key, value, scale).transpose(1, 2).contiguous()

    def backward(run: Callable[[], Tensor]) -> list[Tensor]:
        query.grad = key.grad = value.grad = None
        out = run()
        out.float().square().sum().backward()
        return [out.detach(), *(x.grad for x in (query, key, value) if x.grad is not None)]

    rows, found = {}, []
    operations = 4 * (new * path + new * (new + 1) / 2) * query.shape[1] * query.shape[3]
    for name, run in (("engine", engine), ("blocks", blocks)):
        first = check.timed(lambda run=run: found.append(backward(run)))  # type: ignore[misc]
        forward = check.timed(lambda run=run: run().detach(), 3)  # type: ignore[misc]
        both = check.timed(lambda run=run: backward(run), 3)  # type: ignore[misc]
        rows[name] = {
            "first_ms": round(first * 1e3, 2),
            "forward_ms": round(forward * 1e3, 2),
            "backward_ms": round((both - forward) * 1e3, 2),
            "forward_tflops": round(operations / forward / 1e12, 1),
        }
    distances = {n: distance(a, b) for n, a, b in zip(("out", "dq", "dk", "dv"), *found, strict=True)}
    check.tell("attention", new=new, path=path, **rows, **check.compared(distances))


def tree(check: Check) -> None:
    """Compare FlexAttention with the dense mask of a small tree; on packed passes with branches, and time both."""
    from sdft_cli.engine.passes.tree_attention import tree_trouble

    if not check.cuda:  # there is no kernel to time, nor a backward pass
        trouble = tree_trouble(check.backend)
        check.tell("tree", **({"failed": trouble} if trouble else {"says": "as behind a dense mask"}))
    for tokens in check.size.packed:
        _time_tree(check, tokens)
        check.fresh()


def _time_tree(check: Check, tokens: int) -> None:
    """Time forward and backward of 8 branches behind a trunk that is half of a pass; heads as of Qwen3-8B."""
    from sdft_cli.engine.passes.attention import attend_packed
    from sdft_cli.engine.passes.packed import branches_of, build_tree
    from sdft_cli.engine.passes.tree_attention import tree_mask

    trunk = check.ids(tokens // 2, 1)
    found = build_tree([[*trunk, *check.ids(tokens // 16, 10 + i)] for i in range(8)])
    shapes = [(1, heads, len(found), 128) for heads in (32, 8, 8)]
    inputs = [torch.randn(s, device=check.device, dtype=check.dtype).requires_grad_() for s in shapes]
    module = types.SimpleNamespace(num_key_value_groups=4)
    masks = {"blocks": tree_mask(torch.from_numpy(found.ends()).to(check.device))}
    masks["branches"] = branches_of(found, check.device)
    row, results = {}, {}
    for name, mask in masks.items():

        def run(mask: Any = mask) -> list[Tensor]:
            out = attend_packed(module, *inputs, mask, scaling=128**-0.5)[0]
            return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]

        row[f"{name}_first_call_s"] = round(check.timed(lambda name=name, run=run: results.update({name: run()})), 2)
        row[f"{name}_ms"] = round(1e3 * check.timed(run, 5), 2)
    pairs = zip(("out", "dq", "dk", "dv"), results["blocks"], results["branches"], strict=True)
    check.tell("tree", tokens=len(found), **row, **check.compared({name: distance(a, b) for name, a, b in pairs}))


def delta(check: Check) -> None:
    """Compare the bound gated delta rule, and the reference in this dtype, with the reference in fp32."""
    from transformers.models.qwen3_5 import modeling_qwen3_5

    bound = modeling_qwen3_5.torch_chunk_gated_delta_rule
    reference = getattr(bound, "__wrapped__", bound)
    heads, width = check.size.text["linear_num_value_heads"], check.size.text["linear_value_head_dim"]
    for tokens in check.size.delta_tokens:
        inputs, shares = _delta_inputs(check, tokens, heads, width)

        def run(rule: Any, dtype: torch.dtype, inputs: Any = inputs, shares: Any = shares) -> list[Tensor]:
            own = [x.detach().to(dtype if low else x.dtype).clone().requires_grad_() for x, low in inputs]
            query, key, value, decay, beta, before = own
            out, state = rule(
                *(query, key, value),
                g=decay,
                beta=beta,
                initial_state=before,
                output_final_state=True,
                use_qk_l2norm_in_kernel=True,
            )
            ((out.float() * shares[0]).sum() + (state.float() * shares[1]).sum()).backward()
            return [out.detach(), state.detach(), *(x.grad for x in own)]

        exact, ours, plain = run(reference, torch.float32), run(bound, check.dtype), run(reference, check.dtype)
        names = ("out", "state", "dq", "dk", "dv", "dg", "dbeta", "dstate")
        seconds = {
            "bound_ms": round(1e3 * check.timed(lambda run=run: run(bound, check.dtype), 3), 2),
            "reference_ms": round(1e3 * check.timed(lambda run=run: run(reference, check.dtype)), 2),
        }
        own = check.compared({name: distance(a, b) for name, a, b in zip(names, ours, exact, strict=True)})
        floor = {name: distance(a, b) for name, a, b in zip(names, plain, exact, strict=True)}
        check.tell("delta", tokens=tokens, **seconds, **own, reference_in_this_dtype=floor)


def _delta_inputs(check: Check, tokens: int, heads: int, width: int) -> tuple[list[tuple[Tensor, bool]], list[Tensor]]:
    """Return the rule's inputs, each with whether it is of the model's dtype, and weights that make a loss of both
    results."""
    draw = partial(torch.randn, device=check.device, generator=torch.Generator(device=check.device).manual_seed(0))
    row, state = (1, tokens, heads, width), (1, heads, width, width)
    inputs = [
        *((draw(*row), True) for _ in "qkv"),
        (torch.nn.functional.logsigmoid(draw(*row[:3])) / 8, False),
        (draw(*row[:3]).sigmoid(), True),
        (0.1 * draw(*state), False),
    ]
    return inputs, [draw(*row), draw(*state)]


def lora(check: Check) -> None:
    """Time one adapted matrix: without adapter, with it in fp32, with TF32, and under autocast as the engine has it.

    Output and gradients under autocast are compared with those of the adapter in fp32.
    """
    from peft import LoraConfig, get_peft_model

    from sdft_cli.engine.kernels.autocast import leave_inputs

    width, out, tokens, rank = check.size.lora
    base = torch.nn.Linear(width, out, bias=False, device=check.device, dtype=check.dtype).requires_grad_(False)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="0")
    adapted = get_peft_model(torch.nn.Sequential(base), settings)  # type: ignore[arg-type]
    x = torch.randn(1, tokens, width, device=check.device, dtype=check.dtype, requires_grad=True)
    leaves = [x, *(p for p in adapted.parameters() if p.requires_grad)]
    torch.nn.init.normal_(leaves[-1], std=width**-0.5)  # B is 0 at first, and A has no gradient then

    def both(run: Callable[[], Tensor]) -> list[Tensor]:
        out = run()
        return [out.detach(), *torch.autograd.grad(out.float().sin().sum(), leaves, allow_unused=True)]

    def autocast() -> Tensor:
        with torch.autocast(check.device.type, dtype=torch.bfloat16, cache_enabled=False):
            return adapted(x)  # type: ignore[no-any-return]

    rows, found = {}, {}
    precision = torch.get_float32_matmul_precision()
    cases = [("base", lambda: base(x)), ("fp32", lambda: adapted(x)), ("tf32", lambda: adapted(x))]
    for name, run in [*cases, *([("autocast", autocast)] if check.dtype == torch.bfloat16 else [])]:
        torch.set_float32_matmul_precision("high" if name == "tf32" else precision)
        if name == "autocast":
            leave_inputs(adapted)
        found[name] = both(run)
        forward = check.timed(lambda run=run: run().detach(), 10)
        whole = check.timed(lambda run=run: both(run), 10)
        rows[name] = {"forward_ms": round(forward * 1e3, 3), "backward_ms": round((whole - forward) * 1e3, 3)}
    torch.set_float32_matmul_precision(precision)
    pairs = zip(("y", "dx", "dA", "dB"), found.get("autocast", found["fp32"]), found["fp32"], strict=True)
    distances = {what: distance(a, b) for what, a, b in pairs}
    check.tell("lora", tokens=tokens, width=width, out=out, rank=rank, **rows, **check.compared(distances))


def head(check: Check) -> None:
    """Compare the head's logits, and what goes back through it, with fp64; time the product of a chunk of rows."""
    from sdft_cli.engine.models.head import Head

    width, words, rows, few = check.size.text["hidden_size"], check.size.text["vocab_size"], 512, 8
    some = min(words, 4096)
    make = partial(torch.randn, device=check.device)
    weight = (make(words, width) * width**-0.5).to(check.dtype)
    hidden, out = make(rows, width).to(check.dtype), make(rows, words)
    engine = Head(weight)
    logits = engine.logits(hidden, out)[:few, :some].clone()
    exact = hidden[:few].double() @ weight[:some].double().T
    dz = torch.zeros(few, words, device=check.device)
    dz[:, :some] = make(few, some)
    back = engine.into_hidden(dz)
    distances = {"logits": _far(logits, exact), "rounded": _far(exact.to(check.dtype), exact)}
    over = {"failed": "logits are rounded"} if not distances["logits"] <= 1e-5 else {}
    check.tell(
        "head",
        rows=rows,
        ms=round(1e3 * check.timed(lambda: engine.logits(hidden, out), 3), 2),
        back_ms=round(1e3 * check.timed(lambda: engine.into_hidden(out), 3), 2),
        **distances,
        **check.compared({"back": _far(back, dz[:, :some].double() @ weight[:some].double())}),
        **over,
    )


def _far(found: Tensor, expected: Tensor) -> float:
    return float(f"{float((found.double() - expected).norm() / expected.norm()):.3g}")


def train_config(check: Check) -> Any:
    """Return the target run's configuration, smaller where the size says so."""
    from sdft_cli.config import load_train_config

    dtype = f"dtype={str(check.dtype).removeprefix('torch.')}"
    return load_train_config("qwen3.5-9b-64k", ["backend=transformers", dtype, *check.size.settings])


def random_model(check: Check, layers: int | None = None, text_only: bool = False) -> Any:
    """Return a frozen model with random weights."""
    from transformers import Qwen3_5Config, Qwen3_5TextConfig

    from sdft_cli.engine.kernels.autocast import autocast_passes, needs_autocast
    from sdft_cli.engine.models.backend_transformers import model_class

    text = {**check.size.text, **({"num_hidden_layers": layers} if layers else {})}
    config: Any = Qwen3_5Config(text_config=text, vision_config=check.size.vision, tie_word_embeddings=False)
    if text_only:
        config = Qwen3_5TextConfig(**text)
    torch.manual_seed(0)
    with torch.device(check.device):
        model = model_class(config).from_config(config, dtype=check.dtype)
    if needs_autocast(check.dtype, check.device):  # as load_model does
        autocast_passes(model, check.dtype)
    return model.eval().requires_grad_(False)


def with_adapter(check: Check, model: Any, config: Any, scale: float) -> Any:
    """Return a peft model whose B is not zero: at B = 0, A has no gradient and a merge does nothing."""
    from sdft_cli.engine.kernels.autocast import leave_inputs, needs_autocast
    from sdft_cli.engine.models.backend_transformers import attach_lora

    adapted = attach_lora(model, config).to(check.device)
    if needs_autocast(check.dtype, check.device):  # as TransformersBackend.load does
        leave_inputs(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return adapted


def load(check: Check) -> None:
    """Build the model and its trainer."""
    from sdft_cli.engine.models.backend_transformers import TransformersBackend

    config = check.config = train_config(check)
    start = time.perf_counter()
    base = random_model(check)
    check.settle()
    built = time.perf_counter() - start
    adapted = with_adapter(check, base, config, 0.002)
    if config.gradient_checkpointing:  # as TransformersBackend.load does
        adapted.enable_input_require_grads()
        base.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.train()
    take(check, TransformersBackend(adapted, check.device))
    text = base.config.get_text_config()
    check.tell(
        "load",
        seconds=round(built, 1),
        parameters=check.shape.parameters,
        adapter_parameters=check.shape.adapter_parameters,
        full_attention_layers=text.layer_types.count("full_attention"),
        attention=text._attn_implementation,
        **check.peak(),
    )


def take(check: Check, backend: Any) -> None:
    """Let a backend be the one that is checked, and make its trainer."""
    from accelerate import Accelerator

    from sdft_cli.engine.plan.model_shape import shape_of
    from sdft_cli.engine.train.sdft_step import Trainer

    config, check.backend = check.config, backend
    backend.segment_tokens = config.segment_tokens
    check.shape = shape_of(backend.base.config, config)
    prompts: Any = types.SimpleNamespace(turn_end_id=check.vocabulary - 3, turn_end_ids=(check.vocabulary - 3,))
    accelerator = Accelerator(cpu=not check.cuda, mixed_precision="no")
    check.trainer = Trainer(config, backend, prompts, accelerator, "adapter")


@contextlib.contextmanager
def shared_as(check: Check, kind: str, segment: int | None = None) -> Iterator[None]:
    """Run the backend with another executor for the while."""
    backend = check.backend
    own = backend.sharing, backend.segment_tokens
    backend.sharing, backend.segment_tokens = kind, segment or own[1]
    try:
        yield
    finally:
        backend.sharing, backend.segment_tokens = own


def sharing(check: Check) -> None:
    """Let the engine choose; then, how far depth-first is from turns alone, beside the floor of this model."""
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.sharing_check import SharingCheck

    seconds = check.timed(lambda: check.tell("sharing", says=choose_sharing(check.backend, "auto", None)))
    compared = SharingCheck(check.backend)
    found = {x.what.replace("-", "_"): x for x in compared.distances("depth_first")}
    distances = {f"{what}_from_alone": x.found for what, x in found.items()}
    floors = {f"{what}_floor": x.floor for what, x in found.items() if x.floor}
    over = [what for what, x in found.items() if not x.small]
    failed = {"failed": f"further than rounding explains: {', '.join(over)}"} if over else {}
    check.tell("sharing", seconds=round(seconds, 1), **distances, **floors, **failed, **check.peak())


@dataclass(frozen=True)
class Turns:
    """Turns of a step, as token ids."""

    students: list[Ids]
    teachers: list[Ids]
    answers: list[Ids]

    def some(self, places: Sequence[int]) -> Turns:
        """Return the turns at these places."""
        parts = (self.students, self.teachers, self.answers)
        return Turns(*([part[i] for i in places] for part in parts))


def one_turn(check: Check, prompt: int, answer: int) -> Turns:
    """Return a turn whose teacher's prompt has so many tokens."""
    student = check.ids(prompt - check.size.reference, 1)
    return Turns([student], [[*student, *check.ids(check.size.reference, 2)]], [check.ids(answer, 3)])


def session_turns(check: Check) -> Turns:
    """Return turns of one session, each prompt beginning with the one before, up to `middle` tokens.

    What follows a turn in the history is the expert's answer and not this one, so answers share nothing.
    """
    size = check.size
    session = check.ids(size.middle, 4)
    cuts = [size.middle * (i + 1) // size.turns for i in range(size.turns)]
    students = [[*session[:cut], *check.ids(12, 50 + i)] for i, cut in enumerate(cuts)]
    teachers = [[*s[:-4], *check.ids(size.reference, 100 + i)] for i, s in enumerate(students)]
    return Turns(students, teachers, [check.ids(size.turn_answer, 200 + i) for i in range(size.turns)])


def measured_step(check: Check, turns: Turns, kind: str) -> dict[str, Any]:
    """Run teacher, student, loss and backward of a step, without sampling and update; its gradient stays."""
    from sdft_cli.engine.passes.decode import Rollout
    from sdft_cli.engine.passes.timing import Phases
    from sdft_cli.engine.train.sdft_step import Example

    record: Any = None  # nothing reads it
    examples = [Example(record, s, t) for s, t in zip(turns.students, turns.teachers, strict=True)]
    rollouts = [Rollout(answer, True) for answer in turns.answers]
    phases, losses = Phases(), list[float]()
    check.fresh()
    with shared_as(check, kind):
        seconds = check.timed(lambda: losses.append(check.trainer.backward(examples, rollouts, phases).loss))
        return {**_step_row(check, turns, kind, seconds, dict(phases.seconds)), "loss": losses[0], **check.peak()}


def _step_row(check: Check, turns: Turns, kind: str, seconds: float, phases: dict[str, float]) -> dict[str, Any]:
    from sdft_cli.engine.plan.work import step_operations

    work = partial(step_operations, check.backend, check.shape)
    ids = (turns.students, turns.teachers, turns.answers, [False] * len(turns.answers), False)
    ran = work(check.config, *ids)
    optim = check.config.optim.model_copy(update={"max_tokens_per_pass": 1})
    plain = check.config.model_copy(update={"gradient_checkpointing": False, "optim": optim})
    with shared_as(check, "none"):
        needed = sum(work(plain, *ids).values())  # each turn alone, nothing computed twice
    total = sum(ran.values())
    return {
        "sharing": kind,
        "turns": len(turns.answers),
        "prompt_tokens": sum(map(len, turns.students)),
        "answer_tokens": sum(map(len, turns.answers)),
        "seconds": round(seconds, 2),
        "phases": {name: round(value, 2) for name, value in phases.items()},
        "phase_tflops": {name: round(ran[name] / phases[name] / 1e12, 1) for name in ran if phases.get(name)},
        "operations": f"{total:.3e}",
        "utilisation": round(total / seconds / check.ceiling, 3),
        "utilisation_of_turns_alone": round(needed / seconds / check.ceiling, 3),
        "predicted_gb": _predicted(check, turns, kind),
    }


def _predicted(check: Check, turns: Turns, kind: Any) -> float:
    """Return the peak that `sdft plan` predicts for what `measured_step` runs."""
    from sdft_cli.engine.plan.memory import Lengths, step_memory

    parts = (turns.students, turns.teachers, turns.answers)
    lengths = [Lengths(*map(len, turn)) for turn in zip(*parts, strict=True)]
    fused = kernel_package("torch_chunk_gated_delta_rule") != "torch"
    phases = step_memory(lengths, check.shape, check.config, kind, fused).phases
    return round(max(phase.total for phase in phases if phase.name != "rollout") / 1e9, 2)


def step(check: Check, prompt: int, answer: int, kind: str) -> None:
    """Measure a step of one turn."""
    found = measured_step(check, one_turn(check, prompt, answer), kind)
    check.tell("step", **found, **({} if math.isfinite(found["loss"]) else {"failed": "the loss is not finite"}))


def gradient_of(check: Check) -> Tensor:
    """Return the adapter's gradient, joined."""
    return torch.cat([p.grad.flatten() for p in check.backend.parameters() if p.grad is not None])


def shared(check: Check) -> None:
    """Run a session's turns in one step; then some of them in one step, and each alone by two executors if time allows.

    Gradients: answers are equally long, so a turn in a step of N has 1/N of the weight that it has alone.
    """
    turns = session_turns(check)
    whole = measured_step(check, turns, "depth_first")
    check.tell("shared", way="all in one step", **whole)
    count = check.size.turns
    few = turns.some(sorted({0, count // 3, 2 * count // 3, count - 1}))
    together = measured_step(check, few, "depth_first")
    expected = gradient_of(check)
    check.tell("shared", way="some in one step", **together)
    for kind in ("none", "depth_first"):
        if check.left() < 2 * whole["seconds"] + 20:
            check.tell("shared", skipped=f"{kind}: no time left")
            return
        seconds, peak, total = 0.0, 0.0, torch.zeros_like(expected)
        for place in range(len(few.answers)):
            alone = measured_step(check, few.some([place]), kind)
            seconds, peak = seconds + alone["seconds"], max(peak, alone.get("peak_gb", 0.0))
            total += gradient_of(check) / len(few.answers)
        found = {
            "way": f"each alone, {kind}",
            "seconds": round(seconds, 2),
            "speed_of_sharing": round(seconds / max(together["seconds"], 0.01), 2),
            "peak_gb": peak,
            "cosine": float(torch.nn.functional.cosine_similarity(total, expected, dim=0)),
        }
        check.tell("shared", **found, **check.compared({"gradient_distance": distance(total, expected)}))


def alone(check: Check) -> None:
    """Run every turn of `shared` alone in a padded pass: what sharing is faster than."""
    turns = session_turns(check)
    found = [measured_step(check, turns.some([i]), "none") for i in range(check.size.turns)]
    seconds, peak = sum(row["seconds"] for row in found), max(row.get("peak_gb", 0.0) for row in found)
    check.tell("alone", turns=len(found), seconds=round(seconds, 2), peak_gb=peak)


def trl(check: Check) -> None:
    """Run some turns by TRL."""
    from benchmarks.gpu_others import trl

    trl(check)


def unsloth(check: Check) -> None:
    """Run some turns of a smaller model by unsloth."""
    from benchmarks.gpu_others import unsloth

    check.backend = check.trainer = None  # frees the large model
    check.fresh()
    unsloth(check)


def decoding(check: Check) -> None:
    """Compare steps over fixed buffers with a pass; on a GPU they are replayed, and what stands in the way is told."""
    from sdft_cli.engine.passes.start_check import steps_trouble

    trouble = steps_trouble(check.backend)
    check.tell("decoding", **({"failed": trouble} if trouble else {"says": "exact over fixed buffers"}))


def rollout(check: Check, lengths: Sequence[int], new: int, case: Any, record: bool = False) -> None:
    """Time decoding steps, by `generate` and over fixed buffers; each is a decode of 4 tokens and one of `new` more.

    The first decode warms up, and holds the prefill and the capture.
    """
    from sdft_cli.engine.train.rollouts import sample_rollouts

    common = check.ids(max(lengths), 5)
    prompts = [[*common[: n - 8], *check.ids(8, 300 + i)] for i, n in enumerate(lengths)]
    for graphs in (False, True):
        check.fresh()
        seconds = []
        check.backend.decoder = "fixed" if graphs else "generate"
        with shared_as(check, "depth_first"):
            for tokens in (4, 4 + new):
                wanted = {"max_new_tokens": tokens, "max_tokens_per_pass": 10_000_000}
                settings = check.config.rollout.model_copy(update=wanted)
                sample = partial(
                    sample_rollouts, check.backend, prompts, settings, [], check.vocabulary - 3, 0, case, record
                )
                seconds.append(check.timed(sample))
        stopped = graphs and check.backend.decoder == "generate"
        check.backend.decoder = "generate"
        per_step = (seconds[1] - seconds[0]) / new
        bound = _bytes_of_a_step(check, lengths, new, case) / check.bandwidth
        check.tell(
            "rollout",
            way="replayed" if graphs else "generate",
            weights=case,
            prompts=len(lengths),
            longest=max(lengths),
            first_4_tokens_s=round(seconds[0], 2),
            ms_per_decoding_step=round(per_step * 1e3, 2),
            times_the_bytes_bound=round(per_step / bound, 2),
            tokens_per_s=round(len(lengths) / per_step, 1),
            **({"failed": "a step cannot be a CUDA graph"} if stopped else {}),
            **check.peak(),
        )


def _bytes_of_a_step(check: Check, lengths: Sequence[int], new: int, case: str) -> float:
    """Return the bytes that a decoding step has to read: weights once, and the cache of every prompt."""
    base = check.backend.base
    size = check.dtype.itemsize
    weights = sum(p.numel() for name, p in base.get_decoder().named_parameters() if "lora_" not in name)
    weights += check.backend.head.weight.numel() - base.get_input_embeddings().weight.numel()
    adapter = 4 * check.shape.adapter_parameters if case == "adapter" else 0
    cache = sum(n + 4 + new / 2 for n in lengths) * check.shape.kv_bytes(size)
    return float(weights * size + adapter + cache + len(lengths) * check.shape.state_bytes(size))


def merge(check: Check) -> None:
    """Write a smaller model and an adapter, merge them, certify the files, load them and compare what they do."""
    from sdft_cli.engine.models.adapters import weights
    from sdft_cli.engine.models.backend_transformers import TransformersBackend, load_model
    from sdft_cli.merging.adapter import Adapter
    from sdft_cli.merging.behaviour_check import compare, failures, log_probabilities
    from sdft_cli.merging.tensor_check import certify
    from sdft_cli.merging.weights import copy_companions, merge_weights
    from sdft_cli.run_folder import CheckPrompt

    check.backend = check.trainer = None  # frees the large model
    check.fresh()
    with tempfile.TemporaryDirectory(dir=check.options.scratch) as folder:
        base, adapter, merged = (Path(folder) / name for name in ("base", "adapter", "merged"))
        merged.mkdir()
        model = random_model(check, check.size.merged_layers)
        model.save_pretrained(base)
        model = with_adapter(check, model, train_config(check), 0.02)
        TransformersBackend(model, check.device).save_adapter(adapter)
        read = partial(log_probabilities, prompts=[CheckPrompt(check.ids(PROMPT, 7), check.ids(ANSWER, 8))])
        trained = read(model.eval(), device=check.device)
        with weights(model, "base"):
            plain = read(model, device=check.device)
        del model
        check.fresh()

        def write() -> None:
            merge_weights(base, Adapter(adapter), merged, check.dtype)
            copy_companions(base, merged, str(check.dtype).removeprefix("torch."))

        seconds = {"merge": round(check.timed(write), 1)}
        start = time.perf_counter()
        found = certify(base, adapter, merged, check.dtype)
        seconds["certify"] = round(time.perf_counter() - start, 1)
        on_disk = read(load_model(str(merged), check.dtype, check.device), device=check.device)
        size = round(sum(file.stat().st_size for file in merged.glob("*.safetensors")) / 1e9, 2)
    behaviour = compare(trained, on_disk, plain)
    problems = [*found.failures, *failures(behaviour)]
    wrong = {"failed": problems[:3]} if problems else {}
    check.tell("merge", size_gb=size, seconds=seconds, adapted=len(found.adapted), behaviour=behaviour, **wrong)


def stages(size: Size) -> list[tuple[str, float, Callable[[Check], None]]]:
    """Return the stages in order: name, seconds that are wanted on a GPU, function."""
    middle, deep, (slow, fast) = size.middle, size.deep, size.decoded
    batch = [middle - size.batch * i for i in range(8)]
    return [
        ("env", 0, env),
        ("attention", 15, attention),
        ("delta", 30, delta),
        ("lora", 5, lora),
        ("head", 5, head),
        ("load", 30, load),
        ("tree", 60, tree),
        ("decoding", 10, decoding),
        ("sharing", 20, sharing),
        ("step", 10, partial(step, prompt=size.warm[0], answer=size.warm[1], kind="depth_first")),
        ("step", 15, partial(step, prompt=middle, answer=size.answer, kind="depth_first")),
        ("step", 15, partial(step, prompt=middle, answer=size.answer, kind="none")),
        ("shared", 30, shared),
        ("rollout", 35, partial(rollout, lengths=[middle], new=slow, case="adapter")),
        ("rollout", 25, partial(rollout, lengths=[middle], new=fast, case="merged")),
        ("step", 30, partial(step, prompt=deep, answer=size.answer, kind="depth_first")),
        ("trl", 40, trl),
        ("alone", 40, alone),
        ("rollout", 40, partial(rollout, lengths=batch, new=slow, case="merged")),
        ("rollout", 40, partial(rollout, lengths=[deep], new=slow, case="merged", record=True)),
        ("step", 40, partial(step, prompt=deep, answer=size.answer, kind="none")),
        ("merge", 60, merge),  # frees the large model, as the next one does
        ("unsloth", 90, unsloth),
    ]


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="9b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for everything")
    parser.add_argument("--out", help="append the lines to this file, too")
    parser.add_argument("--scratch", help="folder for the files of `merge` (15 GB)")
    parser.add_argument("--only", default="", help="stages, comma-separated; env and load always run")
    parser.add_argument("--bf16", action="store_true", help="on a CPU too")
    parser.add_argument("--autotune", type=int, default=1, help="configurations that Triton tries per kernel; 0: all")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the check; return the exit code, 1 if anything failed."""
    options = options_of(arguments)
    if options.autotune:
        limit_autotuning(options.autotune)
    check = Check(options)
    wanted = {*options.only.split(","), "env", "load"} if options.only else None
    for name, needs, stage in stages(check.size):
        if wanted is None or name in wanted:
            check.run(name, needs if check.size is NINE else 0, stage)
    check.tell("end", left_s=round(check.left(), 1), failures=check.failures)
    return int(check.failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
