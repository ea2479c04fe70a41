import pytest
import torch
from conftest import diffusion_of
from options import PARAMETERIZATIONS, VARIANCES

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.generation.draw import draw
from ddpm.sampler.ancestral import Ancestral
from ddpm.variance.fixed_large import FixedLarge


def denoise(x_t, t):
    return torch.tanh(2 * x_t)


def noise_of(indices, shape=(1, 4, 4)):
    return IndexedNoise(3, Stream.SAMPLES, indices, shape, dtype=torch.float64)


@pytest.mark.parametrize("steps", [None, 50, 7, 1])
def test_ancestral_is_algorithm_2(steps):
    model = diffusion_of(denoise, variance=FixedLarge())
    chain = model if steps is None else model.respace(steps)
    noise = noise_of(range(5))
    x = noise(0)
    alpha_bar = chain.process.alpha_bar
    for t in range(chain.T, 0, -1):
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        time = torch.full((5,), t)
        eps = (x - alpha_bar[t].sqrt() * denoise(x, time)) / (1 - alpha_bar[t]).sqrt()
        mean = (x - beta / (1 - alpha_bar[t]).sqrt() * eps) / (1 - beta).sqrt()
        x = mean + beta.sqrt() * noise(t) if t > 1 else mean
    found = Ancestral(steps, clip=False).sample(model, noise)
    assert torch.allclose(found, x, atol=1e-8)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", [(each, 0.3 if each.extra_channels else None) for each in VARIANCES])
def test_samples_are_the_same_for_every_parameterization(variance, clip):
    samples = []
    for parameterization in PARAMETERIZATIONS:
        model = diffusion_of(denoise, parameterization=parameterization, variance=variance[0], raw=variance[1])
        samples.append(Ancestral(20, clip).sample(model, noise_of(range(4))))
    for sample in samples[1:]:
        assert torch.allclose(sample, samples[0], atol=1e-8)


def test_the_network_is_given_times_from_zero_of_the_original_chain():
    seen = []
    model = diffusion_of(denoise)
    inner = model.replaced
    model.replaced = None

    class Recorder(torch.nn.Module):
        def forward(self, x_t, t):
            seen.append(t.tolist())
            return inner(x_t, t + 1)

    Ancestral(3).sample(model.with_network(Recorder()), noise_of([0]))
    assert seen == [[49], [25], [0]]


def test_trajectory_goes_from_the_noisiest_to_the_finished_sample():
    model = diffusion_of(denoise)
    states = list(Ancestral(10).trajectory(model, noise_of([0])))
    assert [state.step for state in states] == list(range(9, -1, -1))
    assert torch.equal(states[-1].x, Ancestral(10).sample(model, noise_of([0])))
    assert states[-1].x.abs().max() <= 1


def test_samples_depend_on_seed_and_index_alone():
    model = diffusion_of(denoise).double()

    def drawn(indices, batch_size, seed=0):
        parts = list(draw(model, Ancestral(10), (1, 4, 4), indices, seed, batch_size))
        return torch.cat([part.x for part in parts]), torch.cat([part.index for part in parts])

    one, index = drawn(range(9), 9)
    assert index.tolist() == list(range(9))
    for batch_size in (1, 4):
        assert torch.allclose(drawn(range(9), batch_size)[0], one, atol=1e-6)
    assert torch.allclose(drawn([7, 2], 2)[0], one[[7, 2]], atol=1e-6)
    assert not torch.allclose(drawn(range(9), 9, seed=1)[0], one, atol=0.1)
    assert len(one.flatten(1).unique(dim=0)) == 9


def test_bad_steps_are_explained():
    with pytest.raises(ValueError, match="steps must be at least 1, or null for the whole chain, got 0"):
        Ancestral(0)
    with pytest.raises(ValueError, match=r"steps must be in 1..50 .* got 51"):
        Ancestral(51).sample(diffusion_of(denoise), noise_of([0]))
