"""Two hospitals with different columns of the same patients train one model: `python examples/vertical_hospitals.py`.

The first has ten measurements and the diagnosis, the second twenty other measurements. They find the patients that both
know without telling anybody else's id, and predict encrypted. The data are scikit-learn's 569 breast cancer patients.
"""

import tempfile
import threading
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from splitsec import Dealer, Network, Query, RunSettings, Server, SplitModel
from splitsec.cut.joined import VerticalModel
from splitsec.data.columns import Columns
from splitsec.parties.columns_client import ColumnsClient
from splitsec.transport import load_key_pair, load_public_keys, make_keys

HOSPITALS = ("north", "south")


def make_data() -> dict[str, Columns]:
    """Make each hospital's columns. The other hospital knows most of its patients, not all."""
    data = load_breast_cancer()
    values, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    ids = [f"patient-{row}" for row in range(len(labels))]
    north, south = slice(0, 540), slice(30, 569)
    return {
        "north": Columns(tuple(ids[north]), values[north, :10], labels[north]),
        "south": Columns(tuple(ids[south]), values[south, 10:]),
    }


def run(epochs: int = 20, predictions: int = 64) -> float:
    """Run all parties, and return the accuracy of the first hospital's encrypted predictions."""
    keys = Path(tempfile.mkdtemp())
    make_keys(keys, ["server", "dealer", *HOSPITALS])
    public = load_public_keys(keys)
    torch.manual_seed(0)
    # A front for each hospital's columns; the server joins their outputs.
    fronts = {
        "north": nn.Sequential(nn.Linear(10, 16), nn.ReLU()),
        "south": nn.Sequential(nn.Linear(20, 16), nn.ReLU()),
    }
    model = VerticalModel(fronts, nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)))
    dealer = Dealer(Network(keys=load_key_pair(keys, "dealer"), peers=public, address="tcp://127.0.0.1:*"))
    server = Server(
        SplitModel(model.tail, "input").tail,
        cut="join",
        settings=RunSettings(clients=HOSPITALS, epochs=epochs, aggregation="none", join="concat"),
        network=Network(
            keys=load_key_pair(keys, "server"), peers=public, address="tcp://127.0.0.1:*", dealer=dealer.address
        ),
    )
    columns, accuracy = make_data(), []

    def be_a_hospital(name: str) -> None:
        with ColumnsClient(
            model.fronts[name],
            cut="join",
            network=Network(keys=load_key_pair(keys, name), peers=public, server=server.address, dealer=dealer.address),
        ) as client:
            client.train(columns[name])
            if name == "south":
                client.contribute()  # shares of its activations, to what the other asks
            else:
                # The aligned rows begin with those for training; the rest is held out.
                rows = range(client.training_rows, len(client.columns.ids))[:predictions]
                results = client.predict_rows(rows, Query(batch_size=32))
                labels = client.columns.labels[list(rows)]
                accuracy.append((results.labels == labels).float().mean().item())
            client.leave()

    dealing = threading.Thread(target=dealer.serve)
    others = [threading.Thread(target=server.serve)]
    others += [threading.Thread(target=be_a_hospital, args=(name,)) for name in HOSPITALS]
    for thread in (dealing, *others):
        thread.start()
    for thread in others:
        thread.join()
    dealer.stop()
    return accuracy[0]


if __name__ == "__main__":
    print(f"{run():.1%} of the held-out patients are diagnosed rightly")
