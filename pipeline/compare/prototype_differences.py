"""Which prototypes moved between two revisions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.compare.image_differences import hashes_of_pictures
from pipeline.compare.revisions import Missing, Prototype, Revision, Source


@dataclass(frozen=True, slots=True)
class Move:
    """A prototype's slot whose source changed; a source is None where no training view shows the prototype.

    ``is_replaced`` says that both sources have one name, mask and box, and that the picture is another one.
    """

    prototype_idx: int
    class_name: str
    before: Source | None
    after: Source | None
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class Moves:
    """Prototypes, by slot: index and class.

    Attributes:
        moved: slots in both whose source differs.
        num_unmoved: slots in both with the same source.
        num_added: slots of B only.
        num_removed: slots of A only.
    """

    moved: tuple[Move, ...]
    num_unmoved: int
    num_added: int
    num_removed: int

    @property
    def num_compared(self) -> int:
        """Slots in both."""
        return len(self.moved) + self.num_unmoved


def compare_prototypes(before: Revision, after: Revision) -> Moves | Missing:
    """Find the prototypes whose source changed, slot by slot."""
    for side in (before, after):
        if isinstance(side.prototypes, Missing):
            return side.prototypes
    assert not isinstance(before.prototypes, Missing)
    assert not isinstance(after.prototypes, Missing)
    if not before.prototypes and not after.prototypes:
        return Missing("neither revision has prototypes")
    own, other = _slots(before.prototypes), _slots(after.prototypes)
    shared = [slot for slot in own if slot in other]
    hashes = hashes_of_pictures(before, after)
    moved = tuple(_moved(shared, own, other, hashes))
    return Moves(
        moved,
        num_unmoved=len(shared) - len(moved),
        num_added=len(other) - len(shared),
        num_removed=len(own) - len(shared),
    )


def _moved(
    slots: Iterable[tuple[int, str]],
    own: Mapping[tuple[int, str], Source | None],
    other: Mapping[tuple[int, str], Source | None],
    hashes: tuple[Mapping[str, str], Mapping[str, str]] | None,
) -> Iterator[Move]:
    for slot in slots:
        source, now = own[slot], other[slot]
        is_replaced = (
            source is not None
            and source == now
            and hashes is not None
            and hashes[0].get(source.image_key) != hashes[1].get(source.image_key)
        )
        if source != now or is_replaced:
            yield Move(*slot, source, now, is_replaced)


def _slots(prototypes: Iterable[Prototype]) -> dict[tuple[int, str], Source | None]:
    return {(prototype.prototype_idx, prototype.class_name): prototype.source for prototype in prototypes}
