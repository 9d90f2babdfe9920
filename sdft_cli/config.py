"""One pydantic model per stage. Unknown keys are refused; every constant that shapes a result is here.

Help and `docs/settings.md` (`make settings`) are made of the descriptions: no capital, no period, null last.
Profiles are YAML files in `templates/profiles/`; command-line flags and `--set key=value` override them. The resolved
configuration is written into the manifest or the run folder, and later stages read it from there. No torch here.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import date
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from sdft_cli.choices import BACKENDS, DIVERGENCES, TOKEN_WEIGHTS
from sdft_cli.errors import UsageError, did_you_mean
from sdft_cli.resources import resource, resource_text
from sdft_cli.texts import parse_yaml, read_text

T = TypeVar("T", bound=BaseModel)
PrefixSharing = Literal["auto", "packed", "depth_first", "none"]
if TYPE_CHECKING:
    from typing import TypeAlias

    DivergenceName: TypeAlias = str
    WeightsName: TypeAlias = str
    BackendName: TypeAlias = str
else:
    DivergenceName = Literal[tuple(DIVERGENCES)]
    WeightsName = Literal["none", *TOKEN_WEIGHTS]
    BackendName = Literal["auto", *BACKENDS]


OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML 1.1 reads off as false."""
Action = Annotated[Literal["off", "warn", "stop"], OFF]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class PrepareConfig(_Config):
    """How sessions become records."""

    source: str = Field(
        description="a trace file, a folder of them, a Hub dataset id (owner/name), or an address (s3://...)"
    )
    revision: str | None = Field(
        None, description="Hub revision of the source, whose commit is recorded; null: the main branch"
    )
    model: str = Field(
        "unsloth/Qwen3.5-9B",
        description="the model that will be trained, for its tokenizer and template: folder, Hub id or smollm2-135m",
    )
    max_seq_tokens: int = Field(65_536, gt=0, description="cap on the teacher's prompt and the expert's turn, tokens")
    max_prompt_tokens: int = Field(57_344, gt=0, description="cap on the teacher's prompt, tokens")
    max_rollout_tokens: int = Field(8_192, gt=0, description="cap on the expert's turn, tokens")
    max_unseen_tokens: int = Field(
        60_000,
        gt=0,
        description="a session is rejected whose first prompts had more tokens that its file does not hold",
    )
    validation_fraction: float = Field(0.05, ge=0, lt=1, description="share of session groups held out")
    split_by: Literal["session", "project"] = Field(
        "session", description="what is held out whole: sessions (with their copies), or all sessions of a project"
    )
    redact: bool = Field(True, description="replace secrets, e-mail addresses and user names by pseudonyms")
    workers: int = Field(1, ge=1, description="processes that count tokens; the output is the same for any number")
    engine: Literal["local", "ray"] = Field(
        "local", description="who counts tokens: processes of this machine, or the nodes of a Ray cluster"
    )
    ray_address: str | None = Field(
        None,
        description="the cluster of engine ray, as host:6379, ray://host:10001 or auto; null: one of `workers` "
        "processes is started here",
    )
    seed: int = Field(0, ge=0, description="seed of the split")
    limit_sessions: int | None = Field(None, gt=0, description="read at most this many sessions; null: all")
    branches: Literal["last", "all"] = Field(
        "last", description="turns of branches that were rewound: rejected, or (all) records too, each in its context"
    )
    tools: Literal["observed", "all"] = Field(
        "observed", description="built-in tools in the prompts: those observed in the source, or all"
    )
    system_prompt: Literal["recorded", "none"] = Field(
        "recorded",
        description="none drops the system messages that a session begins with, also those of plain conversations",
    )
    chat_template: str | None = Field(
        None,
        description="the chat template of all later stages: a name in templates/chat/, or a .jinja file; null: the "
        "model's own",
    )
    template_date: str | None = Field(
        None,
        description="the date that a chat template which asks for it is told, always, as YYYY-MM-DD; null: today's",
    )
    parallel_calls: Literal["keep", "split"] = Field(
        "keep",
        description="split makes consecutive turns, each with its result, of a turn with several calls, for templates "
        "that write one call a turn",
    )
    teacher_template: str = Field(
        "expert_reference", description="the teacher's wording: a name in templates/teacher/, or a .txt file"
    )
    license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="licence of the records on their card, as the Hub writes it (mit, cc-by-4.0, other); null: that of "
        "the source's data card, if it has one",
    )

    @field_validator("template_date")
    @classmethod
    def _is_date(cls, text: str | None) -> str | None:
        try:
            return text and date.fromisoformat(text).isoformat()
        except ValueError:
            raise ValueError(f"{text} is no date: write it as YYYY-MM-DD") from None

    @model_validator(mode="after")
    def _a_cluster_has_an_engine(self) -> PrepareConfig:
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("ray_address is for the engine ray only: set engine to ray")
        return self

    @model_validator(mode="after")
    def _caps_fit(self) -> PrepareConfig:
        if self.max_prompt_tokens > self.max_seq_tokens:
            raise ValueError(
                f"max_prompt_tokens ({self.max_prompt_tokens}) is above max_seq_tokens ({self.max_seq_tokens})"
            )
        return self


class LoraSettings(_Config):
    """The adapter: which modules it sits on, and its size."""

    rank: int = Field(64, gt=0, description="rank of the two factors of an update")
    alpha: int = Field(128, gt=0, description="an update is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="on the adapter's input; 0 keeps student log-probabilities deterministic"
    )
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = Field(
        description="module names, or all-linear: all linear layers; language trunk only, no routers of experts"
    )


class RolloutSettings(_Config):
    """How the student samples."""

    max_new_tokens: int = Field(8_192, gt=0, description="cap on a rollout, tokens")
    start_tokens: int | None = Field(
        None,
        gt=0,
        description="the cap at step 1 if it is lower, which grows linearly to max_new_tokens; null: it is constant",
    )
    grow_steps: int = Field(100, gt=0, description="start_tokens only: steps until the cap is max_new_tokens")
    temperature: float = Field(0.8, gt=0, description="logits are divided by it before sampling")
    top_p: float = Field(
        0.95, gt=0, le=1, description="sample from the most probable tokens with this much probability"
    )
    per_record: int = Field(1, gt=0, description="rollouts of each record of a step")
    weights: Literal["auto", "merged", "adapter"] = Field(
        "auto",
        description="sample from a merged second copy of the adapted weights (faster); auto: if memory allows, and not "
        "on a CPU that reads the base as float16 (faster still)",
    )
    graphs: Annotated[Literal["auto", "off"], OFF] = Field(
        "auto", description="auto: decode in steps of our own, on a GPU replayed as CUDA graphs; off: by generate"
    )
    max_tokens_per_pass: int = Field(
        65_536, gt=0, description="prompts are decoded together up to this many padded tokens"
    )
    gap_every: int | None = Field(
        10,
        gt=0,
        description="in one step of so many, the sampler's log-probabilities are compared with the trainer's: in the "
        "first that the student samples in; null: never",
    )
    source: Literal["local", "vllm"] = Field(
        "local", description="who samples: this process, or a vLLM server, which gets the adapter (docs/vllm.md)"
    )
    vllm_url: str | None = Field(None, description="the vLLM server, e.g. http://localhost:8000; null: there is none")
    vllm_timeout: float = Field(
        600, gt=0, description="seconds in which the server has to answer a request, its queue included"
    )
    vllm_folder: str | None = Field(
        None,
        description="folder in which the adapter is handed over, which the server sees by the same path; null: beside "
        "the run's",
    )
    sync_every: int = Field(1, gt=0, description="source vllm only: steps from one handover of the adapter to the next")
    ahead: bool = Field(
        False, description="source vllm only: the rollouts of the next step are sampled while this one trains"
    )
    importance: Annotated[Literal["off", "prefix", "sequence"], OFF] = Field(
        "prefix",
        description="tokens of a rollout of an older adapter are weighed by its probability now, over that then: of "
        "the tokens before each one, or of the whole rollout",
    )
    importance_clip: float = Field(2.0, ge=1, description="most that such a weight can be")

    @field_validator("vllm_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/\s]", url):
            raise ValueError(f"{url} is no URL: write e.g. http://localhost:8000")
        return url and url.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _source_is_whole(self) -> RolloutSettings:
        if self.source == "vllm" and self.vllm_url is None:
            raise ValueError("source is vllm, but which server: add --vllm-url http://HOST:PORT")
        if self.source == "local" and self.vllm_url is not None:
            raise ValueError("vllm_url is set, but rollouts are local: add --rollouts vllm, or leave the URL out")
        if self.source == "local" and (self.ahead or self.sync_every > 1):
            raise ValueError("ahead and sync_every are for a server's rollouts: add --rollouts vllm, or leave them out")
        return self


class DistillSettings(_Config):
    """The objective: a divergence between student and teacher at the tokens of a trajectory."""

    divergence: DivergenceName = Field(
        "reverse_kl",
        description="reverse_kl: KL(student||teacher); forward_kl: KL(teacher||student); jsd: Jensen-Shannon; "
        "mixed_kl: both KLs, weighted; entropy_aware_kl: reverse_kl, plus forward_kl where the teacher is unsure",
    )
    jsd_beta: float = Field(0.5, gt=0, lt=1, description="jsd only: weight of the teacher in the mixture")
    kl_mix: float = Field(
        0.5, ge=0, le=1, description="mixed_kl only: weight of KL(teacher||student), the rest is KL(student||teacher)'s"
    )
    entropy_threshold: float = Field(
        0.8, ge=0, description="entropy_aware_kl only: the teacher is unsure above this entropy, nats"
    )
    token_clip: float | None = Field(
        None,
        gt=0,
        description="most that one token of the vocabulary adds to the divergence at a position, nats; what is clipped "
        "has no gradient; null: no clip",
    )
    support: Literal["full", "top_k"] = Field(
        "full", description="tokens that count: all, or the top_k at each position"
    )
    top_k: int = Field(100, gt=0, description="support top_k only: how many tokens")
    top_k_of: Literal["student", "teacher"] = Field(
        "student", description="support top_k only: whose top tokens they are"
    )
    top_k_tail: bool = Field(True, description="all other tokens count as one; false: the top_k are renormalised")
    kl_temperature: float = Field(
        1.0, gt=0, description="divides the logits of student and teacher before the divergence"
    )
    lambda_on_policy: float = Field(
        1.0, ge=0, le=1, description="share of records trained on the student's rollout, the rest on the expert's turn"
    )
    lambda_start: float | None = Field(
        None, ge=0, le=1, description="that share at step 1, moving linearly to lambda_on_policy; null: it is constant"
    )
    lambda_steps: int = Field(100, gt=0, description="lambda_start only: steps until the share is lambda_on_policy")
    lambda_by: Literal["turn", "step"] = Field(
        "turn", description="turn: a step holds rollouts and expert's turns; step: only the ones or the others"
    )
    average: Literal["tokens", "sequences"] = Field(
        "tokens", description="each token of the step weighs the same, or each trajectory does"
    )
    token_weights: WeightsName = Field(
        "none",
        description="prefix: in a rollout, tokens behind those on which student and teacher disagree weigh less",
    )
    prefix_gain: float = Field(
        0.5, ge=0, description="token_weights prefix only: how much more than the last token the first one weighs"
    )
    skip_first_tokens: int = Field(0, ge=0, description="tokens at a trajectory's start without loss")
    max_loss_tokens: int | None = Field(None, gt=0, description="tokens of a trajectory with loss, at most; null: all")
    truncated_rollouts: Literal["keep", "mask"] = Field(
        "keep", description="mask: a rollout that was cut by max_new_tokens has no loss"
    )
    chunk_rows: int = Field(112, gt=0, description="rows of logits held at once; a GPU takes more")


class TeacherSettings(_Config):
    """Whose weights score the rollouts. All kinds see the expert's turn."""

    kind: Literal["base", "ema", "live"] = Field(
        "base", description="adapter off; an exponential moving average of the adapter; or the student itself"
    )
    ema_decay: float = Field(0.98, ge=0, lt=1, description="ema <- decay * ema + (1 - decay) * adapter, each step")
    start: int = Field(
        0,
        ge=0,
        description="first steps that train on the expert's turns, by cross-entropy; then base means the adapter as it "
        "was after them, frozen, ema starts from it, and schedules of lambda and rollouts begin",
    )

    @property
    def keeps_adapter(self) -> bool:
        """Whether the teacher has an adapter of its own, beside the student's: an averaged or a frozen one."""
        return self.kind == "ema" or (self.kind == "base" and self.start > 0)

    @property
    def wears_adapter(self) -> bool:
        """Whether an adapter is on while the teacher scores."""
        return self.kind == "live" or self.keeps_adapter


class OptimSettings(_Config):
    """AdamW with a linear warm-up, then a constant or falling rate."""

    learning_rate: float = Field(1e-5, gt=0, description="rate after the warm-up")
    warmup_steps: int = Field(20, ge=0, description="steps in which the rate rises linearly from 0")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="after the warm-up: constant, or falling linearly to 0 behind the last step"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of AdamW's averages of gradient and square")
    eps: float = Field(1e-8, gt=0, description="added to the denominator of AdamW")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient's norm; null: never")
    max_steps: int = Field(600, gt=0, description="optimiser steps")
    turns_per_step: int = Field(1, gt=0, description="records of one optimiser step (the batch size)")
    group_by: Literal["none", "session"] = Field(
        "none", description="session: the turns of a step are of one session, so that they share prefixes"
    )
    position_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="each session gives one turn at a time, its turn t (from 0) with a probability in proportion to "
        "decay^t; null: each turn once an epoch",
    )
    session_turns: Literal["consecutive", "spread"] = Field(
        "consecutive", description="which turns of a session make a step: neighbours, or some from begin to end"
    )
    max_tokens_per_pass: int = Field(
        65_536,
        gt=0,
        description="records share a pass up to this many tokens, padded or (packed) distinct; smaller saves memory",
    )

    @model_validator(mode="after")
    def _one_way_to_draw_turns(self) -> OptimSettings:
        if self.position_decay is not None and self.group_by == "session":
            raise ValueError("position_decay draws turns of different sessions: set group_by to none")
        return self


class CheckpointSettings(_Config):
    """When the state of a run is saved, so that it can go on after a kill."""

    every: int = Field(50, gt=0, description="steps between checkpoints; one more is saved on SIGTERM and SIGINT")
    keep_last: int = Field(2, gt=0, description="newest checkpoints that stay, besides the best one")


class HeldoutSettings(_Config):
    """The evaluation on fixed validation records while training."""

    every: int | None = Field(50, gt=0, description="steps between evaluations; null: never")
    records: int = Field(16, gt=0, description="validation records, spread over the sessions, always the same")
    max_new_tokens: int = Field(256, gt=0, description="cap on a rollout, tokens; decoded greedily")


class StopSettings(_Config):
    """What is done when a run goes wrong."""

    not_finite: Action = Field("stop", description="the loss or the gradient is NaN or infinite")
    length_collapse: Action = Field("warn", description="held-out rollouts are shorter than length_share of the first")
    length_share: float = Field(0.1, gt=0, lt=1, description="see length_collapse")
    validity_collapse: Action = Field(
        "warn", description="the share of valid tool calls is below validity_share of the best before"
    )
    validity_share: float = Field(0.5, gt=0, lt=1, description="see validity_collapse")
    kl_rising: Action = Field("warn", description="held-out KL rose kl_rising_evaluations times in a row")
    kl_rising_evaluations: int = Field(3, gt=0, description="see kl_rising")
    sampler_gap: Action = Field("stop", description="sampler and trainer disagree by more than max_sampler_gap")
    max_sampler_gap: float = Field(0.1, gt=0, description="mean |log p(sampler) - log p(trainer)| per token, nats")


class GateSettings(_Config):
    """The teacher-lift gate: does the reference teach anything? Scored on held-out records before step 1."""

    action: Action = Field("stop", description="what is done if the teacher has nothing to teach; off: no gate")
    records: int = Field(
        32, gt=0, description="validation records, spread over the sessions; training records if few are held out"
    )
    max_new_tokens: int = Field(256, gt=0, description="cap on a rollout, tokens; decoded greedily")
    confidence: float = Field(0.95, gt=0, lt=1, description="level of the intervals")
    resamples: int = Field(2_000, gt=0, description="draws of the bootstrap over sessions")
    first_token: float = Field(
        0.1, ge=0, le=1, description="least mean probability of the expert's first token, of each kind of turn"
    )
    copied: float = Field(
        0.0, ge=0, le=1, description="least share of expert turns that the teacher would write greedily, of each kind"
    )
    begins_with_block: float = Field(
        0.05, ge=0, le=1, description="most of the teacher's answers that may begin as its block does, of each kind"
    )


class TrainConfig(_Config):
    """A whole training run."""

    profile: str = Field(description="name of the profile; if it is left out, the file's path")
    objective: Literal["sdft", "sft"] = Field(
        "sdft", description="what is trained: sdft, or its control arm sft (cross-entropy on the expert's turn)"
    )
    model: str = Field(description="the model to train: folder, Hub id or alias")
    revision: str | None = Field(None, description="Hub revision of the model; null: the main branch")
    backend: BackendName = Field(
        "auto", description="what runs the model; auto: unsloth where it is installed and supports the model"
    )
    min_gpu_gb: float | None = Field(None, gt=0, description="GB that the CUDA GPU must have; null: no GPU is needed")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the frozen weights and the arithmetic")
    products: Literal["auto", "exact"] = Field(
        "exact", description="of training steps in float32 on a CPU; auto: by bfloat16 factors if much faster there"
    )
    load_in_4bit: bool = Field(False, description="frozen weights in 4 bits (NF4); the unsloth backend on a GPU only")
    fast_inference: bool = Field(False, description="sample rollouts with unsloth's vLLM engine (CUDA, package vllm)")
    fast_inference_memory: float = Field(
        0.5, gt=0, lt=1, description="share of the GPU's memory for that engine: weights (the trainer's too) and cache"
    )
    max_seq_tokens: int = Field(65_536, gt=0, description="cap on the teacher's prompt and the rollout, tokens")
    max_prompt_tokens: int = Field(57_344, gt=0, description="cap on the teacher's prompt; longer ones are refused")
    gradient_checkpointing: bool = Field(True, description="compute activations again backwards; saves memory")
    prefix_sharing: PrefixSharing = Field(
        "auto", description="compute the turns' common prefixes once; auto: as is exact on this model and fits"
    )
    segment_tokens: int = Field(2_048, ge=16, description="depth_first: most tokens of a pass; smaller saves memory")
    seed: int = Field(0, ge=0, description="seed of adapter, order and rollouts")
    init_adapter: str | None = Field(
        None,
        description="a run, or the folder of an adapter, whose weights the adapter begins with: to go on with other "
        "records; the teacher base is still the model without it; null: a fresh adapter",
    )
    samples_every: int = Field(
        10, gt=0, description="rollouts of one step of so many are saved, of the first that the student samples in"
    )
    rehearse: bool = Field(True, description="run the longest step once before step 1, without an update")
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="where metrics are logged, besides metrics.jsonl"
    )
    lora: LoraSettings
    rollout: RolloutSettings = RolloutSettings()
    distill: DistillSettings = DistillSettings()
    teacher: TeacherSettings = TeacherSettings()
    optim: OptimSettings
    checkpoint: CheckpointSettings = CheckpointSettings()
    heldout: HeldoutSettings = HeldoutSettings()
    stop: StopSettings = StopSettings()
    gate: GateSettings = GateSettings()

    @property
    def samples(self) -> bool:
        """Are there turns that the student answers?"""
        return self.objective == "sdft" and max(self.distill.lambda_on_policy, self.distill.lambda_start or 0) > 0

    @property
    def trains_on_references(self) -> bool:
        """Are there turns that are trained on the expert's answer, however long that is?"""
        shares = (self.distill.lambda_on_policy, self.distill.lambda_start)
        return self.objective == "sft" or self.teacher.start > 0 or any(s is not None and s < 1 for s in shares)

    def longest_answer(self, reference_tokens: int) -> int:
        """Return the most tokens of a trajectory of a record: a rollout at its cap, or the expert's turn."""
        return max(self.rollout.max_new_tokens * self.samples, reference_tokens * self.trains_on_references)

    @model_validator(mode="after")
    def _a_rollout_fits(self) -> TrainConfig:
        if self.max_prompt_tokens + self.rollout.max_new_tokens > self.max_seq_tokens:
            raise ValueError(
                f"max_prompt_tokens ({self.max_prompt_tokens}) and rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens}) together are above max_seq_tokens ({self.max_seq_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _stale_rollouts_have_no_dropout(self) -> TrainConfig:
        if self.rollout.source == "vllm" and self.lora.dropout > 0:
            raise ValueError("rollout.source=vllm weighs rollouts by the student's probabilities: set lora.dropout=0")
        return self

    @model_validator(mode="after")
    def _the_start_ends(self) -> TrainConfig:
        if self.objective == "sdft" and self.teacher.start >= self.optim.max_steps:
            raise ValueError(
                f"teacher.start ({self.teacher.start}) leaves no step of self-distillation of optim.max_steps "
                f"({self.optim.max_steps}): for cross-entropy alone, set objective to sft"
            )
        return self

    @model_validator(mode="after")
    def _four_bits_have_no_sum(self) -> TrainConfig:
        if self.load_in_4bit and self.rollout.weights == "merged":
            raise ValueError("load_in_4bit has no merged weights to sample from: set rollout.weights to adapter")
        if self.fast_inference and self.rollout.weights == "merged":
            raise ValueError("fast_inference samples with the adapter beside the base: set rollout.weights to adapter")
        if self.fast_inference and self.rollout.source == "vllm":
            raise ValueError("fast_inference and rollout.source=vllm are two samplers: choose one of them")
        return self


class MergeConfig(_Config):
    """What `sdft merge` writes."""

    dtype: Literal["bfloat16", "float32"] | None = Field(
        None, description="weights to write; null: `sdft merge` asks for --bf16 or --dtype, `sdft run` writes bfloat16"
    )
    best: bool = Field(False, description="take the adapter that was best on held-out records, not the last one")
    base: str | None = Field(
        None, description="the model to merge into: the 16-bit form of one in 4 bits; null: the base of the run"
    )
    prompts: int = Field(8, ge=1, le=8, description="check prompts of the run to compare on")


class EvalConfig(_Config):
    """What `sdft eval` runs, and how."""

    max_new_tokens: int = Field(512, gt=0, description="cap on an evaluation rollout, tokens")
    max_records_per_pass: int = Field(16, gt=0, description="records decoded and scored together, at most")
    max_tokens_per_pass: int = Field(16_384, gt=0, description="the same in padded tokens; smaller saves memory")
    prefix_sharing: PrefixSharing = Field("auto", description="as in training")
    limit: int | None = Field(
        None, gt=0, description="validation records, spread over the sessions, at most; null: all"
    )
    general: int = Field(240, ge=0, description="general prompts for the drift from the base; 0: none")
    drift_tokens: int = Field(32, gt=0, description="tokens of the base's answer to each of them, at most")
    questions: int = Field(120, ge=0, description="questions with exact answers; 0: none")
    question_tokens: int = Field(16, gt=0, description="cap on the reply to a question, tokens")
    lm_eval: list[str] = Field([], description="tasks of lm-evaluation-harness to run, too")
    lm_eval_path: str | None = Field(None, description="folder with lm_eval tasks of your own; null: none")
    lm_eval_limit: int | None = Field(None, gt=0, description="documents of each lm_eval task, at most; null: all")
    confidence: float = Field(0.95, gt=0, lt=1, description="level of the intervals")
    resamples: int = Field(2_000, gt=0, description="draws of the bootstrap over sessions")
    seed: int = Field(0, ge=0, description="seed of rollouts and intervals; answers are greedy")


class ProjectConfig(_Config):
    """The keys of `sdft.yaml`: what all commands share, and a section for each of them; all may be left out."""

    source: str = Field(description="the sessions of `sdft prepare` and `sdft run`")
    model: str = Field(description="the model of all commands; a section may name another")
    prepare: PrepareConfig
    train: TrainConfig
    merge: MergeConfig
    eval: EvalConfig


MODELS: dict[str, type[BaseModel]] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "merge": MergeConfig,
    "eval": EvalConfig,
}
"""Command -> its settings. `plan` and `gate` take those of `train`."""

REMOVED = {"device": "min_gpu_gb says whether a GPU is needed"}
"""Settings of earlier versions -> what there is instead."""


def sections_of(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the sections of a model by their names."""
    kinds = {name: field.annotation for name, field in kind.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, _Config)}


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the values of a model and of its sections: dotted key -> field."""
    sections = sections_of(kind)
    fields = {name: field for name, field in kind.model_fields.items() if name not in sections}
    for section, inner in sections.items():
        fields |= {f"{section}.{key}": field for key, field in fields_of(inner).items()}
    return fields


def _likeness(key: str, candidate: str, description: str) -> float:
    """Say how likely an unknown key means a setting: about 1 for its name or initials, about 0 for nothing alike."""
    (section, _, name), (own_section, _, own) = key.rpartition("."), candidate.rpartition(".")
    asked, parts = name.split("_"), own.split("_")
    if name == own or (len(parts) > 1 and name == "".join(part[0] for part in parts)):  # lr
        score = 1.0
    elif all(any(part.startswith(beginning) for part in parts) for beginning in asked):  # temp, max_tok
        score = 0.9 if parts[0].startswith(asked[0]) else 0.85
    elif f" {' '.join(asked)} " in f" {re.sub('[^a-z]', ' ', description)} ":  # batch_size
        score = 0.74
    else:
        score = SequenceMatcher(None, name, own).ratio()
        if not section:  # lora_alpha
            score = max(score, SequenceMatcher(None, key, candidate).ratio())
    return score + (0.15 if section and section == own_section else 0.0)


def nearest_keys(key: str, kind: type[BaseModel], but: str | None = None) -> list[str]:
    """Return up to three settings that an unknown dotted key may mean, the nearest first; empty if none is alike.

    Alike are: the same name in another section or in none, initials, beginnings of words, words of the description,
    and a similar spelling. `but`: a setting that is never meant.
    """
    fields = {one: field for one, field in fields_of(kind).items() if one != but}
    scores = {one: _likeness(key, one, field.description or "") for one, field in fields.items()}
    least = max(0.7, max(scores.values()) - 0.1)
    return sorted((one for one in scores if scores[one] >= least), key=lambda one: -scores[one])[:3]


def unknown(key: str, kind: type[BaseModel], but: str | None = None) -> str:
    """Say of an unknown key what to write instead; never `but`."""
    if key in REMOVED:
        return f"{key} is no setting any more: leave it out; {REMOVED[key]}."
    if near := nearest_keys(key, kind, but):
        return f"{key} is no setting: did you mean {' or '.join(near)}?"
    section = key.partition(".")[0]
    names = sections_of(kind).get(section, kind).model_fields
    return f"{key} is no setting, nor like one: choose of {', '.join(names)}."


def leaves(document: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings, their keys joined."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        inner = isinstance(value, Mapping)
        flat |= leaves(value, separator, f"{prefix}{key}{separator}") if inner else {f"{prefix}{key}": value}
    return flat


OF_AN_OPTION = "correct the option or the profile"
"""What to do about a wrong value, if nothing else is known of where it stands."""


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """Say in one sentence what is wrong with the settings of a model: an unknown key first, with the nearest ones."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown(next(iter(leaves({where: first["input"]})), where), kind)  # of a section, its first value
    if first["type"] == "model_type" and where:
        one = next(key for key in fields_of(kind) if key.startswith(f"{where}."))
        return f"{where} is a section: name one of its values, as in {one}=VALUE."
    if first["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{where}: {first['input']} is not known: {did_you_mean(str(first['input']), allowed)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where or 'configuration'}: {message}: {OF_AN_OPTION}."


def profile_names() -> list[str]:
    """Return the names of the shipped profiles."""
    names = [entry.name for entry in resource("templates", "profiles").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _no_profile(name: str) -> str:
    near = get_close_matches(name, profile_names(), n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? There " if near else "there "
    return f"Profile {name} is unknown: {meant}are {', '.join(profile_names())}, or name a YAML file."


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text} is not key=value: write e.g. --set optim.learning_rate=1e-4.")
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise UsageError(f"--set {key}: the value is not valid YAML ({error}): write it in quotes.") from error
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    return key.split("."), parsed


def _set(document: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            value_key = ".".join(keys[:depth])
            raise UsageError(f"{'.'.join(keys)}: {value_key} is a value, not a section: write {value_key}=VALUE.")
    document[keys[-1]] = value


def _override(document: dict[str, Any], overrides: Sequence[str], flags: Mapping[str, Any]) -> None:
    for override in overrides:
        _set(document, *_parse_override(override))
    for key, value in flags.items():
        if value is not None:
            _set(document, key.split("."), value)


def load_train_config(
    profile: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Resolve a training configuration: profile, project file, then `--set` overrides, then flags that were given.

    Args:
        profile: a shipped name, or the path of a YAML file.
        overrides: texts `section.key=value`.
        flags: dotted key -> value; None values are ignored.
        settings: those of a project file, dotted key -> value; None is a value.

    Raises:
        UsageError: unknown profile, unknown key, or a value out of range; the message names it.
    """
    path = Path(profile)
    if path.suffix in (".yaml", ".yml"):
        text = read_text(path, "Profile")
    elif profile in profile_names():
        text = resource_text("templates", "profiles", f"{profile}.yaml")
    else:
        raise UsageError(_no_profile(profile))
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"Profile {profile} is not valid YAML ({error}): correct the file.") from error
    if not isinstance(document, dict):
        raise UsageError(f"Profile {profile} is not a YAML mapping: correct the file.")
    document.setdefault("profile", profile)
    for key, value in (settings or {}).items():
        _set(document, key.split("."), value)
    _override(document, overrides, flags or {})
    return build(TrainConfig, document)


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with dotted keys set; None values are ignored."""
    document = config.model_dump()
    _override(document, (), settings)
    return TrainConfig.model_validate(document)


def build(kind: type[T], document: Mapping[str, Any]) -> T:
    """Validate a document; a `ValidationError` becomes a `UsageError` of one sentence."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain(error, kind)) from error


def stored_config(stored: Mapping[str, Any]) -> TrainConfig:
    """Read the configuration of a run folder, also of an earlier version: settings that are no more are dropped."""
    known = {key: value for key, value in stored.items() if key not in REMOVED}
    if stored.get("device", "cuda") != "cuda":  # which said that no GPU is needed, whatever min_gpu_gb was
        known["min_gpu_gb"] = None
    return build(TrainConfig, known)


RESUMABLE = (
    *("stop", "checkpoint", "heldout", "gate", "trackers", "samples_every", "rehearse", "min_gpu_gb"),
    *("rollout.vllm_url", "rollout.vllm_timeout", "rollout.vllm_folder"),
)
"""Sections and values of a training configuration that may change when a run is resumed: no weight depends on them."""
FOR_MEMORY = (
    *("optim.max_tokens_per_pass", "segment_tokens", "gradient_checkpointing", "prefix_sharing"),
    *("rollout.weights", "rollout.max_tokens_per_pass", "distill.chunk_rows"),
)
"""Values that may change then, too: the run is the same up to rounding, in less memory."""


def resumed_config(stored: Mapping[str, Any], overrides: Sequence[str], flags: Mapping[str, Any]) -> TrainConfig:
    """Return a run's own configuration with what may change on the way: `RESUMABLE`, `FOR_MEMORY`, and more steps.

    Raises:
        UsageError: another value is to change; the message names it.
    """
    before = stored_config(stored)
    document = before.model_dump(mode="json")
    _override(document, overrides, flags)
    after = build(TrainConfig, document)
    check_resumable(before, after)
    return after


def changed_for_memory(stored: Mapping[str, Any], now: TrainConfig) -> list[str]:
    """Return which of `FOR_MEMORY` a run's configuration has otherwise than it was stored."""
    old, new = (leaves(c.model_dump(mode="json")) for c in (stored_config(stored), now))
    return [key for key in FOR_MEMORY if old[key] != new[key]]


def check_resumable(before: TrainConfig, after: TrainConfig) -> None:
    """Refuse to go on with another configuration, but for what may change; raises `UsageError`, which names it."""
    old, new = leaves(before.model_dump(mode="json")), leaves(after.model_dump(mode="json"))
    free = {*RESUMABLE, *FOR_MEMORY, *(("optim.max_steps",) if after.optim.schedule == "constant" else ())}
    for key in old:
        if old[key] != new[key] and key not in free and key.split(".")[0] not in free:
            raise UsageError(
                f"The run was started with {key}={old[key]}, and {new[key]} would make it another run: "
                "leave that option out, or start a new run with another --out."
            )
