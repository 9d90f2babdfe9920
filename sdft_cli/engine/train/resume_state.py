"""What an optimiser step depends on: captured for a checkpoint, and put back so that the run goes on bit for bit.

| part        | what                                                                                        |
| ----------- | ------------------------------------------------------------------------------------------- |
| `adapter`   | every trainable parameter by name                                                           |
| `ema`       | the teacher's own adapter in fp32, averaged or frozen, if it has one                        |
| `optimizer` | AdamW's `step`, `exp_avg`, `exp_avg_sq` as `exp_avg/<parameter>`; nothing before step 1     |
| schedule    | the step counters; rates are recomputed from the configuration and compared                 |
| random      | generators of Python, numpy, torch on the CPU and on each GPU                               |

The order of records and the seeds of rollouts depend on the step's number only, so they need no state.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdft_cli.engine.models.adapters import EmaAdapter
from sdft_cli.engine.train.checkpoints import Checkpoint
from sdft_cli.errors import DataError

ADAMW_STATE = frozenset({"step", "exp_avg", "exp_avg_sq"})


def capture(
    model: Any, optimizer: Any, schedule: Any, ema: EmaAdapter | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return copies of the tensors on the CPU (part -> name -> tensor), and the rest as JSON values.

    Args:
        model: the peft model.
        optimizer: AdamW over the trainable parameters, also as accelerate wraps it.
        schedule: `LambdaLR`, also as accelerate wraps it.
        ema: the averaged adapter, if the teacher is one.

    Raises:
        ValueError: the optimiser has another parameter than the trainable ones, another state than AdamW's, or a
            gradient scaler.
    """
    parameters = trainable(model)
    if getattr(optimizer, "scaler", None) is not None:
        raise ValueError("a gradient scaler (mixed precision fp16) has a state that is not captured")
    tensors: dict[str, Mapping[str, Tensor]] = {
        "adapter": parameters,
        "optimizer": _optimizer_tensors(parameters, unwrapped(optimizer)),
    }
    if ema is not None:
        tensors["ema"] = ema.tensors
    inner = unwrapped(schedule)
    state = {
        "schedule": {
            "last_epoch": inner.last_epoch,
            "step_count": inner._step_count,
            "rates": list(inner.get_last_lr()),
        },
        "random": random_state(),
    }
    return {part: {name: _copy(t) for name, t in group.items()} for part, group in tensors.items()}, state


def restore(checkpoint: Checkpoint, model: Any, optimizer: Any, schedule: Any, ema: EmaAdapter | None = None) -> None:
    """Put a captured state back into freshly built objects of the same configuration.

    Everything is checked before anything is changed. Random generators are set last.

    Raises:
        DataError: a name is missing or unexpected, or a shape, a dtype, a learning rate or the number of GPUs is not
            this run's; the message names the first.
    """
    parameters = trainable(model)
    _check_parts(checkpoint, {"adapter", "optimizer"} | ({"ema"} if ema is not None else set()))
    adapter, moments = checkpoint.tensors("adapter"), checkpoint.tensors("optimizer")
    averaged = checkpoint.tensors("ema") if ema is not None else {}
    _check(checkpoint, "adapter", adapter, parameters)
    _check(checkpoint, "ema", averaged, ema.tensors if ema is not None else {})
    _check(checkpoint, "optimizer", moments, _expected_moments(parameters, moments))
    _check_rates(checkpoint, unwrapped(schedule))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])
        for name, tensor in averaged.items():
            assert ema is not None
            ema.tensors[name].copy_(tensor)
    _put_moments(parameters, moments, unwrapped(optimizer))
    _put_schedule(checkpoint.state["schedule"], unwrapped(schedule))
    set_random_state(checkpoint.state["random"])


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def digest(model: Any) -> str:
    """Return a hash of the trainable parameters: names and all bits."""
    found = hashlib.sha256()
    for name, parameter in trainable(model).items():
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def unwrapped(wrapped: Any) -> Any:
    """Return the torch object inside accelerate's `AcceleratedOptimizer` or `AcceleratedScheduler`."""
    if isinstance(wrapped, torch.optim.lr_scheduler.LRScheduler):
        return wrapped  # it has an attribute `optimizer` of its own
    return getattr(wrapped, "scheduler", None) or getattr(wrapped, "optimizer", wrapped)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _optimizer_tensors(parameters: Mapping[str, Tensor], optimizer: Any) -> dict[str, Tensor]:
    names = {id(p): name for name, p in parameters.items()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError("the optimiser has a parameter that is not a trainable one of the model")
            state = optimizer.state.get(parameter, {})
            if state and state.keys() != ADAMW_STATE:
                raise ValueError(f"a state of AdamW is {sorted(ADAMW_STATE)}, not {sorted(state)}")
            found.update({f"{key}/{names[id(parameter)]}": value for key, value in state.items()})
    return found


def _expected_moments(parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return templates of the optimiser's tensors: all three of a parameter, or none where it had no step yet."""
    started = {name.partition("/")[2] for name in moments} & parameters.keys()
    templates = {"step": torch.zeros((), dtype=torch.float32)}
    return {f"{key}/{name}": templates.get(key, parameters[name]) for name in sorted(started) for key in ADAMW_STATE}


def _put_moments(parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], optimizer: Any) -> None:
    """Set AdamW's state directly: `load_state_dict` knows parameters by index, and brings old hyper-parameters back."""
    on_device = {id(p) for g in optimizer.param_groups if g["fused"] or g["capturable"] for p in g["params"]}
    optimizer.state.clear()
    for name, parameter in parameters.items():
        if f"step/{name}" not in moments:
            continue
        step = moments[f"step/{name}"]
        optimizer.state[parameter] = {
            "step": step.to(parameter.device) if id(parameter) in on_device else step,
            "exp_avg": torch.empty_like(parameter.detach()).copy_(moments[f"exp_avg/{name}"]),
            "exp_avg_sq": torch.empty_like(parameter.detach()).copy_(moments[f"exp_avg_sq/{name}"]),
        }


def _rates(schedule: Any, epoch: int) -> list[float]:
    """Return each group's learning rate as `LambdaLR` computes it."""
    return [base * factor(epoch) for factor, base in zip(schedule.lr_lambdas, schedule.base_lrs, strict=True)]


def _put_schedule(state: Mapping[str, Any], schedule: Any) -> None:
    schedule.last_epoch, schedule._step_count = state["last_epoch"], state["step_count"]
    schedule._last_lr = _rates(schedule, schedule.last_epoch)
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


ADVICE = "was this run started with another profile?"


def _where(checkpoint: Checkpoint) -> str:
    return f"checkpoints/{checkpoint.path.name}"


def _check_parts(checkpoint: Checkpoint, expected: set[str]) -> None:
    for part in sorted(checkpoint.parts ^ expected):
        has = "has" if part in checkpoint.parts else "lacks"
        raise DataError(f"{_where(checkpoint)} {has} {part}.safetensors, unlike this configuration: {ADVICE}")


def _check(checkpoint: Checkpoint, part: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    where = f"{_where(checkpoint)}/{part}.safetensors"
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise DataError(f"{where} lacks {name}: {ADVICE}")
        if name not in expected:
            raise DataError(f"{where} has {name}, which this model does not train: {ADVICE}")
        told, wanted = ((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in (found[name], expected[name]))
        if told != wanted:
            raise DataError(
                f"{where} has {name} as {told[1]} {told[0]}, this model as {wanted[1]} {wanted[0]}: {ADVICE}"
            )


def _check_rates(checkpoint: Checkpoint, schedule: Any) -> None:
    state = checkpoint.state["schedule"]
    rates = _rates(schedule, state["last_epoch"])
    if rates != state["rates"]:
        raise DataError(
            f"{_where(checkpoint)} goes on with learning rates {state['rates']}, "
            f"this configuration with {rates}: {ADVICE}"
        )


def random_state() -> dict[str, Any]:
    """Return the state of each library's global generator as JSON values."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "python": [version, _encode(np.array(words, dtype=np.uint32)), gauss],
        "numpy": {**numpy, "state": {**numpy["state"], "key": _encode(numpy["state"]["key"])}},
        "torch": _encode(torch.get_rng_state().numpy()),
        "cuda": [_encode(state.cpu().numpy()) for state in _gpu_states()],
    }


def _gpu_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set each library's global generator to what `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(map(int, _decode(words, np.uint32))), gauss))
    key = _decode(state["numpy"]["state"]["key"], np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(torch.from_numpy(_decode(state["torch"], np.uint8)))
    for device, _ in zip(range(len(state["cuda"])), _gpu_states(), strict=False):
        torch.cuda.set_rng_state(torch.from_numpy(_decode(state["cuda"][device], np.uint8)), device)


def _encode(array: np.ndarray[Any, Any]) -> str:
    """Return the bytes of an array, little-endian, as base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _decode(text: str, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)
