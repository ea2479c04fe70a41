import pytest
import torch
from torch import nn

from ddpm.model.ema import EMA


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_average_equals_its_definition():
    net = network()
    ema = EMA(net, decay=0.9, warm_up=False)
    expected = net[0].weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net[0].weight.add_(torch.randn(4, 3))
        ema.update(net, step)
        expected = 0.9 * expected + 0.1 * net[0].weight.detach()
    assert torch.allclose(ema.network[0].weight, expected, atol=1e-6)


def test_warm_up_lets_short_runs_forget_their_start():
    net = network()
    ema = EMA(net, decay=0.9999)
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1)
    for step in range(50):
        ema.update(net, step)
    progress = (ema.network[0].weight - start).mean().item()
    assert progress > 0.99
    slow = EMA(network(), decay=0.9999, warm_up=False)
    for step in range(50):
        slow.update(net, step)
    assert (slow.network[0].weight - start).mean().item() == pytest.approx(1 - 0.9999**50, rel=1e-3)


def test_average_can_be_used_before_the_first_update():
    net = network()
    assert torch.equal(EMA(net).network[0].weight, net[0].weight)


def test_buffers_are_copied_not_averaged():
    net = network()
    ema = EMA(net)
    net[1].running_mean.fill_(7)
    ema.update(net, 0)
    assert torch.equal(ema.network[1].running_mean, torch.full((4,), 7.0))
    assert ema.network[1].num_batches_tracked.dtype == torch.int64


def test_trained_weights_are_never_touched():
    net = network()
    ema = EMA(net, decay=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ema.update(net, 3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(p.requires_grad for p in ema.parameters())


def test_average_stays_in_evaluation_mode():
    assert not EMA(network()).train().network.training


def test_decay_out_of_range_is_explained():
    with pytest.raises(ValueError, match=r"ema.decay must be in \[0, 1\), got 1.0; Ho et al. use 0.9999"):
        EMA(network(), decay=1.0)
