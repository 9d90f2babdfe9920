"""Keep other libraries' import notices and loading bars off the user's terminal; their errors still show."""

from __future__ import annotations

import logging
import warnings

from sdft_cli.notices import loudness


def quiet_libraries() -> None:
    """Silence notices that say nothing about the user's work; call it before models are loaded.

    With `--verbose` they are shown.
    """
    from transformers.utils import logging as transformers_logging

    if loudness() == "verbose":
        transformers_logging.set_verbosity_info()
        return
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torchao\..*")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
