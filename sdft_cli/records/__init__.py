"""The contract between all rooms: messages, sessions, records, and how they are stored.

types       messages, sessions, records, rejections
reasons     why a turn is no record: every reason, and the function that goes through them
dataset     the dataset folder, written and read
lazy        the dataset folder, read piece by piece
export      self-contained rows for other trainers
folders     folders and files, whole or not at all
on_disk     sequences in a temporary file, for what may be larger than memory
json_files  JSON documents, whole or not at all
"""

from sdft_cli.records.dataset import Dataset, read_dataset, write_dataset
from sdft_cli.records.types import Message, Record, RecordRow, Rejection, Session, ToolCall, ToolSchema

__all__ = [
    "Dataset",
    "Message",
    "Record",
    "RecordRow",
    "Rejection",
    "Session",
    "ToolCall",
    "ToolSchema",
    "read_dataset",
    "write_dataset",
]
