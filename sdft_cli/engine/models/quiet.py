"""Keep other libraries' import notices and loading bars off the user's terminal; their errors still show."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence notices that say nothing about the user's work; call it before models are loaded."""
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torchao\..*")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
