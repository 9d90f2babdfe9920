from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.recipes.data import CAPS, CHARACTERS, PIECE, SKILLS, pieces, prepared
from benchmarks.recipes.ranking import correlations
from benchmarks.recipes.recipes import BASIS, COMMON, SETTINGS
from benchmarks.recipes.runs import contents_of, parted, resolved
from benchmarks.recipes.tables import (
    FORGOTTEN,
    LEARNED,
    SHOWN,
    at_equal_drift,
    drift_table,
    gap,
    mean_of_seeds,
    plot,
    study,
    table,
    value_of,
)
from sdft_cli.config import EvalConfig, load_train_config
from sdft_cli.metrics import METRICS
from sdft_cli.prompts.teacher import load_teacher_template
from tests.evaluation.documents import contender

CONFIG = EvalConfig(resamples=200)
BASE = contender("base", 0.0, 9)
SDFT = [contender("control", 0.3, seed) for seed in (0, 1)]
SFT = {"slow": [contender("control", 0.1, 2)], "fast": [contender("control", 0.5, 3)]}


def test_every_recipe_is_one_that_training_takes() -> None:
    for recipes in SETTINGS.values():
        assert len({recipe.name for recipe in recipes}) == len(recipes)
        assert any(recipe.is_sft for recipe in recipes)
        for recipe in recipes:
            load_teacher_template(recipe.wording)
            load_train_config("cpu-demo", [f"{k}={v}" for k, v in (COMMON | recipe.settings).items()])


def test_seeds_are_averaged_item_by_item() -> None:
    found = mean_of_seeds(SDFT, METRICS["expert_nll_per_token"])
    assert found[3] == pytest.approx((sum(c["items"][3]["nll"] for c in SDFT) / 2, 10.0))
    named = mean_of_seeds(SDFT, METRICS["tool_named_share"])
    assert named[1] is None  # no tool turn
    assert {part[0] for part in named if part} <= {0.0, 0.5, 1.0}


def test_a_recipe_is_compared_with_the_base_by_its_mean_and_seed_by_seed() -> None:
    found = gap(SDFT, BASE, "expert_nll_per_token", CONFIG)
    nll = [sum(i["nll"] for i in c["items"]) / 240 for c in (*SDFT, BASE)]
    assert found["seeds"] == pytest.approx([nll[0] - nll[2], nll[1] - nll[2]])
    assert found["value"] == pytest.approx((nll[0] + nll[1]) / 2 - nll[2])
    assert found["low"] < found["value"] < found["high"]


def test_at_equal_drift_sft_is_the_mean_of_its_neighbours() -> None:
    key = "expert_nll_per_token"
    drifts = {name: value_of(runs, "drift_kl") for name, runs in {"sdft": SDFT, **SFT}.items()}
    assert 0 < drifts["slow"] < drifts["sdft"] < drifts["fast"]
    share = (drifts["sdft"] - drifts["slow"]) / (drifts["fast"] - drifts["slow"])
    expected = (1 - share) * value_of(SFT["slow"], key) + share * value_of(SFT["fast"], key)
    found = at_equal_drift(SDFT, BASE, SFT, key, CONFIG)
    assert found is not None
    assert found["value"] == pytest.approx(value_of(SDFT, key) - expected)
    alone = [at_equal_drift([run], BASE, SFT, key, CONFIG) for run in SDFT]
    assert found["seeds"] == [one["value"] for one in alone if one]
    assert len({*found["seeds"]}) == 2
    below = at_equal_drift(SDFT, BASE, {"fast": SFT["fast"]}, key, CONFIG)  # from the base, which has no drift
    share = drifts["sdft"] / drifts["fast"]
    expected = (1 - share) * value_of([BASE], key) + share * value_of(SFT["fast"], key)
    assert below is not None
    assert below["value"] == pytest.approx(value_of(SDFT, key) - expected)
    assert at_equal_drift(SDFT, BASE, {"slow": SFT["slow"]}, key, CONFIG) is None


def test_tables_and_plot_show_every_recipe() -> None:
    result = study({"sdft": SDFT, **SFT}, BASE, list(SFT), CONFIG)
    assert set(result["base"]) == set(SHOWN)
    for shown in (LEARNED, FORGOTTEN):
        lines = table(result, shown).splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:]] == ["base", "sdft", "slow", "fast"]
        assert {line.count("|") for line in lines} == {len(shown) + 2}
    assert [line.split("|")[1].strip() for line in drift_table(result).splitlines()[2:]] == ["sdft"]
    assert study({"sdft": SDFT}, BASE, [], CONFIG)["at equal drift"] == {}
    drawn = ElementTree.fromstring(plot(result))
    assert {"sdft", "slow", "fast"} <= {text.strip() for text in drawn.itertext() if text.strip()}


def test_the_skills_of_the_continual_setting_do_not_share_tools(tiny_model: Path, tmp_path: Path) -> None:
    assert not SKILLS["a"] & SKILLS["b"]
    folders = prepared(tmp_path, "continual", BASIS, 12, None)
    from sdft_cli.records import read_dataset

    for folder, tools in zip(folders, SKILLS.values(), strict=True):
        data = read_dataset(folder)
        called = {call.name for r in (*data.train, *data.validation) for call in r.reference.tool_calls}
        assert called
        assert called <= tools
        assert data.manifest["config"]["max_prompt_tokens"] == CAPS["max_prompt_tokens"]


def test_what_was_made_by_another_version_is_not_taken(tmp_path: Path) -> None:
    (folder,) = prepared(tmp_path, "examples", BASIS, 12, None)
    assert prepared(tmp_path, "examples", BASIS, 12, None) == [folder]
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["examples-12"]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "teacher_text": "another {reference}"}))
    with pytest.raises(SystemExit, match=f"another text of {BASIS}"):
        prepared(tmp_path, "examples", BASIS, 12, None)
    next((tmp_path / "sessions" / "examples-12").iterdir()).write_text("{}\n")
    with pytest.raises(SystemExit, match="sessions of an earlier version"):
        prepared(tmp_path, "examples", BASIS, 12, None)


def test_a_run_is_known_by_all_its_settings_and_by_its_wording(tmp_path: Path) -> None:
    """Those of the profile too, which may change."""
    found = resolved({**COMMON, "seed": 3})
    assert (found["seed"], found["heldout"]["every"], found["gate"]["action"]) == (3, None, "off")
    assert found["optim"]["learning_rate"] == load_train_config("cpu-demo").optim.learning_rate
    contents = {contents_of(prepared(tmp_path, "examples", wording, 12, None)[0]) for wording in (BASIS, "own_turn")}
    assert len(contents) == 2
    assert any(load_teacher_template(BASIS).text in text for text in contents)


@pytest.mark.parametrize("called", [{"tuned": "a-0", "a-1": "a-1", "sft": "b-0"}, {"tuned": "b-0", "b-1": "b-1"}])
def test_an_evaluation_of_several_recipes_is_parted(called: dict[str, str]) -> None:
    """As `sdft eval` names them: the first of all is `tuned`, an SFT run alone among the others is `sft`."""
    document = {"records": 3, "contenders": {"base": "base", **called}}
    runs: dict[str, list[Path]] = {}
    for run in called.values():
        runs.setdefault(run[0], []).append(Path("runs", run))
    found = parted(document, runs)
    for name, some in runs.items():
        assert found[name] == {"records": 3, "contenders": {"base": "base", **{run.name: run.name for run in some}}}


def test_real_sessions_are_cut(tmp_path: Path) -> None:
    from sdft_cli.records import read_dataset
    from sdft_cli.traces.examples import write_examples

    write_examples(tmp_path / "mine", 12, 3)
    (folder,) = prepared(tmp_path / "study", "real", BASIS, 12, tmp_path / "mine")
    files = sorted((tmp_path / "study" / "sessions" / "real").iterdir())
    assert len(files) == 12
    pieces = [[json.loads(line) for line in f.read_text().splitlines()] for f in files]
    assert max(len(m["content"]) for some in pieces for piece in some for m in piece["messages"]) <= CHARACTERS
    assert max(map(len, pieces)) > 1
    data = read_dataset(folder)
    assert len(data.train) + len(data.validation) > 12
    sides = [{record.session.group for record in part} for part in (data.train, data.validation)]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_each_turn_of_a_conversation_is_in_one_piece_behind_the_latest_user_message() -> None:
    def tool(name: str) -> dict[str, object]:
        properties = {"path": {"type": "string", "description": "long"}, "limit": {}}
        parameters = {"type": "object", "properties": properties, "required": ["path"], "$schema": "x"}
        return {"type": "function", "function": {"name": name, "description": "One.\nTwo.", "parameters": parameters}}

    def call(number: int) -> dict[str, object]:
        function = {"name": "Read", "arguments": "{}"}
        return {"role": "assistant", "content": f"a{number}", "tool_calls": [{"id": str(number), "function": function}]}

    turns = [m for n in range(PIECE) for m in (call(n), {"role": "tool", "content": f"r{n}", "tool_call_id": str(n)})]
    task, thanks = {"role": "user", "content": "u0"}, {"role": "user", "content": "u1"}
    messages = [{"role": "system", "content": "s"}, task, *turns, thanks, {"role": "assistant", "content": None}]
    found = pieces({"messages": messages, "tools": [tool("Read"), tool("Write")]}, "mine")
    assert {piece["session_id"] for piece in found} == {"mine"}
    texts = [[m["content"] for m in piece["messages"]] for piece in found]
    assert texts == [
        ["u0", "a0", "r0", "a1", "r1", "a2", "r2"],
        ["u0", "a3", "r3", "a4", "r4", "a5", "r5"],
        ["u1", ""],
    ]
    for piece in found:
        (only,) = piece["tools"]
        assert only["function"]["description"] == "One."
        assert only["function"]["parameters"] == {
            "type": "object",
            "properties": {"path": {"type": "string"}, "limit": {"type": "string"}},
            "required": ["path"],
        }


def test_a_ranking_is_compared_with_results() -> None:
    wordings = ("again", "examples", "own_turn", "repeat")
    ranking = [{"template": name, "divergence": "forward_kl"} for name in (*wordings, "mine")]  # mine was not trained
    lower, higher = "expert_nll_per_token", "tool_named_share"
    values = {lower: (-0.9, -0.7, -0.8, -0.1), higher: (0.1, 0.2, 0.3, 0.4)}
    recipes = {
        f"{name}, forward": {
            **{key: {"value": float(i)} for key in LEARNED},
            **{key: {"value": found[i]} for key, found in values.items()},
        }
        for i, name in enumerate(wordings)
    }
    found = correlations(ranking, {"recipes": recipes})
    assert found[lower] == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours change places
    assert found[higher] == pytest.approx(-1)
    with pytest.raises(ValueError, match="2 of the ranked pairs were trained"):
        correlations(ranking[:2], {"recipes": recipes})
