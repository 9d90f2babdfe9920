from __future__ import annotations

import pytest

pytest.importorskip("torch")

from sdft_cli.engine.kernels.traps import Stack, known_trap


@pytest.mark.parametrize(
    ("stack", "does"),
    [
        (Stack(9, "0.6.0", "3.6.0"), "raises in the backward pass"),
        (Stack(9, "0.5.2", "3.7.0"), "raises in the backward pass"),
        (Stack(9, "0.5.1", "3.7.1"), "raises in the backward pass"),  # it does not know that 3.7.1 is right
        (Stack(9, "0.4.2", "3.4.0"), "returns wrong gradients"),
        (Stack(10, "0.5.2", "3.7.1"), "gives other results from call to call"),
        (Stack(12, "0.5.1", "3.6.0"), "gives other results from call to call"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused_with_what_to_install(stack: Stack, does: str) -> None:
    found = known_trap(stack)
    assert found is not None
    assert does in found
    assert f"fla-core {stack.fla} with triton {stack.triton}" in found
    assert "pip install 'sdft-cli[gpu]'" in found


@pytest.mark.parametrize(
    "stack",
    [
        Stack(9, "0.6.0", "3.7.1"),
        Stack(9, "0.5.2", "3.8.0"),
        Stack(9, "0.6.0", "3.3.1"),
        Stack(9, "0.6.0", "3.6.0", tilelang=True),
        Stack(9, "0.5.1", "3.6.0", bundled=True),
        Stack(9, "0.4.2", "3.7.1"),
        Stack(8, "0.6.0", "3.6.0"),
        Stack(10, "0.6.0", "3.7.1"),
        Stack(10, "0.5.1", "3.6.0", bundled=True),
    ],
)
def test_what_works_is_not_refused(stack: Stack) -> None:
    assert known_trap(stack) is None


def test_the_copy_that_unsloth_brings_is_known_by_a_function_of_its_own() -> None:
    """`traps.stack_of` asks for it; fla-core itself has no such function."""
    spec = pytest.importorskip("importlib.util").find_spec("unsloth_zoo")
    if spec is None:
        pytest.skip("unsloth is not installed")
    from pathlib import Path

    source = Path(spec.submodule_search_locations[0]) / "_vendored" / "fla" / "ops" / "common" / "chunk_o.py"
    assert "\ndef _is_hopper_tensor(" in source.read_text(encoding="utf-8")
