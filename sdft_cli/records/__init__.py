"""The contract between all rooms: messages, sessions, records, and the dataset folder that stores them."""

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
