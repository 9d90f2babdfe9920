"""Adapter -> checkpoint, and the proof that it is the same model."""
