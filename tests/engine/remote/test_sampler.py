"""Rollouts over HTTP against decoding here: the same ids, the same log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import RolloutSettings  # noqa: E402
from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.objective.loss import token_log_likelihood  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout, generate  # noqa: E402
from sdft_cli.engine.passes.executors import response_states  # noqa: E402
from sdft_cli.engine.remote.client import Refused, Server  # noqa: E402
from sdft_cli.engine.remote.completions import PATH, Decoding, request_for, rollout_of  # noqa: E402
from sdft_cli.engine.remote.flight import Flight  # noqa: E402
from sdft_cli.engine.remote.handover import Handover  # noqa: E402
from sdft_cli.engine.remote.sampler import RemoteSampler, Wanted  # noqa: E402
from tests.conftest import VOCABULARY  # noqa: E402
from tests.engine.prepared import adapted  # noqa: E402
from tests.engine.remote.conftest import Serve  # noqa: E402

STOPS, PAD = [2], 2
GREEDY = Decoding(24, 0.0, 1.0, tuple(STOPS), VOCABULARY)


def prompts_of(count: int) -> list[list[int]]:
    """Prompts of 1 to 60 tokens, some with a common beginning."""
    draw = random.Random(5)
    common = [draw.randrange(3, 8_000) for _ in range(30)]
    return [common[: i % 7 * 5] + [draw.randrange(3, 8_000) for _ in range(1 + i % 30)] for i in range(count)]


@pytest.fixture(scope="module")
def server(serve: Serve, tiny_model: Path) -> Any:
    return serve(tiny_model, adapters=True)


@pytest.fixture
def backend(tiny_model: Path) -> Backend:
    return adapted(tiny_model)


@pytest.fixture
def client(server: Any) -> Iterator[Server]:
    found = Server(server.url, 60)
    yield found
    found.close()


def test_greedy_ids_are_those_of_local_decoding(client: Server, backend: Backend, tmp_path: Path) -> None:
    """64 prompts, by the base and by an adapter with values; log-probabilities are those of a training pass."""
    prompts = prompts_of(64)
    mine = tmp_path / "handover" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("of somebody else")
    handover = Handover(client, mine.parent, backend.save_adapter, 1)
    models = {"base": client.get("/v1/models")["data"][0]["id"], "adapter": handover.bring(0)}
    found = {}
    for case, model in models.items():
        with weights(backend.model, case):
            local = generate(backend, prompts, GREEDY.max_new_tokens, STOPS, PAD)

        def ask(prompt: list[int], model: str = model) -> Rollout:
            return rollout_of(client.post(PATH, request_for(model, prompt, 0, GREEDY)), prompt, GREEDY, client.url)

        remote = Flight([partial(ask, prompt) for prompt in prompts]).results()
        assert [y.ids for y in remote] == [y.ids for y in local]
        assert [y.finished for y in remote] == [y.finished for y in local]
        with torch.no_grad(), weights(backend.model, case):
            states = response_states(backend, prompts, [y.ids for y in remote], PAD)
        told = torch.tensor([x for y in remote for x in y.log_probs or ()])
        tokens = torch.tensor([token for y in remote for token in y.ids])
        assert (token_log_likelihood(states, backend.head, tokens) - told).abs().max() < 1e-4
        found[case] = [y.ids for y in remote]
    assert sum(a != b for a, b in zip(*found.values(), strict=True)) > 32  # the adapter was on
    handover.bring(1)
    assert len(list(mine.parent.iterdir())) == 2
    handover.take_back()
    assert list(mine.parent.iterdir()) == [mine]


def test_a_step_of_rollouts(client: Server, server: Any, backend: Backend, tmp_path: Path) -> None:
    handover = Handover(client, tmp_path / "handover", backend.save_adapter, 2)
    sampler = RemoteSampler(client, handover, STOPS, VOCABULARY)
    settings = RolloutSettings(max_new_tokens=6, temperature=0.9, top_p=0.95)
    prompts = [[5, 9, 11], [5, 9, 11], [7]]
    first = sampler.sample(Wanted(1, prompts, settings, 77))
    assert first[0].ids != first[1].ids  # each of two equal prompts has a sample of its own
    again = sampler.sample(Wanted(2, prompts, settings, 77))
    assert [y.ids for y in again] == [y.ids for y in first]
    assert [[y.staleness for y in found] for found in (first, again)] == [[0] * 3, [1] * 3]
    names = list(server.service.adapters)
    third = sampler.sample(Wanted(3, prompts, settings, 78))
    assert {y.staleness for y in third} == {0}  # two updates later it was handed over
    assert [y.ids for y in third] != [y.ids for y in first]
    assert list(server.service.adapters) != names
    assert len(server.service.adapters) == 1  # the one before was unloaded
    sampler.begin(Wanted(4, prompts, settings, 79), 2)
    ahead = sampler.sample(Wanted(4, prompts, settings, 79))
    assert {y.staleness for y in ahead} == {1}
    assert sampler.sample(Wanted(5, [], settings, 80)) == []
    sampler.close()
    assert server.service.adapters == {}
    assert list((tmp_path / "handover").iterdir()) == []  # the folder that was named stays, nothing of ours in it


def test_requests_ask_for_the_distribution_and_nothing_else(client: Server, server: Any) -> None:
    """What a request leaves open, a server takes from the model's generation config."""
    how = Decoding.of(RolloutSettings(max_new_tokens=3, temperature=0.7, top_p=0.9), [2, 7], VOCABULARY)
    client.post(PATH, request_for(server.service.model, [5, 6], 3 << 32, how))
    asked = server.service.asked[-1]
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"], asked["seed"]) == (0.7, 0.9, 3, 3)
    assert (asked["stop_token_ids"], asked["ignore_eos"], asked["prompt"]) == ([2, 7], True, [[5, 6]])
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert {key: asked[key] for key in neutral} == neutral


def test_the_first_error_is_raised_and_nothing_more_is_asked() -> None:
    started: list[int] = []

    def job(number: int) -> int:
        started.append(number)
        if number == 3:
            raise ValueError("third")
        return number

    assert Flight([partial(job, n) for n in (0, 1, 2)]).results() == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        Flight([partial(job, n) for n in (1, 3, 5)]).results()


def test_an_answer_of_an_older_server_has_its_ids_in_the_log_probabilities(server: Any, client: Server) -> None:
    answer = client.post(PATH, request_for(server.service.model, [5, 6], 0, GREEDY))
    whole = rollout_of(answer, [5, 6], GREEDY, client.url)
    del answer["choices"][0]["token_ids"], answer["choices"][0]["prompt_token_ids"]
    assert rollout_of(answer, [5, 6], GREEDY, client.url) == whole


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"prompt_token_ids": [5, 7]}, "read other token ids than it was sent: serve the run's model"),
    ({"token_ids": [8192], "logprobs": {"token_logprobs": [-1.0]}}, "answered token 8192, and this model has 8192"),
    ({"token_ids": [9], "logprobs": {"token_logprobs": [-1.0]}}, "cut an answer at 1 tokens: serve with a larger"),
    (
        {"token_ids": [9], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"},
        r"ended an answer at token 9 \(stop\), which is no end of a turn here: serve with --generation-config vllm",
    ),
    ({"token_ids": [9, 8]}, "tells no token ids with their log-probabilities: serve with vLLM 0.10.2"),
    ({"logprobs": None}, "tells no token ids with their log-probabilities"),
]


@pytest.mark.parametrize(("changes", "sentence"), BROKEN)
def test_answers_that_cannot_be(changes: dict[str, Any], sentence: str) -> None:
    choice = {"token_ids": [2], "finish_reason": "length", "prompt_token_ids": [5, 6]}
    answer = {"choices": [{**choice, "logprobs": {"tokens": ["x"], "token_logprobs": [-1.0]}, **changes}]}
    with pytest.raises(Exception, match=sentence):
        rollout_of(answer, [5, 6], GREEDY, "http://there")


def test_errors_of_http_keep_what_was_said(client: Server) -> None:
    with pytest.raises(Refused, match=r"refused /v1/completions \(404: The model `x` does not exist\)") as caught:
        client.post(PATH, request_for("x", [5], 0, GREEDY))
    assert (caught.value.status, caught.value.exit_code) == (404, 1)
