from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sdft_cli.threads import WAITING, limit_spinning


def test_what_the_user_has_set_stays() -> None:
    fresh: dict[str, str] = {}
    limit_spinning(fresh)
    assert fresh == WAITING
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        environment = dict(own)
        limit_spinning(environment)
        assert environment == own


@pytest.mark.parametrize("code", ["import sdft_cli.cli.main", "import benchmarks"])
def test_commands_and_benchmarks_set_it_before_torch(code: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in WAITING}
    check = f"{code}; import os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [WAITING["GOMP_SPINCOUNT"], "False"]
