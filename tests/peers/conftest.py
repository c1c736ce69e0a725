"""Functions of these tests reach Spark's workers with their code: nobody else can import them by name."""

from tests.gang.conftest import code_by_value

__all__ = ["code_by_value"]
