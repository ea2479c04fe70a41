"""Operators and their adjoints; solvers against the closed-form posterior of Gaussian data."""

from copy import deepcopy

import pytest
import torch
from conftest import continuous
from options import PARAMETERIZATIONS

from ddpm.chain.process import Process
from ddpm.operator.base import Measurement
from ddpm.operator.colourise import Colourise
from ddpm.operator.function import Function
from ddpm.operator.gaussian_blur import GaussianBlur
from ddpm.operator.inpaint import Inpaint
from ddpm.operator.motion_blur import MotionBlur
from ddpm.operator.super_resolution import SuperResolution
from ddpm.parameterization.eps import Eps
from ddpm.sampler.ancestral import Ancestral
from ddpm.sampler.dpm_solver import DPMSolver
from ddpm.schedule.linear import Linear
from ddpm.solver.base import conjugate_gradient
from ddpm.solver.dps import DPS
from ddpm.solver.mmps import MMPS
from ddpm.solver.pigdm import PiGDM
from ddpm.solver.replacement import Replacement

LINEAR = (
    Inpaint("box"),
    Inpaint("box", size=3),
    Inpaint("half"),
    Inpaint("random", fraction=0.7),
    SuperResolution(2),
    SuperResolution(4),
    GaussianBlur(0.8),
    MotionBlur(5, 40.0),
    MotionBlur(4, -90.0),
    Colourise(),
)
SHAPE = (3, 12, 12)
PROCESS = Process(Linear().beta())
D = 4
SMALL = (1, 2, 2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("operator", LINEAR, ids=lambda each: type(each).__name__)
def test_an_operator_that_is_used_first_without_gradients_can_be_differentiated(operator):
    operator = deepcopy(operator)
    if isinstance(operator, Inpaint):
        operator = Inpaint(operator.mask, operator.size, operator.fraction)
    x = normal(2, *SHAPE).float()
    with torch.inference_mode():
        y = operator(x)
    assert operator.adjoint(y, SHAPE).shape == x.shape


def test_replacement_makes_what_was_measured_so_only_without_noise():
    operator, x, target = SuperResolution(2), normal(2, *SHAPE), normal(2, 3, 6, 6, seed=1)
    exact, noisy = (Replacement()._replaced(operator, x, target, sigma) for sigma in (0.0, 0.5))
    assert torch.allclose(operator(exact), target)
    part = 0.25 / (0.25 + 0.5**2)  # A A' = 1/4
    assert torch.allclose(operator(noisy), torch.lerp(operator(x), target, part))


@pytest.mark.parametrize("operator", LINEAR, ids=lambda each: type(each).__name__)
def test_an_operator_is_linear_and_its_adjoint_is_its_adjoint(operator):
    operator.check(SHAPE)
    x, other = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    y = operator(x)
    assert torch.allclose(operator(2 * x - 3 * other), 2 * y - 3 * operator(other))
    v = normal(*y.shape, seed=2)
    back = operator.adjoint(v, SHAPE)
    assert back.shape == x.shape
    assert torch.allclose((y * v).flatten(1).sum(1), (x * back).flatten(1).sum(1))


def test_what_masks_hide():
    box = Inpaint("box", size=4).known(8, 8)
    assert (box == 0).sum() == 16
    assert (box[2:6, 2:6] == 0).all()
    assert (Inpaint("half").known(8, 8)[:, 4:] == 0).all()
    assert (Inpaint("half").known(8, 8)[:, :4] == 1).all()
    hidden = Inpaint("random", fraction=0.25, seed=3).known(8, 8)
    assert (hidden == 0).sum() == 16
    assert torch.equal(hidden, Inpaint("random", fraction=0.25, seed=3).known(8, 8))
    assert not torch.equal(hidden, Inpaint("random", fraction=0.25, seed=4).known(8, 8))


def test_a_mask_may_be_a_picture(tmp_path):
    from PIL import Image

    Image.frombytes("L", (4, 4), bytes([0, 255] * 8)).save(tmp_path / "mask.png")
    operator = Inpaint(str(tmp_path / "mask.png"))
    operator.check((1, 4, 4))
    assert torch.equal(operator.known(4, 4), torch.tensor([0.0, 1.0]).repeat(4, 2))
    with pytest.raises(ValueError, match="is 4 x 4, but the images are 8 x 8"):
        operator.check((1, 8, 8))


@pytest.mark.parametrize("operator", [GaussianBlur(1.2), MotionBlur(5, 20.0), SuperResolution(3)])
def test_constant_images_stay_constant(operator):
    assert torch.allclose(operator(torch.full((1, *SHAPE), 0.3)), torch.tensor(0.3), atol=1e-6)


def test_motion_goes_along_its_angle():
    dot = torch.zeros(1, 1, 13, 13, dtype=torch.float64)
    dot[..., 6, 6] = 1
    across, up = (MotionBlur(7, angle)(dot)[0, 0] for angle in (0.0, 90.0))
    assert torch.allclose(across[6].sum(), torch.tensor(1.0, dtype=torch.float64))
    assert torch.allclose(across, up.T, atol=1e-12)
    assert (across[6, 3:10] > 0.05).all()
    rising = MotionBlur(7, 45.0)(dot)[0, 0]
    assert rising[4, 8] > 0.1 > rising[8, 8]


def test_conjugate_gradients_solve_each_system_of_a_batch():
    root = normal(3, 5, 5)
    A = root @ root.mT + 0.1 * torch.eye(5, dtype=torch.float64)
    b = normal(3, 5, seed=1)
    b[1] = 0
    found = conjugate_gradient(lambda u: (A @ u[..., None])[..., 0], b, 5)
    assert torch.allclose((A @ found[..., None])[..., 0], b, atol=1e-8)
    assert torch.equal(found[1], torch.zeros(5, dtype=torch.float64))


class Gaussian:
    """Data N(m, S), their optimal denoiser, and what a measurement says of them."""

    def __init__(self, S):
        self.m, self.S = 0.3 * normal(D, seed=5), S

    def model(self, parameterization=None):
        def x_0(x_t, t):
            tables = PROCESS.coefficients(t)
            ab, variance = (each.view(-1, 1, 1) ** 2 for each in (tables.sqrt_alpha_bar, tables.sigma))
            gain = ab.sqrt() * self.S @ torch.linalg.inv(ab * self.S + variance * torch.eye(D, dtype=torch.float64))
            away = x_t.flatten(1) - ab[:, 0].sqrt() * self.m
            return (self.m + (gain @ away[..., None])[..., 0]).view_as(x_t)

        return continuous(x_0, PROCESS, parameterization or Eps())

    def posterior(self, operator, y, sigma):
        A = operator(torch.eye(D, dtype=torch.float64).view(D, *SMALL)).flatten(1).T
        gain = self.S @ A.T @ torch.linalg.pinv(A @ self.S @ A.T + sigma**2 * torch.eye(len(A), dtype=torch.float64))
        return self.m + gain @ (y.flatten() - A @ self.m), self.S - gain @ A @ self.S


def correlated():
    root = normal(D, D, seed=7)
    return 0.15 * root @ root.T + 0.05 * torch.eye(D, dtype=torch.float64)


def draws(solver, data, sampler, operator, sigma, n=4000, parameterization=None, seed=0):
    x = (data.m + torch.linalg.cholesky(data.S) @ normal(D, seed=9)).view(1, *SMALL)
    y = operator(x) + sigma * normal(*operator(x).shape, seed=11)
    noise = lambda step: normal(n, *SMALL, seed=100_003 * seed + step)  # noqa: E731
    measurement = Measurement(operator, y.expand(n, *y.shape[1:]), sigma)
    found = solver.sample(data.model(parameterization), sampler, measurement, noise)
    return found.flatten(1), y, *data.posterior(operator, y, sigma)


@pytest.mark.slow
@pytest.mark.parametrize(
    "operator", [Inpaint("half"), SuperResolution(2), GaussianBlur(0.3)], ids=["half", "x2", "blur"]
)
@pytest.mark.parametrize(
    ("solver", "S"), [(MMPS(D), correlated()), (PiGDM(), torch.eye(D, dtype=torch.float64))], ids=["mmps", "pigdm"]
)
def test_solvers_that_claim_the_posterior_sample_it(solver, S, operator):
    """Mean to 0.05 and covariance to 0.06 (4,000 draws; standard deviations are 0.2 to 1)."""
    found, _, mean, covariance = draws(solver, Gaussian(S), DPMSolver(40, clip=False), operator, 0.3)
    assert torch.allclose(found.mean(0), mean, atol=0.05)
    assert torch.allclose(found.T.cov(), covariance, atol=0.06)


@pytest.mark.slow
def test_the_ancestral_sampler_solves_it_too():
    found, _, mean, covariance = draws(
        MMPS(D), Gaussian(correlated()), Ancestral(250, clip=False), Inpaint("half"), 0.3
    )
    assert torch.allclose(found.mean(0), mean, atol=0.05)
    assert torch.allclose(found.T.cov(), covariance, atol=0.06)


def test_the_covariance_of_pigdm_is_wrong_for_other_data():
    data = Gaussian(correlated())
    found, _, mean, _ = draws(PiGDM(), data, DPMSolver(60, clip=False), Inpaint("half"), 0.3)
    assert (found.mean(0) - mean).abs().max() > 0.1


@pytest.mark.parametrize("solver", [MMPS(2), PiGDM(), DPS(), Replacement(2)], ids=lambda each: type(each).__name__)
def test_a_solver_gives_the_same_for_every_parameterization(solver):
    found = [
        draws(solver, Gaussian(correlated()), Ancestral(20, clip=False), Inpaint("half"), 0.1, 5, parameterization)[0]
        for parameterization in PARAMETERIZATIONS
    ]
    assert all(torch.allclose(each, found[0], atol=1e-7) for each in found[1:])


@pytest.mark.slow
def test_replacement_is_exact_where_pixels_are_independent():
    S = torch.diag(torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64))
    found, y, mean, covariance = draws(Replacement(1), Gaussian(S), Ancestral(250, clip=False), Inpaint("half"), 0.0)
    known = Inpaint("half").known(2, 2).flatten().bool()
    assert torch.allclose(found[:, known], y.flatten()[known].expand(len(found), -1), atol=1e-9)
    assert torch.allclose(found.mean(0), mean, atol=0.05)
    assert torch.allclose(found.T.cov(), covariance, atol=0.06)


@pytest.mark.slow
def test_resampling_brings_replacement_nearer_to_the_posterior():
    data, off = Gaussian(correlated()), []
    for resamplings in (1, 8):
        found, _, mean, _ = draws(Replacement(resamplings), data, Ancestral(50, clip=False), Inpaint("half"), 0.0, 1000)
        off.append(float((found.mean(0) - mean).abs().max()))
    assert off[1] < 0.5 * off[0]


def squashed(x):
    return torch.tanh(2 * x).mean((2, 3))


@pytest.mark.parametrize("operator", [Inpaint("half"), Function(f"{__name__}.squashed")], ids=["linear", "any"])
def test_dps_meets_the_measurement(operator):
    data = Gaussian(correlated())
    x = (data.m + torch.linalg.cholesky(data.S) @ normal(D, seed=9)).view(1, *SMALL)
    y = operator(x)
    measurement = Measurement(operator, y.expand(200, *y.shape[1:]), 0.0)
    noise = lambda step: normal(200, *SMALL, seed=step)  # noqa: E731
    model, sampler = data.model(), Ancestral(250, clip=False)
    prior = sampler.sample(model, noise)
    found = DPS(0.5).sample(model, sampler, measurement, noise)
    off, off_prior = (measurement.residual(each).square().mean().sqrt() for each in (found, prior))
    assert off < 0.25 * off_prior


@pytest.mark.parametrize("solver", [MMPS(), PiGDM(), Replacement()], ids=lambda each: type(each).__name__)
def test_other_solvers_need_a_linear_operator(solver):
    with pytest.raises(ValueError, match="choose solver=dps"):
        solver.check(Function(f"{__name__}.squashed"), PROCESS)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Inpaint("circle"), "operator.mask must be box, half, random"),
        (lambda: Inpaint(fraction=1.0), "operator.fraction must be in"),
        (lambda: Inpaint(size=20).check(SHAPE), "operator.size must be at most 12"),
        (lambda: SuperResolution(1), "operator.factor must be at least 2"),
        (lambda: SuperResolution(5).check(SHAPE), "does not divide images of 12 x 12"),
        (lambda: GaussianBlur(0.0), "operator.width must be above 0"),
        (lambda: GaussianBlur(5.0).check(SHAPE), "too large for images of 12 x 12"),
        (lambda: MotionBlur(1), "operator.length must be at least 2"),
        (lambda: Colourise().check((1, 8, 8)), "needs images with 3 channels"),
        (lambda: Function("no.such.function"), "operator.function=no.such.function cannot be imported"),
        (lambda: DPS(0.0), "solver.scale must be above 0"),
        (lambda: MMPS(0), "solver.iterations must be at least 1"),
        (lambda: PiGDM(0), "solver.iterations must be at least 1"),
        (lambda: Replacement(0), "solver.resamplings and solver.iterations must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Watched(Ancestral):
    """Keeps what it moves from, by step."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.seen = []

    def move(self, chain, at, step, noise, before):
        self.seen.append((chain.process.alpha_bar[step], chain.process.sigma[step], at.x_t.flatten(1)))
        return super().move(chain, at, step, noise, before)


@pytest.mark.parametrize("resamplings", [1, 3])
def test_the_replaced_part_follows_q_of_the_measurement(resamplings):
    sampler = Watched(10, clip=False)
    _, y, *_ = draws(Replacement(resamplings), Gaussian(correlated()), sampler, Inpaint("half"), 0.0, 4000)
    known = Inpaint("half").known(2, 2).flatten().bool()
    assert len(sampler.seen) == 10 * resamplings - (resamplings - 1)
    for alpha_bar, sigma, x_t in sampler.seen[resamplings:]:
        assert torch.allclose(x_t[:, known].mean(0), alpha_bar.sqrt() * y.flatten()[known], atol=0.06)
        assert torch.allclose(x_t[:, known].std(0), sigma.expand(2), atol=0.06)
