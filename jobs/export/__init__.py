"""From a trained module to files that others can serve: ONNX, and the card that says what they are."""

from jobs.export.card import CARD_NAME, FORMAT_VERSION, file_records, read_card, write_card
from jobs.export.onnx import export_onnx

__all__ = ["CARD_NAME", "FORMAT_VERSION", "export_onnx", "file_records", "read_card", "write_card"]
