"""Keep other libraries' import notices and loading bars off the user's terminal; their errors still show."""

from __future__ import annotations

from sdft_cli.notices import loudness


def quiet_libraries() -> None:
    """Silence transformers where it says nothing about the user's work; call it before models are loaded.

    With `--verbose` it is heard. What libraries say when they are imported, `sdft_cli/engine/__init__.py` silences.
    """
    from transformers.utils import logging as transformers_logging

    if loudness() == "verbose":
        transformers_logging.set_verbosity_info()
        return
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
