import torch

from ddpm.chain.noise import IndexedNoise, Stream, seed_from


def noise(indices, seed=0, stream=Stream.SAMPLES, **options):
    return IndexedNoise(seed, stream, indices, (3, 8, 8), **options)


def test_noise_is_bit_identical_for_any_batch_and_order():
    together = noise(range(64))(5)
    for size in (1, 7, 8):
        assert torch.equal(torch.cat([noise(part)(5) for part in torch.arange(64).split(size)]), together)
    backwards = noise(range(63, -1, -1))
    backwards(9)
    assert torch.equal(backwards(5).flip(0), together)


def test_seeds_streams_indices_and_steps_share_no_noise():
    drawn = torch.cat(
        [
            noise([0, 1])(1),
            noise([0])(2),
            noise([0], seed=1)(1),
            noise([0], stream=Stream.LIKELIHOOD)(1),
            noise([2**40])(1),
        ]
    ).flatten(1)
    correlation = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlation.abs().max() < 0.35
    values = drawn.flatten().unique()
    assert len(values) > 0.99 * drawn.numel()


def test_noise_is_standard_normal():
    drawn = noise(range(500))(3).flatten()
    n = len(drawn)
    assert abs(drawn.mean()) < 5 / n**0.5
    assert abs(drawn.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((drawn**4).mean() - 3) < 5 * (96 / n) ** 0.5


def test_dtype_is_that_asked_for():
    assert noise([0])(1).dtype == torch.float32
    assert noise([0], dtype=torch.float64)(1).dtype == torch.float64


def test_seeds_from_neighbouring_keys_are_far_apart():
    seeds = {seed_from(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert len({seed % 2**32 for seed in seeds}) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
