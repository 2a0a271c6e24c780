"""What a run reveals, and the checked mode."""

import pytest
import torch
from support.encrypted_tail import compiled, run_tail
from torch import nn

from splitsec.cut import trace
from splitsec.errors import RangeError, UnsupportedLayerError
from splitsec.mpc.context import SERVER
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.cost import predict_cost
from splitsec.mpc.program.execute import encode_activation
from splitsec.mpc.program.program import Check


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10)).eval()


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
def test_a_label_is_that_of_the_largest_logit(classes: int) -> None:
    torch.manual_seed(classes)
    tail, x = nn.Sequential(nn.Linear(6, classes)), torch.randn(7, 6)
    labels, _, program = run_tail(tail, x, reveal="label")
    assert labels.dtype == torch.int64
    assert labels.shape == program.output_shape == (7,)
    assert torch.equal(labels, tail(x).argmax(1))


def test_of_equal_logits_the_first_counts() -> None:
    tail = nn.Sequential(nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        tail[0].weight.copy_(torch.tensor([[0.5, 0], [1, 0], [1, 0], [0, 1]]))
    labels, _, _ = run_tail(tail, torch.tensor([[1.0, 0.5], [1.0, 1.0], [0.0, 2.0], [-1.0, -1.0]]), reveal="label")
    assert labels.tolist() == [1, 1, 3, 0]


def test_with_a_label_nothing_of_the_logits_reaches_the_client() -> None:
    """What it opens at the end are zeros and one; without `reveal` it is the logits (the control)."""
    tail, x = _mlp(), torch.randn(5, 6)
    for reveal, label in (("label", True), ("logits", False)):
        result, (_, client), program = run_tail(tail, x, reveal=reveal)
        theirs = client.received[-1]
        if label:
            one_hot = nn.functional.one_hot(result, 10)
            # Its own share of a uniform sharing of that: the last message alone says nothing else.
            assert ((one_hot - theirs).abs() > 2**40).all()
            assert program.steps[-1].op == "argmax"
        else:
            torch.testing.assert_close(result, tail(x).detach(), atol=1e-3, rtol=0)


def test_a_label_needs_classes() -> None:
    with pytest.raises(UnsupportedLayerError, match="a label needs an output of samples by classes"):
        compiled(trace(nn.Sequential(nn.Conv2d(1, 2, 3))), (1, 1, 5, 5), reveal="label")


def test_predicted_costs_hold_in_both_modes() -> None:
    both = {"reveal": "label", "checked": True}
    for options in ({"reveal": "label"}, {"checked": True}, both, {"comparison": "dcf"}, {**both, "comparison": "dcf"}):
        _, sessions, program = run_tail(_mlp(), torch.randn(2, 6), **options)
        for session in sessions:
            predicted, traffic = predict_cost(program, session.rank), session.peer.traffic
            assert predicted.total.rounds == traffic.rounds
            assert predicted.total.bytes_sent == traffic.bytes_sent
            assert predicted.total.bytes_received == traffic.bytes_received
            assert len(predicted.layers) == len(program.steps) + 1 + bool(program.checks)


def test_comparison_functions_give_the_same_in_fewer_rounds() -> None:
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)).eval()
    x = torch.randn(2, 1, 8, 8)
    rounds = []
    for comparison in ("tables", "dcf"):
        result, (server, _), _ = run_tail(tail, x, comparison=comparison)
        torch.testing.assert_close(result, tail(x).detach(), atol=1e-3, rtol=0)
        rounds.append(server.peer.traffic.rounds)
    assert rounds[1] < rounds[0]


def test_the_checked_mode_lets_pass_what_stays_in_range() -> None:
    tail, x = _mlp(), torch.randn(3, 6)
    result, _, program = run_tail(tail, x, calibration=x, guarantee=False, checked=True)
    assert [check.value for check in program.checks] == [1, 3]
    torch.testing.assert_close(result, tail(x).detach(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_the_checked_mode_names_the_layer_that_overflows(layer: int) -> None:
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(3, 6) + 0.1
    program, _ = compiled(trace(tail), (3, 6), calibration=x, guarantee=False, checked=True)
    with torch.no_grad():
        # The weights grow after calibration, as if the data were others.
        tail[layer].weight.mul_(600.0)
    grown, _ = compiled(trace(tail), (3, 6), calibration=x, guarantee=False, checked=True)
    assert program.steps[layer].bits <= grown.steps[layer].bits
    with pytest.raises(RangeError, match=rf"layer '{layer}' overflowed: \d+ of its values reach"):
        run_tail(tail, x, calibration=x, guarantee=False, checked=True, program_of=program)


def test_unchecked_the_same_overflow_goes_unseen() -> None:
    """The control: without checks the result is wrong, and nothing says so."""
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(3, 6) + 0.1
    program, _ = compiled(trace(tail), (3, 6), calibration=x, guarantee=False)
    with torch.no_grad():
        tail[0].weight.mul_(600.0)
    result, _, _ = run_tail(tail, x, calibration=x, guarantee=False, program_of=program)
    assert (result - tail(x)).abs().max() > 1


def test_inputs_beyond_the_calibrated_range_are_refused() -> None:
    program, _ = compiled(trace(_mlp()), (3, 6), calibration=torch.rand(3, 6), guarantee=False)
    with pytest.raises(RangeError, match="holds a value of magnitude 200, beyond 16, .*calibrate"):
        encode_activation(program, torch.full((3, 6), 200.0))


def test_a_layer_that_could_wrap_around_unnoticed_is_refused() -> None:
    tail = nn.Sequential(nn.Linear(4000, 2, bias=False))
    with torch.no_grad():
        tail[0].weight.fill_(1000.0)
    # Values that cancel in calibration and need not do so later.
    x = torch.tensor([1.0, -1.0]).repeat(2000)[None] * 10
    with pytest.raises(RangeError, match="layer '0' could overflow so far that no check would notice"):
        compiled(trace(tail), (1, 4000), calibration=x, guarantee=False, checked=True)


def test_checks_cost_rounds_once_whatever_the_depth() -> None:
    deep = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(4, 4), nn.ReLU())))
    plain, _ = compile_tail(trace(deep), (1, 4))
    checked, _ = compiled(trace(deep), (1, 4), checked=True)
    assert len(checked.checks) == 6
    assert all(isinstance(check, Check) for check in checked.checks)
    rounds = [predict_cost(program, SERVER).total.rounds for program in (plain, checked)]
    assert rounds[1] - rounds[0] <= 5
