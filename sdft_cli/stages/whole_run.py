"""Sessions -> an evaluated model and its page, in one folder: prepare, plan, gate, train, merge, eval, report.

    folder/
      sdft-run.json   what was done, of what, and what it left (`run_manifest.py`)
      data/           the dataset
      plan.json       what the run was predicted to need
      run/            the training run; run/gate.json, run/adapter/, run/merged/
      run-sft/        the control arm, if one was asked for
      eval.json       the evaluation
      report.html     all of it as a page

A stage whose inputs are unchanged, and which left what is still there, is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.addresses import is_address
from sdft_cli.errors import WARNING, MachineError, SdftError, UsageError
from sdft_cli.notices import say
from sdft_cli.places import WHOLE_RUN
from sdft_cli.stages.project import Project, fitting
from sdft_cli.stages.run_manifest import RunManifest, digest

if TYPE_CHECKING:
    from sdft_cli.config import EvalConfig, MergeConfig, PrepareConfig, TrainConfig
    from sdft_cli.engine.train.opening import Job
    from sdft_cli.records import Dataset
    from sdft_cli.run_folder import Run

STAGES = ("prepare", "plan", "gate", "train", "merge", "eval", "report")


@dataclass(frozen=True)
class WholeSettings:
    """The settings of all stages. `control`: train and evaluate the control arm too; `ignore_plan`: go on although the
    plan says that the run does not fit."""

    prepare: PrepareConfig
    train: TrainConfig
    merge: MergeConfig
    evaluate: EvalConfig
    control: bool = False
    ignore_plan: bool = False

    def as_json(self) -> dict[str, Any]:
        sections = ("prepare", "train", "merge", "evaluate")
        dumped = {name: getattr(self, name).model_dump(mode="json") for name in sections}
        return {**dumped, "control": self.control, "ignore_plan": self.ignore_plan}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> WholeSettings:
        """Read what `as_json` wrote; raises `UsageError` if a value is none any more."""
        from sdft_cli.config import EvalConfig, MergeConfig, PrepareConfig, build, stored_config

        return cls(
            build(PrepareConfig, document["prepare"]),
            stored_config(document["train"]),
            build(MergeConfig, document["merge"]),
            build(EvalConfig, document["evaluate"]),
            bool(document.get("control")),
            bool(document.get("ignore_plan")),
        )


class WholeRun:
    """A whole run in its folder, stage by stage."""

    def __init__(self, manifest: RunManifest, settings: WholeSettings) -> None:
        self.manifest = manifest
        self.settings = settings
        self.folder = manifest.folder
        self.data_folder = self.folder / "data"
        self.run_folder = self.folder / "run"
        self.names = [name for name in STAGES for name in ([name, "control"] if name == "train" else [name])]
        if not settings.control:
            self.names.remove("control")
        self._began = time.monotonic()
        self.tables = True
        """Print the tables of the stages on stdout?"""

    @property
    def seconds(self) -> float:
        """Seconds since the start of this process's part."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """Do what is not done yet.

        Raises:
            SdftError: a stage says stop; the manifest holds why, and the exit code is the stage's own.
        """
        from sdft_cli.engine.models.load import check_machine, check_merged_later
        from sdft_cli.engine.models.quiet import quiet_libraries
        from sdft_cli.run_folder import is_run

        quiet_libraries()
        check_machine(self.settings.train)  # before the minutes that a dataset takes
        if not is_run(self.run_folder):
            check_merged_later(self.settings.train, self.settings.merge.base)
        self._refuse_another_run()
        self.manifest.take(self.settings.as_json())
        self._prepare()
        self._plan()
        self._train()
        if self.settings.control:
            self._control()
        self._merge()
        self._evaluate()
        self._report()

    def _tell(self, name: str, what: str) -> None:
        say(f"{self.names.index(name) + 1}/{len(self.names)} {name}: {what} ({self.seconds:.0f} s)")

    def _show(self, table: Any) -> None:
        from sdft_cli.report import terminal

        if self.tables:
            terminal.stdout().print(table)

    def document(self) -> dict[str, Any]:
        """Return the manifest, and the numbers of the evaluation if there is one."""
        from sdft_cli.records.json_files import read_json
        from sdft_cli.report.evaluation import summaries

        path = self.folder / "eval.json"
        found = summaries(read_json(path, "run `sdft eval` again")) if path.is_file() else None
        return {**self.manifest.document, "evaluation": found}

    def _stage(self, name: str, what: str, inputs: Mapping[str, str], do: Callable[[], Sequence[Path]]) -> None:
        """Do a stage unless it is done; `do` returns the files that it left, or raises `Skipped`."""
        if self.manifest.is_done(name, inputs):
            self._tell(name, "done before")
            return
        self._tell(name, what)
        self.manifest.begin(name, inputs)
        try:
            self.manifest.end(name, do())
        except Skipped as skipped:
            say(f"{name} was left out: {skipped}")
            self.manifest.end(name, (), str(skipped))
        except BaseException as error:
            self.manifest.stop(name, error)
            raise

    # What a run is made of cannot change under it.

    def _refuse_another_run(self) -> None:
        """Raises `UsageError` if training has begun, and the records or the training would now be others."""
        from sdft_cli.config import check_resumable, stored_config
        from sdft_cli.run_folder import is_run, read_run_json

        if not is_run(self.run_folder):
            return
        prepared = self.manifest.stage("prepare") or {"inputs": {}}
        again = "start a new run with another --out, or this one again with --overwrite"
        now = self._prepare_inputs()
        before = {"texts": now["texts"], **prepared["inputs"]}  # an old manifest has none
        for key, what in (("settings", "settings of prepare"), ("texts", "texts of its templates")):
            if before.get(key) != now[key]:
                raise UsageError(
                    f"The {what} are others than those that {self.folder} was started with, and it is trained on its "
                    f"records already: {again}."
                )
        check_resumable(stored_config(read_run_json(self.run_folder, "config.json")), self.settings.train)

    # prepare

    def _prepare_inputs(self) -> dict[str, str]:
        settings = self.settings.prepare
        without = settings.model_dump(mode="json", exclude={"workers"})
        return {
            "settings": digest(without),
            "source": source_digest(settings.source),
            "texts": digest(_texts(settings)),
        }

    def _prepare(self) -> None:
        from sdft_cli.run_folder import is_run

        inputs = self._prepare_inputs()
        known = self.manifest.stage("prepare") or {"inputs": {}}
        if is_run(self.run_folder) and known["inputs"].get("source") not in (None, inputs["source"]):
            say("The sessions have changed since: this run goes on with the records that it has.")
            inputs["source"] = known["inputs"]["source"]
        self._stage("prepare", self.settings.prepare.source, inputs, self._make_dataset)

    def _make_dataset(self) -> list[Path]:
        from sdft_cli.report import terminal
        from sdft_cli.report.told import sentences
        from sdft_cli.stages.prepare import run_preparation

        manifest, _ = run_preparation(self.settings.prepare, self.data_folder, overwrite=self.data_folder.exists())
        self._show(terminal.funnel_table(manifest["funnel"]))
        for sentence in sentences(manifest):
            say(sentence)
        return [self.data_folder / "manifest.json", *sorted(self.data_folder.glob("*.parquet"))]

    def _data(self) -> Dataset:
        from sdft_cli.records import read_dataset

        return read_dataset(self.data_folder)

    # plan

    def _training_inputs(self) -> dict[str, str]:
        return {"settings": digest(self.settings.train.model_dump(mode="json")), **self.manifest.outputs("prepare")}

    def _plan(self) -> None:
        inputs = {**self._training_inputs(), "ignore_plan": str(self.settings.ignore_plan)}
        self._stage("plan", self.settings.train.model, inputs, self._make_plan)

    def _make_plan(self) -> list[Path]:
        from sdft_cli.records.json_files import write_json
        from sdft_cli.report import terminal
        from sdft_cli.stages.plan import make_plan

        try:
            document = make_plan(self.settings.train, self._data())
        except UsageError as error:  # what training cannot do either it refuses itself
            raise Skipped(str(error)) from error
        path = self.folder / "plan.json"
        write_json(path, document)
        verdict = terminal.plan_verdict(document)
        if not document["gpu"] or document["gpu"]["fits"]:
            say(f"Plan: {verdict}")
        elif self.settings.ignore_plan:
            say(f"{WARNING}the plan says: {verdict}")
        else:
            self._show(terminal.plan_report(document))
            raise MachineError(
                f"The plan says: {verdict} Take a change of the table above with --set, or go on all the same with "
                "--ignore-plan."
            )
        return [path]

    # gate and train: training measures the gate before its first step, on the model that it has loaded

    def _train(self) -> None:
        from sdft_cli.stages.train import run_training

        inputs = self._training_inputs()
        if self.manifest.is_done("gate", inputs) and self.manifest.is_done("train", inputs):
            self._tell("gate", "done before")
            self._tell("train", "done before")
            return
        job = self._job()
        if job is None:
            self._trained_before(inputs)
            return
        if job.resume:  # its gate was passed
            self._end_gate(inputs)
        else:
            self._tell("gate", "measured before the first step")
            self.manifest.begin("gate", inputs)

        def began() -> None:
            if not job.resume:
                self._end_gate(inputs)
            self._tell("train", f"{job.config.optim.max_steps} steps")
            self.manifest.begin("train", inputs)

        try:
            run_training(job, began)
        except BaseException as error:
            begun = (self.manifest.stage("train") or {}).get("status") == "running"
            self.manifest.stop("train" if begun else "gate", error)
            raise
        self.manifest.end("train", [_adapter(self.run_folder)])

    def _end_gate(self, inputs: Mapping[str, str]) -> None:
        measured = self.run_folder / "gate.json"
        if (self.manifest.stage("gate") or {}).get("status") != "running":
            self.manifest.begin("gate", inputs)
        is_there = measured.is_file()
        self.manifest.end("gate", [measured] if is_there else [], None if is_there else "the settings ask for no gate")

    def _trained_before(self, inputs: Mapping[str, str]) -> None:
        """Note that a training is finished whose process ended before it could."""
        from sdft_cli.stages.model_card import write_adapter_cards

        self._end_gate(inputs)
        self._tell("train", "finished before")
        self.manifest.begin("train", inputs)
        write_adapter_cards(self.run_folder)
        self.manifest.end("train", [_adapter(self.run_folder)])

    def _job(self) -> Job | None:
        """Return the job of a new training, or of one to go on with; None: it is finished."""
        from sdft_cli.engine.train.opening import Job
        from sdft_cli.run_folder import is_run, read_run_json

        config, folder = self.settings.train, self.run_folder
        if not is_run(folder):
            return Job(config, self._data(), folder, overwrite=folder.exists())
        info = read_run_json(folder)
        done = (info.get("last_step") or {}).get("step", 0)
        if info.get("status") == "finished" and done >= config.optim.max_steps and _adapter(folder).is_file():
            return None
        return Job(config, self._data(), folder, resume=True)

    def _control(self) -> None:
        """Train the control arm: from the start, as it takes no longer than the half of a run."""
        from sdft_cli.engine.train.opening import Job
        from sdft_cli.stages.train import run_training

        config = self.settings.train.model_copy(update={"objective": "sft"})
        folder = self.folder / "run-sft"

        def train() -> list[Path]:
            run_training(Job(config, self._data(), folder, overwrite=folder.exists()))
            return [_adapter(folder)]

        self._stage("control", "the control arm, --objective sft", self._training_inputs(), train)

    # merge, eval, report

    def _trained(self) -> Run:
        """Return the finished run, with the adapter that `merge.best` asks for, where the last one is not the best."""
        from sdft_cli.run_folder import read_run

        return read_run(self.run_folder, best=self._takes_best)

    @property
    def _takes_best(self) -> bool:
        return self.settings.merge.best and (self.run_folder / "adapter-best").is_dir()

    def _merge(self) -> None:
        from sdft_cli.report import terminal
        from sdft_cli.stages.merge import run_merge

        settings, target = self.settings.merge, self.run_folder / "merged"

        def merge() -> list[Path]:
            dtype = settings.dtype or "bfloat16"
            found = run_merge(self._trained(), target, settings.prompts, target.exists(), dtype, settings.base)
            self._show(terminal.merge_table(found))
            return [target / name for name in found["sha256"]]  # not the card, into which the evaluation goes later

        inputs = {"settings": digest(settings.model_dump(mode="json")), **self.manifest.outputs("train")}
        self._stage("merge", settings.dtype or "bfloat16", inputs, merge)

    def _evaluate(self) -> None:
        from sdft_cli.records.json_files import write_json
        from sdft_cli.report import evaluation
        from sdft_cli.stages.evaluate import run_evaluation
        from sdft_cli.stages.model_card import evaluated_card

        config, path = self.settings.evaluate, self.folder / "eval.json"

        def evaluate() -> list[Path]:
            data = self._data()
            if not data.validation:
                raise Skipped(
                    "no session is held out; with more sessions, or prepare.validation_fraction nearer to 1, some are."
                )
            controls = [self.folder / "run-sft"] if self.settings.control else []
            result = run_evaluation(str(self.run_folder), data, config, best=self._takes_best, controls=controls)
            write_json(path, result)
            evaluated_card(self._trained(), result)
            self._show(evaluation.report(result))
            return [path]

        made_of = [self.manifest.outputs(name) for name in ("prepare", "train", "control")]
        inputs = {"settings": digest([config.model_dump(mode="json"), self._takes_best])}
        for hashes in made_of:
            inputs |= hashes
        self._stage("eval", "base and tuned on held-out records", inputs, evaluate)

    def _report(self) -> None:
        from sdft_cli.stages.report import write_report

        inputs: dict[str, str] = {}
        for name in self.names[:-1]:
            inputs |= self.manifest.outputs(name)
        self._stage("report", "a page", inputs, lambda: [write_report(self.folder)])


class Skipped(Exception):
    """A stage has nothing to do; the text says why."""


def _adapter(run: Path) -> Path:
    return run / "adapter" / "adapter_model.safetensors"


def _texts(settings: PrepareConfig) -> list[str | None]:
    """Return the texts of the templates that a dataset is made with: files may change under their names."""
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.prompts.template import load_chat_template

    chat = load_chat_template(settings.chat_template) if settings.chat_template else None
    return [load_teacher_template(settings.teacher_template).text, chat]


def source_digest(source: str) -> str:
    """Return a hash of the names, sizes and dates of a source's files; of a Hub dataset, of its name."""
    path = Path(source).expanduser()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    facts = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return digest(facts or source)


@dataclass(frozen=True)
class Given:
    """What a command line said of a whole run; it is kept in the manifest, for `--resume` without saying it again."""

    source: str | None = None
    profile: str | None = None
    overrides: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Of training: dotted key -> value."""
    ignore_plan: bool = False

    def over(self, before: Mapping[str, Any]) -> Given:
        """Return what was said now, and of what was not, what was said before."""
        return Given(
            self.source or before["source"],
            self.profile or before["profile"],
            (*before["overrides"], *self.overrides),
            {**before["flags"], **self.flags},
            self.ignore_plan or before["ignore_plan"],
        )

    def settings(self, project: Project) -> WholeSettings:
        """Resolve the settings of all stages: command line, project file, data card, what fits the training.

        Raises:
            UsageError: nothing names the sessions, or a value is wrong.
        """
        from sdft_cli.config import EvalConfig, build
        from sdft_cli.stages.prepare import card_defaults

        source = project.source_of(self.source)
        train = project.train_config(self.profile, self.overrides, self.flags)
        shared = {key: self.flags[key] for key in ("model", "seed") if key in self.flags}
        prepare = project.prepare_config(source, shared, {**fitting(train), **card_defaults(source)})
        evaluate = build(EvalConfig, {"seed": train.seed, **project.of("eval")})
        return WholeSettings(prepare, train, project.merge_config(), evaluate, ignore_plan=self.ignore_plan)


def check_before(settings: WholeSettings) -> None:
    """Look at what can be wrong before anything of an earlier run is deleted.

    Raises:
        UsageError: a template or the sessions are not there, or the model could not be merged.
        DataError: there is no session.
        MachineError: the machine is not what the profile needs.
    """
    from sdft_cli.engine.models.load import check_machine, check_merged_later
    from sdft_cli.traces.source import resolve_source

    check_machine(settings.train)
    check_merged_later(settings.train, settings.merge.base)
    _texts(settings.prepare)
    if not is_address(source := settings.prepare.source):
        resolve_source(source, settings.prepare.revision)


def start(folder: Path, given: Given, project: Project, overwrite: bool) -> WholeRun:
    """Make the folder of a new whole run.

    Raises:
        UsageError: it exists and `overwrite` is false, it is of another kind, or a setting is wrong.
    """
    from sdft_cli.records.folders import check_output_folder, remove_folder

    settings = given.settings(project)
    if (folder / WHOLE_RUN).is_file() and not overwrite:
        raise UsageError(
            f"{folder} holds a run already: go on with it by --resume, choose another --out, or add --overwrite to "
            "start again."
        )
    check_output_folder(folder, WHOLE_RUN, overwrite)
    if folder.exists():
        check_before(settings)
        remove_folder(folder)
    folder.mkdir(parents=True)
    return WholeRun(RunManifest.new(folder, asdict(given)), settings)


def resume(folder: Path, given: Given, project: Project) -> WholeRun:
    """Open a whole run to go on with; one that was ended before it wrote anything begins.

    Its settings are those of its command line, of this one, and of the project file as it is now.

    Raises:
        UsageError: a setting is wrong, or this is the folder of `sdft demo` and settings are given.
        DataError: the folder's manifest is damaged, or is not that of a whole run.
    """
    from sdft_cli.records.folders import remove_leftovers

    run = folder / "run"
    for place in (folder, run, run / "adapter", run / "merged"):  # each has files that are replaced later
        if place.is_dir():
            remove_leftovers(place)
    if not (folder / WHOLE_RUN).is_file():
        say(f"There is nothing in {folder} to go on with: starting.")
        return start(folder, given, project, overwrite=False)
    manifest = RunManifest.read(folder)
    before = manifest.document["given"]
    if before is not None:
        now = given.over(before)
        manifest.document["given"] = asdict(now)
        return WholeRun(manifest, now.settings(project))
    if given != Given():
        raise UsageError(f"{folder} is of `sdft demo`, whose settings are fixed: give --resume --out alone.")
    return WholeRun(manifest, WholeSettings.of_json(manifest.document["settings"]))


def stopped_sentence(error: SdftError, manifest: RunManifest) -> str:
    """Say where a whole run stopped and how it goes on, after its own sentence."""
    last = next((s for s in reversed(manifest.document["stages"]) if s["status"] != "finished"), None)
    where = f"in stage {last['name']}" if last else "before its first stage"
    return (
        f"Stopped {where} (exit code {error.exit_code}). When that is mended, in sdft.yaml or by options: "
        f"sdft run --resume --out {manifest.folder}"
    )
