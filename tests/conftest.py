from tests.flush import flush_may_empty_the_books

__all__ = ["flush_may_empty_the_books"]
