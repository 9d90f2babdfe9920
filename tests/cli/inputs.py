"""A dataset, runs and evaluations on disk, good enough for every command to begin."""

from __future__ import annotations

from pathlib import Path

from sdft_cli.config import load_train_config
from sdft_cli.engine.train.run import dataset_facts
from sdft_cli.records.json_files import write_json
from sdft_cli.run_folder import FORMAT
from tests.engine.prepared import prepared
from tests.evaluation.documents import document


def write_inputs(folder: Path, model: Path) -> None:
    """Write `sessions`, the dataset `data`, `run` and `other`, runs with an evaluation and an empty adapter, and `cpp`.

    `cpp` has the file of llama.cpp's converter.
    """
    data = prepared(model, folder, 12, 0.3)
    for name in ("run", "other"):
        adapter = folder / name / "adapter"
        adapter.mkdir(parents=True)
        config = load_train_config("cpu-demo", (), {"model": str(model)})
        write_json(folder / name / "config.json", config.model_dump(mode="json"))
        write_json(folder / name / "run.json", {"format": FORMAT, "status": "running", "dataset": dataset_facts(data)})
        write_json(adapter / "adapter_config.json", {"r": 4, "lora_alpha": 8})
        (adapter / "adapter_model.safetensors").touch()
        write_json(folder / name / "eval.json", document(tuned=("tuned", 0.5)))
    (folder / "cpp").mkdir()
    (folder / "cpp" / "convert_hf_to_gguf.py").touch()
