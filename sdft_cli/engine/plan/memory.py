"""Peak memory of one training step, by part and by phase, in closed form. Bytes throughout; e is the dtype's size.

What is alive when, as `engine/train/sdft_step.py` runs it (H hidden, I intermediate, h = heads x head size, k =
key-value heads x head size, V vocabulary, N tokens with loss, T tokens of a forward pass with its padding, r rank):

**Always**: frozen weights; the adapter in fp32 three times (weights, two AdamW moments), four with an average. Its
gradient lives from the first backward pass to the update.

**Kept for the backward pass, per token of a layer** (adapters on all seven matrices; frozen matrices keep no input):

| what                                          | fp32             | 16 bits, under autocast               |
| --------------------------------------------- | ---------------- | ------------------------------------- |
| inputs of the two norms                       | 2 x 4 H          | 2 x 4 H (fp32 copies)                 |
| inputs of the adapters of q k v, of gate up   | 4 H + 4 H        | 2 H + 2 H                             |
| attention: q, k, v, output, log-sum-exp       | 4 (2 h + 2 k)    | 2 (2 h + 2 k); with a mask 4 h        |
| input of the adapter of o                     | the output above | the output above                      |
| MLP: gate, silu(gate), up; their product      | 12 I + 4 I       | 6 I + 2 I                             |
| inner states of the adapters                  | 4 r each         | 2 r each                              |

Under autocast each adapter's weights are kept in 16 bits, too. A CPU has none (`engine/kernels/autocast.py`): in bf16
it keeps fp32 copies of adapted inputs, which are not counted.

A mask of T x T booleans, where there is padding, becomes numbers of e bytes in each layer that attends, and each layer
keeps its own; packed passes have none. With gradient checkpointing only e H per token and layer is kept, and one layer
at a time is computed again.

**Depth-first**: what is kept is that of one segment of tokens; beside it keys and values of the longest path, as
numbers of e bytes and as fp32 gradients, in fp32 one mask of block x group x path (flash attention, in 16 bits, has
none), and the recurrent states of every boundary twice. There is no checkpointing: the segments are it.

**Loss**: three fp32 buffers of a chunk's rows x V (jsd four, top-k two; one more where logits have a cap), the gradient
of a chunk's logits in 16 bits where the head has them, and three of N x H.

**Rollout**: the cache is prompt + cap long from the beginning, in one buffer per layer
(`engine/passes/decode_cache.py`). Prefill of a batch is one pass; shared prefixes are computed in passes of
`PREFILL_TOKENS` (packed) and forked, or along a path.

What is not counted: allocator fragmentation, the CUDA context, library workspaces, host memory.
`python -m benchmarks.bench_plan` compares these numbers with peaks measured on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdft_cli.config import DistillSettings, TrainConfig
from sdft_cli.engine.models.backend import Backend, Sharing
from sdft_cli.engine.models.device_memory import free_memory
from sdft_cli.engine.objective.loss import spare_buffers
from sdft_cli.engine.passes.attention import PATH_BLOCK
from sdft_cli.engine.passes.executors import PREFILL_TOKENS
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.engine.plan.model_shape import BYTES, FULL, LINEAR, SLIDING, Block, Shape, shape_of
from sdft_cli.errors import UsageError
from sdft_cli.records import RecordRow

NF4_BYTES = 0.516
"""Of a 4-bit weight: half a byte, and per block of 64 an 8-bit scale with its own fp32 scale per 256."""
SAMPLING_BYTES = 36
"""Per sequence and token of the vocabulary while one is drawn: fp32 logits, sorted values, indices, sums, masks."""
CHUNK = 64
"""Tokens of a chunk of the gated delta rule."""


@dataclass(frozen=True)
class Lengths:
    """A record in tokens: both prompts, and the trajectory that is assumed for it."""

    student: int
    teacher: int
    rollout: int


@dataclass(frozen=True)
class Forward:
    """A forward pass: its tokens with padding, its sequences, and the entries of its attention mask (0: none)."""

    tokens: int
    rows: int
    mask: int


def padded(lengths: Sequence[int]) -> Forward:
    """Return the padded pass over sequences; no mask is made where there is no padding."""
    width, rows = max(lengths), len(lengths)
    return Forward(rows * width, rows, rows * width * width if min(lengths) < width else 0)


def packed(lengths: Sequence[int], distinct: int | None = None) -> Forward:
    """Return the packed pass over sequences with so many distinct tokens (by default they share nothing)."""
    tokens = sum(lengths) if distinct is None else distinct
    return Forward(tokens, len(lengths), 0)


@dataclass(frozen=True)
class Phase:
    """What is alive at the worst moment of a phase of a step: part -> bytes."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """The phases of the longest step."""

    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """The phase that needs the most: the peak is the largest phase, not their sum."""
        return max(self.phases, key=lambda phase: phase.total)


def weight_bytes(shape: Shape, config: TrainConfig) -> int:
    """Bytes of the frozen weights; in 4 bits only the matrices of the language trunk are."""
    size = BYTES[config.dtype]
    if not config.load_in_4bit:
        return shape.parameters * size
    return int(shape.matrix_parameters * NF4_BYTES) + (shape.parameters - shape.matrix_parameters) * size


def static_parts(shape: Shape, config: TrainConfig, gradients: bool) -> dict[str, int]:
    """What is alive all the time, and the gradients where there are any."""
    adapter = 4 * shape.adapter_parameters
    parts = {"frozen weights": weight_bytes(shape, config), "adapter": adapter, "AdamW moments": 2 * adapter}
    if gradients:
        parts["gradients"] = adapter
    if config.teacher.keeps_adapter:
        parts["averaged adapter"] = adapter
    return parts


def _inputs(block: Block, names: Sequence[str], width: int, size: int) -> int:
    """The input that the adapters of some matrices keep, one tensor for all of them."""
    return size * width * any(name in block.adapted for name in names)


def _attention_kept(shape: Shape, block: Block, size: int, masked: bool) -> int:
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = size * (2 * wide + 2 * (wide if masked else narrow)) + 4 * shape.heads
    total += _inputs(block, ("q_proj", "k_proj", "v_proj", "qkv_proj"), shape.hidden, size)
    if block.norms_heads:
        total += 4 * (wide + narrow)
    if block.gated:
        total += size * wide
    if "o_proj" in block.adapted and block.gated:
        total += size * wide
    return total


def _delta_net_kept(shape: Shape, block: Block, size: int, fused: bool) -> int:
    """The gated delta rule with fused kernels, or as the reference implementation of transformers does it in fp32.

    Reference: per value head 4 1/3 chunk matrices, 19 vectors and one state per chunk, all in fp32. Fused: what its
    backward pass needs (convolution before and after, q, k, v, decays, one chunk matrix, output, gate), on paper.
    """
    net = shape.delta_net
    assert net is not None, "a block of linear attention has its sizes"
    values = net.value_heads * net.value_dim
    total = 2 * size * net.features + _inputs(block, ("in_proj_qkv", "in_proj_z"), shape.hidden, size)
    total += size * values if "out_proj" in block.adapted else 0
    if not fused:
        vectors = 19 * (net.key_dim + net.value_dim) / 2
        per_head = 13 / 3 * CHUNK + vectors + net.key_dim * net.value_dim / CHUNK
        return total + int(4 * net.value_heads * per_head)
    heads = net.value_heads * (2 * net.key_dim + net.value_dim + CHUNK)
    return total + size * heads + 8 * net.value_heads + values * (4 + 2 * size)


def kept_bytes(shape: Shape, block: Block, size: int, masked: bool, fused: bool) -> int:
    """Bytes that one layer keeps for the backward pass, per token, without the mask (see the module's table)."""
    mixer = (
        _delta_net_kept(shape, block, size, fused)
        if block.kind == LINEAR
        else _attention_kept(shape, block, size, masked)
    )
    wide = block.linears["down_proj"][0]
    mlp = _inputs(block, ("gate_proj", "up_proj", "gate_up_proj"), shape.hidden, size) + 3 * size * wide
    mlp += size * wide if "down_proj" in block.adapted else 0
    return mixer + mlp + 2 * 4 * (shape.hidden + 1) + size * shape.rank * len(block.adapted)


def _forward_bytes(shape: Shape, size: int, adapter: bool, fused: bool) -> int:
    """Bytes per token alive inside a layer without gradient: the residual, the normed states and the MLP's buffers."""
    mlp = shape.intermediate * size * (4 if adapter else 3)
    mixer = size * (4 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    for block in shape.blocks:
        if block.kind == LINEAR:
            mixer = max(mixer, _delta_net_kept(shape, block, size, fused) // 2)
    return 2 * size * shape.hidden + max(mlp, mixer)


def _mask_bytes(shape: Shape, mask: int, size: int, copies: int) -> int:
    return mask * (1 + size * min(copies, shape.layers(FULL, SLIDING)))


def teacher_phase(shape: Shape, config: TrainConfig, forward: Forward, answers: int, fused: bool, first: bool) -> Phase:
    """A forward pass of the teacher, with its states at all `answers` tokens of the step; `first`: no gradients yet."""
    size = BYTES[config.dtype]
    adapter = config.teacher.wears_adapter
    parts = static_parts(shape, config, gradients=not first)
    parts["activations"] = forward.tokens * _forward_bytes(shape, size, adapter, fused)
    parts["attention mask"] = _mask_bytes(shape, forward.mask, size, 1)
    parts["hidden states"] = answers * shape.hidden * size
    return Phase("teacher", parts)


def loss_bytes(settings: DistillSettings, answers: int, vocabulary: int, size: int, softcap: bool = False) -> int:
    """Bytes of a chunk of logits in the loss: its fp32 buffers, and their gradient in the type of a 16-bit head.

    On a CPU the buffers besides the logits are smaller: they hold a few rows.
    """
    rows = min(settings.chunk_rows, answers) * vocabulary
    gradient = size * rows if size < 4 else 0
    return 4 * rows * (2 + spare_buffers(settings, vocabulary) + softcap) + gradient


def student_phase(shape: Shape, config: TrainConfig, forward: Forward, answers: int, fused: bool) -> Phase:
    """The student's forward pass, the loss, and the backward pass, which begins with everything still kept."""
    size, hidden = BYTES[config.dtype], shape.hidden
    layers = [kept_bytes(shape, b, size, forward.mask > 0, fused) for b in shape.blocks]
    parts = static_parts(shape, config, gradients=True)
    recomputed, masks = 0, shape.layers(FULL, SLIDING)
    casts = size * shape.adapter_parameters if size < 4 else 0
    if config.gradient_checkpointing:
        casts //= sum(b.count for b in shape.blocks)
        parts["layer inputs"] = forward.tokens * size * hidden * sum(b.count for b in shape.blocks)
        recomputed, masks = forward.tokens * max(layers), 1
    else:
        each = zip(layers, shape.blocks, strict=True)
        parts["kept activations"] = forward.tokens * sum(kept * b.count for kept, b in each)
    if casts:
        parts["adapter in 16 bits"] = casts
    parts["final norm"] = forward.tokens * 4 * hidden
    parts["attention mask"] = _mask_bytes(shape, forward.mask, size, masks)
    parts["hidden states"] = 2 * answers * hidden * size
    loss = loss_bytes(config.distill, answers, shape.vocabulary, size, shape.softcap) + answers * hidden * size
    backward = forward.tokens * (2 * size * shape.intermediate + 8 * hidden) + 2 * answers * hidden * size + recomputed
    parts["loss buffers" if loss > backward else "backward buffers"] = max(loss, backward)
    return Phase("student and backward", parts)


def rollout_phase(
    shape: Shape,
    config: TrainConfig,
    prompts: Sequence[int],
    new_tokens: int,
    sharing: Sharing,
    fused: bool,
    distinct: int | None = None,
) -> Phase:
    """One batch of rollouts: merged weights, prefill or forked prefixes, then the cache at its longest.

    `distinct` are the tokens of the prompts' tree (packed); by default as many as a pass may have, an upper bound.
    """
    size, width, rows = BYTES[config.dtype], max(prompts), len(prompts)
    merged = config.rollout.weights != "adapter"
    parts = static_parts(shape, config, gradients=False)
    if merged:
        parts["merged sampling weights"] = shape.adapted_parameters * size
    token, state = shape.kv_bytes(size), rows * shape.state_bytes(size)
    activations = _forward_bytes(shape, size, not merged, fused)
    cache = rows * (width + new_tokens) * token + state
    if sharing == "depth_first" and min(prompts) > 1:
        segment = min(config.segment_tokens, width)
        path = path_parts(shape, config, width, gradients=False)
        before = {"key-value cache": cache, "activations": segment * activations, **path}
    elif sharing == "packed" and min(prompts) > 1:
        tree = distinct or max(width, min(PREFILL_TOKENS, sum(prompts)))
        before = {"key-value cache": cache + tree * token, "activations": tree * activations}
    else:
        prefill = padded(prompts)
        before = {
            "key-value cache": cache,
            "activations": prefill.tokens * activations,
            "attention mask": _mask_bytes(shape, prefill.mask, size, 1),
        }
    decode = {"key-value cache": cache, "sampling": rows * shape.vocabulary * SAMPLING_BYTES}
    worst = max((before, decode), key=lambda part: sum(part.values()))
    return Phase("rollout", {**parts, **worst})


def optimizer_phase(shape: Shape, config: TrainConfig) -> Phase:
    """The update: PyTorch's AdamW makes one temporary of the adapter's size."""
    return Phase("optimizer", {**static_parts(shape, config, gradients=True), "update": 4 * shape.adapter_parameters})


def path_parts(shape: Shape, config: TrainConfig, longest: int, gradients: bool) -> dict[str, int]:
    """What a depth-first walk holds besides a segment's activations, for paths of up to `longest` tokens."""
    size, segment = BYTES[config.dtype], min(config.segment_tokens, longest)
    boundaries = 1 + -(-longest // segment)
    states = boundaries * shape.state_bytes(size) * (2 if gradients else 1)
    groups = shape.heads // shape.kv_heads
    return {
        "keys and values of the path": longest * shape.kv_bytes(size),
        **({"their gradients": longest * shape.kv_bytes(4)} if gradients else {}),
        **({"recurrent states": states} if states else {}),
        "attention mask": groups * PATH_BLOCK * longest * size if longest > segment and size == 4 else 0,
    }


def path_teacher_phase(shape: Shape, config: TrainConfig, longest: int, answers: int, fused: bool) -> Phase:
    """The teacher's states, depth-first: as `teacher_phase`, for segments."""
    one = padded([min(config.segment_tokens, longest)])
    phase = teacher_phase(shape, config, one, answers, fused, first=True)
    return Phase("teacher", {**phase.parts, **path_parts(shape, config, longest, gradients=False)})


def path_student_phase(shape: Shape, config: TrainConfig, longest: int, answers: Sequence[int], fused: bool) -> Phase:
    """The student, depth-first: as `student_phase` for one segment and one turn, the teacher's states of all turns."""
    kept = config.model_copy(update={"gradient_checkpointing": False})
    one = padded([min(config.segment_tokens, longest)])
    phase = student_phase(shape, kept, one, max(answers), fused)
    phase.parts["hidden states"] += (sum(answers) - max(answers)) * shape.hidden * BYTES[config.dtype]
    layer = longest * 2 * shape.kv_heads * shape.head_dim * BYTES[config.dtype]
    return Phase(phase.name, {**phase.parts, **path_parts(shape, config, longest, True), "one layer's gradient": layer})


def rollout_passes(step: Sequence[Lengths], config: TrainConfig) -> list[list[int]]:
    """Cut the records of a step into batches as `sample_rollouts` does."""
    lengths = [x.student + config.rollout.max_new_tokens for x in step]
    return padded_passes(lengths, config.rollout.max_tokens_per_pass)


def _forwards(lengths: Sequence[int], config: TrainConfig, pack: bool) -> Iterator[tuple[Sequence[int], Forward]]:
    """Yield the passes over the sequences of a step: which ones, and their size; packed, all in one tree."""
    most = config.optim.max_tokens_per_pass
    for rows in [range(len(lengths))] if pack else padded_passes(lengths, most):
        some = [lengths[i] for i in rows]
        yield rows, packed(some, min(sum(some), max(most, *some))) if pack else padded(some)


def step_memory(
    step: Sequence[Lengths],
    shape: Shape,
    config: TrainConfig,
    sharing: Sharing,
    fused: bool = True,
) -> Memory:
    """Return the phases of one optimiser step, each at the pass of the step that needs the most.

    With packed prefixes the size of a tree is not known without its tokens: one that is as large as
    `optim.max_tokens_per_pass` allows is assumed, an upper bound.
    """
    total = sum(x.rollout for x in step)
    if sharing == "depth_first":
        longest = max(x.teacher + x.rollout for x in step), max(x.student + x.rollout for x in step)
        teacher = [path_teacher_phase(shape, config, longest[0], total, fused)]
        student = [path_student_phase(shape, config, longest[1], [x.rollout for x in step], fused)]
    else:
        pack = sharing == "packed"
        sequences = [x.teacher + x.rollout for x in step]
        teacher = [
            teacher_phase(shape, config, forward, total, fused, first=True)
            for _, forward in _forwards(sequences, config, pack)
        ]
        student = []
        for rows, forward in _forwards([x.student + x.rollout for x in step], config, pack):
            own = sum(step[i].rollout for i in rows)
            phase = student_phase(shape, config, forward, own, fused)
            phase.parts["hidden states"] += (total - own) * shape.hidden * BYTES[config.dtype]
            student.append(phase)
    batches = [[step[i].student for i in rows] for rows in rollout_passes(step, config)]
    new = config.rollout.max_new_tokens
    rollouts = [rollout_phase(shape, config, b, new, sharing, fused) for b in batches]
    worst = [max(phases, key=lambda phase: phase.total) for phases in (rollouts, teacher, student)]
    return Memory((*worst, optimizer_phase(shape, config)))


def packed_room(backend: Backend, rows: Sequence[RecordRow], config: TrainConfig) -> str | None:
    """Say why the largest packed pass of these records would not fit into the memory that is free, or None."""
    longest = max(
        max(r.prompt_tokens, r.teacher_prompt_tokens) + config.longest_answer(r.reference_tokens) for r in rows
    )
    several = min(config.optim.turns_per_step, len(rows)) * config.rollout.per_record > 1
    tokens = max(longest, config.optim.max_tokens_per_pass if several else 0)
    try:
        shape = shape_of(backend.base.config, config)
    except UsageError:  # a kind of model whose memory is not modelled
        return None
    forward = packed([tokens - 1, 1] if several else [tokens])
    phase = student_phase(shape, config, forward, tokens, fused=True)
    loaded = static_parts(shape, config, gradients=False)
    need = phase.total - loaded["frozen weights"] - loaded["adapter"]
    free = free_memory(backend.device)
    if free is None or need <= free:
        return None
    return f"a packed pass of {tokens} tokens takes {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
