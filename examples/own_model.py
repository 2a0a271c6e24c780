"""Cut a model of your own, see what each cut costs, and build one party's part: `python examples/own_model.py`.

Nothing in the model knows about splitsec: functional calls and skip connections are fine. `splitsec predict` then runs
encrypted predictions of it with all parties on this machine, see docs/tutorial/own-model.md.
"""

import torch
from torch import nn
from torch.nn import functional

from splitsec import SplitModel
from splitsec.advisor import list_cuts
from splitsec.cut import build_segment


class Net(nn.Module):
    """A small network with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc1 = nn.Linear(8 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10) for images (N, 1, 8, 8)."""
        x = self.stem(x)
        x = functional.relu(x + self.conv2(functional.relu(self.conv1(x))))
        x = functional.max_pool2d(x, 2).flatten(1)
        return self.fc2(functional.relu(self.fc1(x)))


def run() -> SplitModel:
    """Print the cuts with their costs, cut the model, and show that both parts together are the model."""
    torch.manual_seed(0)
    model = Net().eval()

    # Where a single value separates front from tail, and what an encrypted prediction of the tail costs there.
    for cut in list_cuts(model, (1, 8, 8)):
        if cut.encrypted is not None:
            print(f"{cut.name}: {cut.elements} values cross; {cut.encrypted.online_ms:.1f} ms a prediction")

    # The client keeps the front, the server the tail. Both are ordinary modules.
    split = SplitModel(model, cut="stem")
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(split.tail(split.front(images)), model(images))

    # A party that holds one part needs the others' weights neither in memory nor on disk.
    tail = build_segment(Net, "stem", "tail", weights=split.tail.state_dict())
    print("the server holds:", ", ".join(tail.state_dict()))

    # Two names make a U: the layers from fc2 on are the client's too, so that labels never leave it.
    u = SplitModel(Net(), cut=("stem", "fc2"))
    assert u.head is not None
    print("in a U the client also holds:", ", ".join(u.head.state_dict()))
    return split


if __name__ == "__main__":
    run()
