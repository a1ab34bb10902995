import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktse_dist.models.noise import channel_hash, drop_channels

KEYS = st.integers(-(2**63), 2**63 - 1)


def mask(keys: torch.Tensor, use: int, channels: int = 512, p: float = 0.2) -> torch.Tensor:
    return drop_channels(torch.ones(len(keys), channels, 1, 1), p, keys, use)[:, :, 0, 0]


@settings(deadline=None)
@given(st.lists(KEYS, min_size=2, max_size=4, unique=True), st.integers(0, 7))
def test_mask_of_a_sample_does_not_depend_on_its_batch(keys, use):
    keys = torch.tensor(keys)
    assert torch.equal(mask(keys, use, 16)[1:], mask(keys[1:], use, 16))


def test_mask_of_a_channel_does_not_depend_on_how_many_there_are():
    keys = torch.arange(4)
    assert torch.equal(mask(keys, 0, 64), mask(keys, 0, 128)[:, :64])


def test_whole_channels_drop_and_the_others_grow():
    factor = drop_channels(torch.ones(2, 64, 3, 4), 0.2, torch.tensor([3, 4]), 1)
    assert factor.unique().tolist() == [0.0, 1.25]
    assert torch.equal(factor, factor[:, :, :1, :1].expand_as(factor))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0.1, 0.2, 0.5]), KEYS)
def test_share_of_dropped_channels_is_p(p, first):
    keys = torch.tensor(first) + torch.arange(64)
    dropped = (mask(keys, 2, 1024, p) == 0).double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / (64 * 1024)) ** 0.5


@settings(max_examples=20, deadline=None)
@given(KEYS)
def test_neighbouring_keys_uses_and_channels_draw_independently(first):
    keys = torch.tensor([first]) + torch.arange(257)
    bits = torch.stack([mask(keys, use, 257) > 0 for use in (0, 1)]).double()
    pairs = ((bits[0, :-1], bits[0, 1:]), (bits[0, :, :-1], bits[0, :, 1:]), (bits[0], bits[1]))
    for one, other in pairs:
        both = (one * other).mean().item()
        assert abs(both - 0.64) < 0.01


def test_keys_that_differ_in_the_high_half_draw_differently():
    low, high = torch.tensor([7]), torch.tensor([7 + (1 << 40)])
    assert not torch.equal(mask(low, 0), mask(high, 0))


def test_no_keys_means_no_dropout():
    x = torch.rand(1, 4, 2, 2)
    assert drop_channels(x, 0.2, None, 0) is x


def test_hash_keeps_its_values():
    """Resumed runs need the masks of the version that started them."""
    found = channel_hash(torch.tensor([0, -1]), 3, 2).tolist()
    assert found == [[3234753194, 1917088], [4065683088, 908253551]]
