"""Seeds by purpose and orders by index."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ptgm_fast.sampling import AddressedOrder, derive_seed, seeded


def test_derived_seeds_are_fixed_for_good() -> None:
    # A change of this number changes every result of every run: it must be deliberate.
    assert derive_seed(0, "pp/latents") == 0x98D0AFA6DEAB387F
    assert len({derive_seed(s, p) for s in range(50) for p in ("a", "b", "a/b")}) == 150
    assert all(0 <= derive_seed(s, "x") < 2**64 for s in range(50))


@given(st.integers(1, 30), st.integers(0, 100), st.lists(st.integers(0, 40), max_size=6))
def test_an_order_is_the_same_however_it_is_split(
    num_items: int, start: int, counts: list[int]
) -> None:
    order = AddressedOrder(num_items, seed=1, purpose="p")
    whole = AddressedOrder(num_items, seed=1, purpose="p").indices(start, sum(counts))
    parts, position = [], start
    for count in counts:
        parts.append(order.indices(position, count))
        position += count
    assert torch.equal(torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64), whole)


@given(st.integers(1, 50), st.integers(0, 2**40))
def test_every_item_once_an_epoch(num_items: int, seed: int) -> None:
    order = AddressedOrder(num_items, seed=seed, purpose="p")
    for epoch in (0, 1, 7):
        assert sorted(order.indices(epoch * num_items, num_items).tolist()) == list(
            range(num_items)
        )


def test_seeded_leaves_the_callers_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeded(1, "init"):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeded(1, "init"):
        assert torch.equal(torch.rand(4), inside)
    with seeded(1, "other"):
        assert not torch.equal(torch.rand(4), inside)
