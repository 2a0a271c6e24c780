import pytest
import torch

from splitsec.models import SmallCNN, breast_columns, credit_columns, digits_cnn, digits_half, mnist_cnn, mnist_half


@pytest.mark.parametrize(("side", "classes"), [(8, 10), (14, 3), (16, 10), (28, 10)])
def test_a_small_cnn_takes_its_side_and_gives_its_classes(side: int, classes: int) -> None:
    assert SmallCNN(side=side, classes=classes)(torch.zeros(2, 1, side, side)).shape == (2, classes)


@pytest.mark.parametrize(("whole", "half"), [(digits_cnn, digits_half), (mnist_cnn, mnist_half)])
def test_a_half_has_half_of_the_units_of_every_hidden_layer(whole: type, half: type) -> None:
    first, second = whole(), half()
    for name in ("conv1", "conv2", "fc1"):
        assert first.get_submodule(name).weight.shape[0] == 2 * second.get_submodule(name).weight.shape[0]
    assert first.fc2.out_features == second.fc2.out_features == 10


@pytest.mark.parametrize(("make", "widths"), [(breast_columns, (10, 20)), (credit_columns, (13, 10))])
def test_columns_of_two_clients_make_two_classes(make: type, widths: tuple[int, int]) -> None:
    model = make()
    assert list(model.fronts) == ["client-1", "client-2"]
    assert model(*(torch.zeros(3, width) for width in widths)).shape == (3, 2)
