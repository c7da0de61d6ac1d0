"""How far a run of the ``masks`` stage is, read from its store while it runs or after it stopped."""

import sqlite3
from pathlib import Path

from pipeline.data.catalogue import load_images
from pipeline.data.mask_store import Contents, read_contents
from pipeline.data.segmentation import fingerprint, name_of, store_key
from pipeline.data.store_lock import holder_of
from pipeline.params import MasksParams

_SHOWN_DIGITS = 8  # of a fingerprint: enough to tell settings apart


def describe_progress(dataset: Path, *, store: Path, params: MasksParams, bgr: bool = False) -> str:
    """Say how much of DATASET the store has under PARAMS, and how long the rest takes. Computes and writes nothing.

    A store that is missing or damaged is said to be so; to a run it is an empty one.

    Returns:
        Lines for people.

    Raises:
        PipelineError: no data set, or ``masks.weights`` does not exist.
    """
    images = load_images(dataset).rows
    settings = fingerprint(params, bgr=bgr)
    contents, lines = None, []
    try:
        contents = read_contents(store, settings)
        if contents is None:
            lines.append(f"{store}: no store yet")
    except (sqlite3.DatabaseError, OSError) as error:
        lines.append(f"{store}: cannot be read ({error}); a damaged store is set aside by the next run")
    known = contents or Contents(num_masks={}, other_settings=[], timed_images=0, timed_seconds=0.0)
    keys = [store_key(row, params) for row in images]
    counts = [known.num_masks.get(key) for key in keys]
    missing = {key for key, count in zip(keys, counts, strict=True) if count is None}
    num_done = sum(count is not None for count in counts)
    lines += [
        f"{_named(name_of(params, bgr=bgr), settings)}: {num_done:,} of {len(images):,} images done"
        f" ({num_done / len(images):.1%}), {sum(count or 0 for count in counts):,} masks so far",
        _estimate(len(missing), known),
    ]
    if holder := holder_of(store):
        lines.append(f"process {holder} is at work on {store}")
    lines += [
        f"also in {store}: {num_images:,} images under {_named(name, other)}"
        for other, name, num_images in known.other_settings
    ]
    return "\n".join(lines)


def _named(name: str, settings: str) -> str:
    return f"{name or 'other settings'} [{settings[:_SHOWN_DIGITS]}]"


def _estimate(num_missing: int, known: Contents) -> str:
    if num_missing == 0:
        return "nothing left to segment"
    if known.timed_seconds == 0:
        return f"{num_missing:,} images left; no estimate yet"
    rate = known.timed_images / known.timed_seconds
    digits = ".2g" if rate < 10 else ",.0f"
    return (
        f"about {_duration(num_missing / rate)} left at {rate:{digits}} images/s, measured over the last"
        f" {known.timed_images:,} images under these settings"
    )


def _duration(seconds: float) -> str:
    """Round to what matters: seconds (one at least) below a minute, minutes below an hour, then both."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
