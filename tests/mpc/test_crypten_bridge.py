import pytest
import torch
from support.two_party import run_both, share

from splitsec.errors import InsecureProviderError, RandomnessError, UnsupportedLayerError
from splitsec.mpc import crypten_bridge as bridge
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.ring import decode, encode


def _on_shares(function, *secrets: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    def protocol(context: Context) -> torch.Tensor:
        with bridge.running(context):
            inputs = [bridge.from_share(share(context, encode(one)), context.precision) for one in secrets]
            made = function(*inputs)
            # A comparison's result has no fractional bits.
            return bridge.share_of(made) * (2**16 // int(made.encoder.scale))

    (server, client), _ = run_both(protocol)
    return decode(server + client)


CASES = {
    "relu": (lambda x: x.relu(), lambda x: x.relu(), 1e-4),
    "sigmoid": (lambda x: x.sigmoid(), lambda x: x.sigmoid(), 2e-2),
    "exp": (lambda x: x.exp(), lambda x: x.exp(), 5e-1),
    "softmax": (lambda x: x.softmax(-1), lambda x: x.softmax(-1), 2e-2),
    "square": (lambda x: x.square(), lambda x: x.square(), 1e-3),
    "mean": (lambda x: x.mean(-1), lambda x: x.mean(-1), 1e-3),
    "third": (lambda x: x / 3, lambda x: x / 3, 1e-3),
    "max": (lambda x: x.max(-1)[0], lambda x: x.max(-1)[0], 1e-3),
    "reciprocal": (lambda x: (x + 4).reciprocal(), lambda x: (x + 4).reciprocal(), 1e-2),
    "comparisons": (
        lambda x: (x < 0.5) + 2 * (x >= -1) + 4 * (x > 2) + 8 * (x <= -2),
        lambda x: (x < 0.5) + 2.0 * (x >= -1) + 4 * (x > 2) + 8 * (x <= -2),
        0,
    ),
    "equal": (lambda x: (x == -3) + 2 * (x != 3), lambda x: (x == -3) + 2.0 * (x != 3), 0),
    "absolute": (lambda x: x.abs(), lambda x: x.abs(), 1e-4),
    "gelu": (lambda x: x * (x * 1.702).sigmoid(), torch.nn.functional.gelu, 3e-2),
    "layer norm": (
        lambda x: (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).inv_sqrt(),
        lambda x: (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt(),
        2e-2,
    ),
    "join": (
        lambda x: bridge.crypten.cat([x, x.relu()], 1) < 1,
        lambda x: (torch.cat([x, x.relu()], 1) < 1).float(),
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_functions_of_crypten_run_over_our_transport_and_dealer(name: str) -> None:
    ours, plain, tolerance = CASES[name]
    x = torch.linspace(-3, 3, 24).view(4, 6)
    torch.testing.assert_close(_on_shares(ours, x), plain(x), atol=tolerance, rtol=2e-2)


def test_products_of_two_secrets() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 5), torch.randn(5, 2)
    torch.testing.assert_close(_on_shares(lambda a, b: a.matmul(b), x, w), x @ w, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["TFP", "TTP", "HE"])
def test_crypten_providers_cannot_be_used(name: str) -> None:
    crypten = bridge.crypten
    crypten.config.cfg.mpc.provider = name
    try:
        with pytest.raises(InsecureProviderError, match=f"'{name}' is not available"):
            crypten.mpc.get_default_provider().square((2,))
    finally:
        crypten.config.cfg.mpc.provider = bridge.PROVIDER


def test_crypten_generators_and_init_are_refused() -> None:
    with pytest.raises(InsecureProviderError):
        bridge.crypten.init()
    with pytest.raises(InsecureProviderError):
        bridge.crypten.generators["local"]
    with pytest.raises(InsecureProviderError):
        bridge.crypten.mpc.primitives.ArithmeticSharedTensor.PRSS((2,))


def test_pickling_calls_are_refused() -> None:
    communicator = bridge.crypten.communicator.get()
    for name in ("send_obj", "broadcast_obj", "recv_obj"):
        with pytest.raises(UnsupportedLayerError, match=name):
            getattr(communicator, name)


def test_outside_a_session_crypten_refuses_to_work() -> None:
    with pytest.raises(RandomnessError, match="outside a splitsec session"):
        bridge.crypten.cryptensor(torch.ones(2))


def test_one_session_a_thread() -> None:
    def protocol(context: Context) -> None:
        with bridge.running(context), pytest.raises(RandomnessError, match="another session"), bridge.running(context):
            pass

    run_both(protocol)


def test_only_the_named_party_gets_a_revealed_value() -> None:
    secret = torch.tensor([1.5, -2.0])

    def protocol(context: Context) -> torch.Tensor | None:
        with bridge.running(context):
            return bridge.from_share(share(context, encode(secret)), context.precision).get_plain_text(dst=CLIENT)

    (server, client), (server_session, _) = run_both(protocol)
    assert server is None
    assert server_session.received == []
    torch.testing.assert_close(client, secret)


def test_tensors_are_of_our_type_and_stay_so() -> None:
    kinds: list[type] = []

    def protocol(context: Context) -> None:
        with bridge.running(context):
            one = bridge.crypten.cryptensor(torch.ones(2, 2), src=0)
            made = [one, one + 1, one.matmul(one), one < 2, one == 1, one.relu(), bridge.crypten.cat([one, one])]
            made += [one.exp(), one.sigmoid(), one[0], one.sum(), one.clone(), bridge.from_share(one.share, 16)]
            kinds.extend(type(tensor) for tensor in made)

    run_both(protocol)
    assert set(kinds) == {bridge.SharedTensor}


def test_a_comparison_takes_four_rounds() -> None:
    def protocol(context: Context) -> None:
        with bridge.running(context):
            bridge.from_share(share(context, encode(torch.randn(5000))), context.precision) < 0  # noqa: B015

    _, (server, _) = run_both(protocol)
    assert server.peer.traffic.rounds == 4


def test_a_tail_trains_on_shares() -> None:
    """CrypTen's modules, loss, autograd and optimiser, against torch's own: neither party holds the weights."""
    torch.manual_seed(0)
    crypten, steps, rate = bridge.crypten, 3, 0.2
    tail = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    first = {name: value.clone() for name, value in tail.state_dict().items()}
    x, target = torch.randn(6, 4), torch.randn(6, 2)

    def protocol(context: Context) -> dict[str, torch.Tensor]:
        with bridge.running(context, grad=True):
            layers = [crypten.nn.Linear(4, 8), crypten.nn.ReLU(), crypten.nn.Linear(8, 2)]
            for index in (0, 2):
                for name in ("weight", "bias"):
                    layers[index].set_parameter(name, first[f"{index}.{name}"])
            model = crypten.nn.Sequential(*layers).encrypt(src=0).train()
            optimizer = crypten.optim.SGD(model.parameters(), lr=rate)
            inputs, wanted = (bridge.from_share(share(context, encode(one)), 16) for one in (x, target))
            for _ in range(steps):
                optimizer.zero_grad()
                crypten.nn.MSELoss()(model(inputs), wanted).backward()
                optimizer.step()
            return {name: bridge.share_of(value) for name, value in model.named_parameters()}

    (server, client), _ = run_both(protocol)
    optimizer = torch.optim.SGD(tail.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(tail(x), target).backward()
        optimizer.step()
    trained = [decode(server[name] + client[name]) for name in server]
    for parameter, other, before in zip(trained, tail.parameters(), first.values(), strict=True):
        torch.testing.assert_close(parameter, other.detach(), atol=2e-3, rtol=0)
        assert (parameter - before).abs().max() > 1e-2


def test_the_tape_is_each_threads_own() -> None:
    seen: list[bool] = []

    def protocol(context: Context) -> None:
        with bridge.running(context, grad=context.rank == CLIENT):
            one = bridge.from_share(share(context, encode(torch.ones(3))), 16)
            one.requires_grad = True
            (one * one).sum()
            if not context.planning:
                seen.append((context.rank == CLIENT) == bridge.crypten.CrypTensor.AUTOGRAD_ENABLED)

    run_both(protocol)
    assert seen == [True, True]
    assert not bridge.crypten.CrypTensor.AUTOGRAD_ENABLED
