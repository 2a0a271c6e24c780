"""Train with differential privacy by record, and read what it cost: `python examples/private_training.py`.

In every step each client clips its records' gradients and adds its share of the noise before the sum is opened. A
ledger beside each client's data says what has been spent; runs over the same data add up
(docs/explanation/privacy.md).
"""

import tempfile
import threading
from pathlib import Path

import torch
from torch import nn

from splitsec import Client, Dealer, Network, Part, RunSettings, Server, SplitModel, Storage
from splitsec.privacy.ledger import find_ledgers
from splitsec.settings.privacy import Privacy
from splitsec.transport import load_key_pair, load_public_keys, make_keys

CLIENTS = ("ward-a", "ward-b")


def make_model() -> nn.Module:
    """Make a model without batch norm, which would mix the records of a batch."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def make_data(rows: int) -> Part:
    """Make one client's records, all of them for training."""
    values = torch.randn(rows, 8)
    labels = (values[:, :4].sum(1) > 0).long()
    return Part(values, labels, values[:0], labels[:0])


def run(epochs: int = 10, rows: int = 500, epsilon: float = 3.0) -> tuple[float, float]:
    """Run all parties; return the accuracy and the epsilon spent, as the first client's ledger has them."""
    directory = Path(tempfile.mkdtemp())
    make_keys(directory, ["server", "dealer", *CLIENTS])
    public = load_public_keys(directory)
    dealer = Dealer(Network(keys=load_key_pair(directory, "dealer"), peers=public, address="tcp://127.0.0.1:*"))
    split = SplitModel(make_model(), cut="1")
    # The budget of the whole run. Each step is a round of its own, in which gradients are summed under masks.
    budget = Privacy(epsilon=epsilon, delta=1e-4)
    settings = RunSettings(
        clients=CLIENTS, epochs=epochs, batch_size=50, learning_rate=1e-2, steps_per_round=1, privacy=budget
    )
    server = Server(
        split.tail,
        cut=split.cut,
        settings=settings,
        network=Network(
            keys=load_key_pair(directory, "server"), peers=public, address="tcp://127.0.0.1:*", dealer=dealer.address
        ),
    )
    torch.manual_seed(0)
    fronts = [SplitModel(make_model(), cut="1").front for _ in CLIENTS]
    fronts[1].load_state_dict(fronts[0].state_dict())

    def be_a_client(name: str, front: nn.Module) -> None:
        with Client(
            front,
            cut=split.cut,
            network=Network(
                keys=load_key_pair(directory, name), peers=public, server=server.address, dealer=dealer.address
            ),
        ) as client:
            # No run may bring the sum of all runs with a ledger in this directory above the limit.
            client.train(make_data(rows), storage=Storage(ledgers=directory / name, epsilon_limit=2 * epsilon))
            client.leave()

    dealing = threading.Thread(target=dealer.serve)
    others = [threading.Thread(target=server.serve)]
    others += [threading.Thread(target=be_a_client, args=pair) for pair in zip(CLIENTS, fronts, strict=True)]
    for thread in (dealing, *others):
        thread.start()
    for thread in others:
        thread.join()
    dealer.stop()
    (ledger,) = find_ledgers(directory / CLIENTS[0])
    return ledger.points[-1].accuracy or 0.0, ledger.spent


if __name__ == "__main__":
    right, spent = run()
    print(f"{right:.0%} right, with epsilon {spent:.2f} spent")
