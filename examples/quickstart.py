"""Train a model between two clients and a server, then predict encrypted: `python examples/quickstart.py`.

The parties are threads of one program here. On machines of their own each runs its part alone: see launch/.
"""

import tempfile
import threading
from pathlib import Path

import torch
from torch import nn

from splitsec import Client, Dealer, Network, Part, RunSettings, Server, SplitModel
from splitsec.transport import load_key_pair, load_public_keys, make_keys

CLIENTS = ("ward-a", "ward-b")


def make_model() -> nn.Module:
    """Make a model; any that torch.fx can trace will do. The cut is after its first activation, called "1"."""
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def make_data() -> Part:
    """Make one client's rows. Nobody else sees them."""
    rows = torch.randn(200, 20)
    labels = (rows[:, :10].sum(1) > 0).long()
    return Part(rows[:150], labels[:150], rows[150:], labels[150:])


def run(epochs: int = 5) -> dict[str, float]:
    """Run all parties, and return the accuracy of each client's encrypted predictions."""
    # Every party has a secret key of its own and the public keys of the others.
    keys = Path(tempfile.mkdtemp())
    make_keys(keys, ["server", "dealer", *CLIENTS])
    public = load_public_keys(keys)

    # The dealer hands out one-time randomness. It never sees data.
    dealer = Dealer(Network(keys=load_key_pair(keys, "dealer"), peers=public, address="tcp://127.0.0.1:*"))

    # The server owns the layers behind the cut, and decides how the run goes.
    split = SplitModel(make_model(), cut="1")
    server = Server(
        split.tail,
        cut=split.cut,
        settings=RunSettings(clients=CLIENTS, epochs=epochs, batch_size=16),
        network=Network(
            keys=load_key_pair(keys, "server"), peers=public, address="tcp://127.0.0.1:*", dealer=dealer.address
        ),
    )

    # Each client owns the layers before the cut. All begin with the same weights.
    torch.manual_seed(0)
    fronts = [SplitModel(make_model(), cut="1").front for _ in CLIENTS]
    fronts[1].load_state_dict(fronts[0].state_dict())
    accuracy = {}

    def be_a_client(name: str, front: nn.Module) -> None:
        part = make_data()
        with Client(
            front,
            cut=split.cut,
            network=Network(keys=load_key_pair(keys, name), peers=public, server=server.address, dealer=dealer.address),
        ) as client:
            client.train(part)
            predictions = client.predict(part.test_images)  # only this client sees the result
            accuracy[name] = (predictions.labels == part.test_labels).float().mean().item()
            client.leave()

    dealing = threading.Thread(target=dealer.serve)
    others = [threading.Thread(target=server.serve)]
    others += [threading.Thread(target=be_a_client, args=pair) for pair in zip(CLIENTS, fronts, strict=True)]
    for thread in (dealing, *others):
        thread.start()
    for thread in others:
        thread.join()
    dealer.stop()
    return accuracy


if __name__ == "__main__":
    for client, accuracy in run().items():
        print(f"{client}: {accuracy:.0%} of its encrypted predictions are right")
