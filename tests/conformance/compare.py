"""When two outputs are the same."""

import numpy as np
from numpy.typing import ArrayLike


def mismatch(got: ArrayLike | None, want: np.ndarray, *, atol: float, rtol: float) -> str | None:
    """Say how GOT differs from WANT, or None where it does not.

    Integers and booleans must be equal; floats may differ by ``atol + rtol * |want|``. NaN equals NaN, infinity
    infinity of the same sign. None, which stands for "no number" here, equals an array without a finite number.
    """
    if got is None:
        return None if not np.isfinite(want).any() else "null instead of a number"
    found = np.asarray(got)
    if found.dtype.kind not in "biuf":
        return f"{found.dtype} instead of numbers"
    if found.shape != want.shape:
        return f"shape {found.shape} instead of {want.shape}"
    if want.dtype.kind in "biu":
        exact = True
        same = found == want
    else:
        exact = False
        same = np.isclose(found.astype(np.float64), want.astype(np.float64), atol=atol, rtol=rtol, equal_nan=True)
    if same.all():
        return None
    with np.errstate(invalid="ignore"):
        deviation = np.abs(found.astype(np.float64) - want.astype(np.float64))[~same]
    largest = f"{deviation.max():.6g}" if np.isfinite(deviation).all() else "not finite"
    allowed = "exact" if exact else f"{atol:g} + {rtol:g} x |expected|"
    return f"largest deviation {largest} ({(~same).sum()} of {same.size} values), tolerance {allowed}"


def is_within(got: ArrayLike | None, want: np.ndarray, *, atol: float) -> bool:
    """Say whether GOT has the shape of WANT and differs by no more than ATOL; anything is within infinity."""
    if np.isinf(atol):
        return True
    if got is None or np.shape(got) != want.shape:
        return False
    found = np.asarray(got, dtype=np.float64)
    return np.allclose(found, want.astype(np.float64), atol=atol, rtol=0, equal_nan=True)
