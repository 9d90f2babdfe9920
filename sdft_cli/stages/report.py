"""What was made -> a page to look at."""

from __future__ import annotations

from pathlib import Path

PAGE = "report.html"


def write_report(folder: Path) -> Path:
    """Write the page of a whole run's folder, and return its path: its dataset, so far.

    Raises:
        DataError: the dataset is missing or damaged.
        MachineError: the page cannot be written.
    """
    from sdft_cli.records import read_dataset
    from sdft_cli.records.folders import write_text
    from sdft_cli.report.page import render_page

    write_text(folder / PAGE, render_page(read_dataset(folder / "data")), overwrite=True)
    return folder / PAGE
