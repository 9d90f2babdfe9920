"""A server of vLLM's protocol around transformers, to try `sdft train --rollouts vllm` where there is no vLLM.

    python -m benchmarks.completions_server MODEL [--port 8000] [--dtype float32] [--adapters] [--max-lora-rank 64]
                                            [--max-model-len N] [--logprobs-mode raw_logprobs] [--delay SECONDS]

It answers `/v1/models`, `/v1/completions`, `/tokenize`, `/v1/load_lora_adapter` and `/v1/unload_lora_adapter` (the last
two with `--adapters` only) as vLLM 0.32 does, for prompts of token ids and one answer each; what it does not know it
refuses. It decodes one request after the other, so it is slow; adapters are loaded by peft. For tests and trials: it
asks for no key, and reads any folder that it is told of.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend, load_model
from sdft_cli.engine.passes.decode import Rollout, generate
from sdft_cli.prompts.chat import load_tokenizer

FIXED = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1}
"""Fields of a request that change the distribution, and the only values that are served."""
KNOWN = {
    *FIXED,
    *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop_token_ids", "ignore_eos", "logprobs"),
    *("return_token_ids", "return_tokens_as_token_ids"),
}


class Refusal(Exception):
    """An HTTP error: its status, and what is said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Options:
    """How the server was started; see the command."""

    dtype: str = "float32"
    adapters: bool = False
    max_lora_rank: int = 64
    max_model_len: int = 4096
    logprobs_mode: str = "raw_logprobs"
    delay: float = 0.0


class Service:
    """A model, and the adapters that were loaded; one request at a time."""

    def __init__(self, model: str, options: Options) -> None:
        self.model, self.options = model, options
        self.tokenizer = load_tokenizer(model)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base = load_model(model, getattr(torch, options.dtype), device)
        self.backend = TransformersBackend(PlainModel(base), device)
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def models(self, _: dict[str, Any]) -> dict[str, Any]:
        own = {"id": self.model, "root": self.model, "parent": None, "max_model_len": self.options.max_model_len}
        loaded = [{"id": name, "root": path, "parent": self.model} for name, path in self.adapters.items()]
        return {"object": "list", "data": [{"object": "model", **card} for card in (own, *loaded)]}

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.tokenizer(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))["input_ids"]
        return {"count": len(ids), "max_model_len": self.options.max_model_len, "tokens": ids}

    def load(self, body: dict[str, Any]) -> str:
        from peft import PeftModel

        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").is_file():
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.options.max_lora_rank:
            raise Refusal(500, f"LoRA rank {rank} is greater than max_lora_rank {self.options.max_lora_rank}.")
        with self._lock:
            if isinstance(self.backend.model, PlainModel):
                self.backend.model = PeftModel.from_pretrained(self.backend.base, path, adapter_name=name)
            else:
                self.backend.model.load_adapter(path, adapter_name=name)
            self.adapters[name] = str(path)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> str:
        name = body["lora_name"]
        if name not in self.adapters:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
        with self._lock:
            del self.adapters[name]
            if self.adapters:
                self.backend.model.delete_adapter(name)
            else:
                self.backend.model = PlainModel(self.backend.model.unload())
        return f"Success: LoRA adapter '{name}' removed successfully."

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check(body)
        self.asked.append(body)
        time.sleep(self.options.delay)
        with self._lock:
            answers = self._decoded(body)
        choices = [self._choice(i, *pair, body) for i, pair in enumerate(zip(body["prompt"], answers, strict=True))]
        return {"object": "text_completion", "model": body["model"], "choices": choices}

    def _check(self, body: dict[str, Any]) -> None:
        odd = [key for key in body if key not in KNOWN or body[key] != FIXED.get(key, body[key])]
        if odd:
            raise Refusal(400, f"{odd[0]} is not served here")
        if body["model"] not in (self.model, *self.adapters):
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        words = self.backend.head.words
        for prompt in body["prompt"]:
            if max(prompt) >= words:
                raise Refusal(400, f"Token id {max(prompt)} is out of vocabulary")
            if len(prompt) + body["max_tokens"] > self.options.max_model_len:
                raise Refusal(400, f"This model's maximum context length is {self.options.max_model_len} tokens.")

    def _decoded(self, body: dict[str, Any]) -> list[Rollout]:
        model, eos = self.backend.model, self.tokenizer.eos_token_id
        stops = [*body["stop_token_ids"], *([] if body["ignore_eos"] else [eos])]
        seeds = [body["seed"]] * len(body["prompt"])
        how = (body["max_tokens"], stops, eos, body["temperature"] or None, body["top_p"])
        if body["model"] == self.model:
            with model.disable_adapter():
                return self._told(generate(self.backend, body["prompt"], *how, True, seeds=seeds), body)
        model.set_adapter(body["model"])
        return self._told(generate(self.backend, body["prompt"], *how, True, seeds=seeds), body)

    def _told(self, answers: list[Rollout], body: dict[str, Any]) -> list[Rollout]:
        """Return the answers with the log-probabilities that are told: raw ones, or those behind temperature, top-p."""
        if self.options.logprobs_mode == "raw_logprobs" or not body["temperature"]:
            return answers
        pairs = zip(body["prompt"], answers, strict=True)
        return [Rollout(y.ids, y.finished, self._processed(prompt, y.ids, body)) for prompt, y in pairs]

    @torch.no_grad()
    def _processed(self, prompt: list[int], ids: list[int], body: dict[str, Any]) -> list[float]:
        rows = torch.tensor([[*prompt, *ids]], device=self.backend.device)
        logits = self.backend.full_pass(input_ids=rows).logits[0, len(prompt) - 1 : -1].float() / body["temperature"]
        kept = within_top_p(logits, body["top_p"])
        chosen = torch.tensor(ids, device=self.backend.device)[:, None]
        return logits.masked_fill(~kept, -torch.inf).log_softmax(-1).gather(-1, chosen).squeeze(-1).tolist()

    def _choice(self, index: int, prompt: list[int], answer: Rollout, body: dict[str, Any]) -> dict[str, Any]:
        names = [f"token_id:{i}" for i in answer.ids]
        logs = [max(x, -9999.0) for x in answer.log_probs or []]
        told = {"tokens": names, "token_logprobs": logs} if body["logprobs"] is not None else None
        ids = {"token_ids": answer.ids, "prompt_token_ids": prompt} if body["return_token_ids"] else {}
        text = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
        finished = "stop" if answer.finished else "length"
        return {"index": index, "text": text, "logprobs": told, "finish_reason": finished, **ids}


def within_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Say of each token (R, V) whether it is one of the most probable ones that have `top_p` together."""
    ranked = logits.softmax(-1).sort(-1, descending=True)
    kept = ranked.values.cumsum(-1) - ranked.values < top_p
    return torch.zeros_like(kept).scatter(-1, ranked.indices, kept)


class CompletionsServer(ThreadingHTTPServer):
    """HTTP around a service; `with` serves in a thread, `serve_forever` in this one."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, service: Service, port: int = 0) -> None:
        self.service = service
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> CompletionsServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Routes; an answer is JSON, or text."""

    server: CompletionsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer({"/v1/models": self.server.service.models}.get(self.path), {})

    def do_POST(self) -> None:
        service = self.server.service
        routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/v1/completions": service.complete,
            "/tokenize": service.tokenize,
        }
        if service.options.adapters:
            routes |= {"/v1/load_lora_adapter": service.load, "/v1/unload_lora_adapter": service.unload}
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(routes.get(self.path), body)

    def _answer(self, route: Callable[[dict[str, Any]], Any] | None, body: dict[str, Any]) -> None:
        try:
            if route is None:
                self._write(404, {"detail": "Not Found"})
                return
            self._write(200, route(body))
        except Refusal as error:
            self._write(error.status, {"error": {"message": str(error), "code": error.status}})
        except (KeyError, TypeError, ValueError) as error:
            self._write(400, {"error": {"message": f"{type(error).__name__}: {error}", "code": 400}})

    def _write(self, status: int, found: Any) -> None:
        data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--logprobs-mode", default="raw_logprobs", choices=["raw_logprobs", "processed_logprobs"])
    parser.add_argument("--delay", type=float, default=0.0)
    given = vars(parser.parse_args())
    model, port = given.pop("model"), given.pop("port")
    server = CompletionsServer(Service(model, Options(**given)), port)
    print(f"Serving {model} at {server.url}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
