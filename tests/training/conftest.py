"""Fixtures of the training tests."""

from tests.fixtures.temporary import temporary_files

__all__ = ["temporary_files"]
