import pytest
import torch
from two_party import run_both, share

from splitsec.errors import InsecureProviderError, RandomnessError, UnsupportedLayerError
from splitsec.mpc import crypten_bridge as bridge
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.ring import decode, encode


def _on_shares(function, *secrets: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    def protocol(context: Context) -> torch.Tensor:
        with bridge.running(context):
            inputs = [bridge.from_share(share(context, encode(one)), context.precision) for one in secrets]
            return bridge.share_of(function(*inputs))

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
