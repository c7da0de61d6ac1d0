import torch

from pipeline.training.nearest import EmbeddedBag, Nearest, in_batches, merge


def nearest(distance, item, names):
    return Nearest(torch.tensor(distance), torch.tensor(item), names, torch.arange(len(names)) + 10 * len(names))


def named(found):
    """The distances and names of every prototype's items, and whether each still has its value."""
    return [
        [(value, None if item < 0 else found.names[item]) for value, item in zip(*row, strict=True)]
        for row in zip(found.distance.tolist(), found.item.tolist(), strict=True)
    ]


def test_merging_keeps_the_nearest_of_both_and_decides_ties_by_name():
    inf = float("inf")
    one = nearest([[1.0, 3.0], [2.0, inf]], [[1, 0], [0, -1]], [("d",), ("b",)])
    other = nearest([[1.0, 1.0], [inf, inf]], [[0, 1], [-1, -1]], [("c",), ("a",)])
    expected = [[(1.0, ("a",)), (1.0, ("b",)), (1.0, ("c",))], [(2.0, ("d",)), (inf, None), (inf, None)]]
    assert named(merge(one, other, 3)) == named(merge(other, one, 3)) == expected


def test_merging_remembers_the_value_of_each_item_that_is_left_and_no_other():
    one = Nearest(torch.tensor([[1.0, 4.0]]), torch.tensor([[1, 0]]), [("x",), ("z",)], torch.tensor([[7.0], [9.0]]))
    other = Nearest(torch.tensor([[2.0, 3.0]]), torch.tensor([[0, 1]]), [("y",), ("w",)], torch.tensor([[8.0], [6.0]]))
    merged = merge(one, other, 2)
    assert merged.names == [("y",), ("z",)]
    assert merged.values.tolist() == [[8.0], [9.0]]
    assert merged.item.tolist() == [[1, 0]]


def test_a_compact_one_does_not_hold_on_to_the_memory_of_the_others():
    features = torch.arange(1000.0)[:, None]
    found = Nearest(torch.tensor([[0.5]]), torch.tensor([[3]]), [(idx,) for idx in range(1000)], features).compact()
    assert (found.names, found.values.tolist(), found.item.tolist()) == ([(3,)], [[3.0]], [[0]])
    assert found.values.untyped_storage().nbytes() == 4


def test_batches_hold_all_bags_in_their_order_and_end_when_they_are_full():
    bags = [EmbeddedBag(str(idx), 0, torch.zeros(length, 2)) for idx, length in enumerate([2, 2, 1, 5, 1, 1])]
    keys = [[bag.image_key for bag in batch] for batch in in_batches(bags, 4)]
    assert keys == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert list(in_batches([], 4)) == []
