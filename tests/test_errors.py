"""What a message of ours quotes of another library's error."""

import pytest

from serving.errors import first_line


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (RuntimeError("no room\nat alloc_cpu.cpp:117"), "no room"),
        (RuntimeError("\n  no room  \nmore"), "no room  "),
        (RuntimeError(" \n"), "RuntimeError"),
        (MemoryError(), "MemoryError"),
        (ValueError(""), "ValueError"),
    ],
)
def test_one_line_is_quoted_whatever_the_error_says(problem: Exception, said: str) -> None:
    """An error that says nothing is named; none breaks the message that quotes it."""
    assert first_line(problem) == said
