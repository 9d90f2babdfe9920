"""TRL's side of the side-by-side measurements: `trl.experimental.sdft.SDFTTrainer`, set to do what this engine does.

Every setting, and why it is the fair one (read in the source of TRL 1.15.0):

`distillation_mode="full_logits"`: the divergence over the whole vocabulary, as ours; TRL's default is top 100.
`distillation_alpha=1.0`: `F.kl_div(log q, log p, log_target=True)`, which is KL(student||teacher), as ours. The test
    `tests/benchmarks/test_trl_side.py` compares loss and gradient on the same rollouts.
`distillation_is_clip=None`: ours has no importance weights.
`num_generations=1`, `num_iterations=1`: one rollout of each turn, one update.
`teacher_model_kind="base"` and a peft model: the teacher is the same base with the adapter off; no second copy.
`max_prompt_length=None`: nothing is cut (the default cuts at 512 tokens). The ids that a step worked on are compared
    with those of the uncut prompts.
`per_device_train_batch_size=B`, `gradient_accumulation_steps=G/B`: G turns of one optimiser step.
`steps_per_generation=D/B`: D turns are decoded in one batch, by TRL's default all G of them. A smaller D pads less,
    because the rows of a batch stay padded to its longest prompt in every later pass. B and D are those of the fastest
    of the settings that a pilot tries. D divides G, so TRL scores no rollout a second time (`_compute_rollout_logps`).
`shuffle_dataset=False`: the first G rows are a short warm-up step, the next G the measured turns.
`temperature=1.0`, `top_p=1.0`, `top_k=0` on both sides: no filter to pay for; TRL also divides its logits by the
    temperature.
`max_completion_length=C` and no id that ends a rollout: both sides decode exactly C tokens, without a processor.
`gradient_checkpointing=False`: TRL's default is on and costs one more forward pass; ours is off too.
`bf16=False`, `use_cpu=True`, an fp32 model: the same type of numbers; TRL's default is bf16.
model: loaded by this project's code, so the same class and the same attention (sdpa).
LoRA: the same rank, alpha and seven projections, dropout 0.
`optim="adamw_torch"`: the same AdamW with the same rate, betas, eps, decay and clipping; a constant rate.
logging, saving, evaluation, progress bar, trackers: off. TRL has no padding-free path here.

A step is timed from `on_step_begin` to `on_step_end`: tokenisation, generation, teacher, student, loss, backward,
clipping, optimiser.

TRL composes the teacher's prompt from the last message and refuses a prompt that does not end in a user's. So a turn's
context is recast: assistant turns are the text that the model would write (calls included), and the last message has
the role of the user. The teacher's text is our own teacher message, put behind that last message by TRL's template, so
both prompts have as many tokens as ours but for a few (`MAX_DIFFERENCE`; both counts are reported).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_side import SHARED
from benchmarks.side_by_side import Job, Watch
from benchmarks.turns import read_turns
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer, open_prompts
from sdft_cli.records import Record, read_dataset

MAX_DIFFERENCE = 16
"""Tokens by which a prompt may be longer or shorter on TRL's side."""


def import_trl() -> Any:
    """Import TRL's SDFT without its notice that the module is experimental."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl.experimental.sdft as module

    return module


def row(prompts: ChatPrompts, record: Record) -> dict[str, Any]:
    """Return a record as TRL takes it: `prompt`, which ends in a user message, and `privileged_context`."""

    def content(message: Any) -> str:
        return prompts.reference_text(message) if message.role == "assistant" else message.content

    messages = [{"role": m.role, "content": content(m)} for m in record.context]
    messages[-1]["role"] = "user"
    (part,) = prompts.teacher.parts  # TRL takes one text
    return {"prompt": messages, "privileged_context": part.filled(prompts.reference_text(record.reference))}


def make_trainer(
    model: str,
    rows: Sequence[dict[str, Any]],
    tools: list[dict[str, Any]],
    *,
    turns: int,
    batch: int,
    decoded: int,
    rollout_tokens: int,
    dtype: str,
    lora_rank: int,
    folder: Path,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Return an `SDFTTrainer` with the settings of this module, over these rows in this order."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback

    from sdft_cli.config import load_train_config
    from sdft_cli.engine.models.backend_transformers import load_model
    from sdft_cli.engine.models.disk_names import unloaded
    from sdft_cli.engine.models.targets import target_names

    sdft = import_trl()
    if turns % decoded or decoded % batch:
        raise SystemExit(f"{turns} turns cannot be decoded {decoded} at a time and scored {batch} at a time.")
    config = sdft.SDFTConfig(
        output_dir=str(folder),
        distillation_mode="full_logits",
        distillation_alpha=1.0,
        distillation_is_clip=None,
        num_generations=1,
        num_iterations=1,
        teacher_model_kind="base",
        max_prompt_length=None,
        max_completion_length=rollout_tokens,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=turns // batch,
        steps_per_generation=decoded // batch,
        shuffle_dataset=False,
        temperature=SHARED["temperature"],
        top_p=SHARED["top_p"],
        top_k=0,
        chat_template_kwargs={"tools": tools, "enable_thinking": False},
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        optim="adamw_torch",
        learning_rate=SHARED["learning_rate"],
        weight_decay=SHARED["weight_decay"],
        adam_beta1=SHARED["betas"][0],
        adam_beta2=SHARED["betas"][1],
        adam_epsilon=SHARED["eps"],
        max_grad_norm=SHARED["max_grad_norm"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_steps=len(rows) // turns,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "left"
    lora = LoraConfig(
        r=lora_rank,
        lora_alpha=2 * lora_rank,
        lora_dropout=0.0,
        target_modules=list(target_names(unloaded(model), load_train_config("cpu-demo").lora.target_modules)),
        bias="none",
        task_type="CAUSAL_LM",
    )
    trainer = sdft.SDFTTrainer(
        model=load_model(model, getattr(torch, dtype), torch.device("cpu")),
        args=config,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    never_stop(trainer)
    return trainer


def never_stop(trainer: Any) -> None:
    """Let rollouts run to their cap: no id ends them. `generate` would else take one from the model's own settings."""
    trainer.eos_token_ids = []
    trainer.generation_config.eos_token_id = None
    trainer.model.get_base_model().generation_config.eos_token_id = None


def clock(watch: Watch, step: int) -> Any:
    """Return a callback that times optimiser step `step` (from 0), and keeps what the step worked on."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        rollout_seconds = 0.0
        kl_per_token = 0.0
        batches: list[dict[str, Any]]
        trainer: Any

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            never_stop(self.trainer)  # the Trainer has just copied the tokenizer's id into the model's settings

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                self.trainer._metrics["train"].clear()
                self.batches = []
                watch.start()

        def on_generation_prompts_selected(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_self_distillation_batch_prepared(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                self.rollout_seconds += time.perf_counter() - self.began
                self.batches.append({k: kwargs[k] for k in ("prompt_ids", "completion_ids", "teacher_input_ids")})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step + 1:
                watch.stop()
                values = self.trainer._metrics["train"]["sdft/distillation_loss"]
                self.kl_per_token = sum(values) / len(values)

    return Clock()


def prompt_ids(trainer: Any, rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return what TRL makes of the rows, student and teacher, one at a time."""
    builder = trainer.teacher_context_builder
    students = [trainer._tokenize_prompts([r["prompt"]])[0] for r in rows]
    teachers = [builder._compose_teacher_prompt(r["prompt"], r["privileged_context"]) for r in rows]
    return students, [trainer._tokenize_prompts([t])[0] for t in teachers]


def open_trainer(job: Job, watch: Watch | None = None) -> tuple[Any, Any, list[Record], list[dict[str, Any]]]:
    """Load everything that a step needs; return the trainer, its clock, the turns' records and their rows."""
    data = read_dataset(Path(job["data"]))
    prompts = open_prompts(job["model"], data.manifest)
    records, hello = read_turns(data, job["turns"])
    rows = [row(prompts, record) for record in records]
    ticking = [clock(watch, 1)] if watch else []
    trainer = make_trainer(
        job["model"],
        [row(prompts, hello)] * len(rows) + rows,
        [tool.as_openai() for tool in records[0].tools],
        turns=len(rows),
        batch=job["batch"],
        decoded=job["decoded"],
        rollout_tokens=job["rollout_tokens"],
        dtype=job["dtype"],
        lora_rank=job["lora_rank"],
        folder=Path(job["data"]).parent / "trl",
        callbacks=ticking,
    )
    for callback in ticking:
        callback.trainer = trainer
    return trainer, ticking[0] if ticking else None, records, rows


def check_step(
    job: Job, batches: Sequence[dict[str, Any]], students: list[list[int]], teachers: list[list[int]]
) -> None:
    """Stop if a prompt was cut, or a rollout has not the length that was forced."""
    length = job["rollout_tokens"]
    shapes = [tuple(batch["completion_ids"].shape) for batch in batches]
    if sum(rows for rows, _ in shapes) != job["turns"] or {width for _, width in shapes} != {length}:
        raise SystemExit(f"trl: rollouts of shapes {shapes}")
    for name, ids, end in (("prompt_ids", students, None), ("teacher_input_ids", teachers, -length)):
        rows = [row for batch in batches for row in batch[name]]
        for got, whole in zip(rows, ids, strict=True):
            if got[:end][-len(whole) :].tolist() != whole:
                raise SystemExit(f"trl: {name} of a step are not those of the uncut prompt")


def check_lengths(records: Sequence[Record], students: list[list[int]], teachers: list[list[int]]) -> None:
    """Stop if a prompt is more than a few tokens longer or shorter than ours."""
    for record, student, teacher in zip(records, students, teachers, strict=True):
        ours, other = record.row.prompt_tokens, record.row.teacher_prompt_tokens
        if max(abs(ours - len(student)), abs(other - len(teacher))) > MAX_DIFFERENCE:
            raise SystemExit(
                f"{record.record_id}: prompts of {ours} and {other} tokens here, of {len(student)} and "
                f"{len(teacher)} on TRL's side; the sides would not do the same work."
            )


def step(job: Job) -> dict[str, Any]:
    """Run one whole optimiser step of `SDFTTrainer.train`, after a short one that is not measured."""
    watch = Watch()
    trainer, ticking, records, rows = open_trainer(job, watch)
    students, teachers = prompt_ids(trainer, rows)
    check_lengths(records, students, teachers)
    watch.rebase()
    trainer.train()
    check_step(job, ticking.batches, students, teachers)
    return {
        "seconds": watch.seconds,
        "rollout_seconds": ticking.rollout_seconds,
        "peak_MB": watch.peak_MB,
        "loaded_MB": watch.base_MB,
        "kl_per_token": ticking.kl_per_token,
        "batch": job["batch"],
        "decoded": job["decoded"],
        "student_prompt_tokens": [len(p) for p in students],
        "teacher_prompt_tokens": [len(p) for p in teachers],
    }


def generation(job: Job) -> dict[str, Any]:
    """Sample one rollout per turn as `SDFTTrainer` does: one left-padded batch, the adapter on."""
    trainer, _, records, rows = open_trainer(job)
    trainer.model.train()
    students, teachers = prompt_ids(trainer, rows)
    check_lengths(records, students, teachers)
    watch = Watch()
    trainer._generate_transformers([students[0][-64:]] * len(rows))
    with watch():
        _, completions = trainer._generate_transformers(students)
    if {len(ids) for ids in completions} != {job["rollout_tokens"]}:
        raise SystemExit("trl: rollouts are not of the length that was forced")
    return {
        "seconds": watch.seconds,
        "peak_MB": watch.peak_MB,
        "loaded_MB": watch.base_MB,
        "student_prompt_tokens": [len(p) for p in students],
    }
