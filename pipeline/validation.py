"""Pydantic's errors, said in one line."""

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """Name the first bad key as ``section.key``, the value it has and what it should be."""
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"]) or "(file)"
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`"
    if problem["type"] == "missing":
        return f"key `{key}` is missing"
    message = problem["msg"].removeprefix("Value error, ")
    value = f" (it is {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    return f"`{key}`: {message}{value}"
