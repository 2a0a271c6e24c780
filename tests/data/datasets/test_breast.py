import torch
from sklearn.datasets import load_breast_cancer

from splitsec.data.datasets import load_columns


def test_each_hospital_lacks_some_patients_and_rows_agree_by_id() -> None:
    first, second = load_columns("breast", None, 0)
    assert (first.values.shape, second.values.shape) == ((541, 10), (541, 20))
    assert first.labels is not None
    assert second.labels is None
    assert set(first.ids) != set(second.ids)
    patients = load_breast_cancer()
    whole = torch.from_numpy(patients.data).float()
    for hospital, columns in ((first, slice(0, 10)), (second, slice(10, 30))):
        rows = [int(text.removeprefix("patient-")) for text in hospital.ids]
        assert torch.equal(hospital.values, whole[rows][:, columns])
    assert first.labels.tolist() == [int(patients.target[int(text.removeprefix("patient-"))]) for text in first.ids]


def test_the_seed_decides_who_is_lacking() -> None:
    (first, _), (again, _), (other, _) = (load_columns("breast", None, seed) for seed in (0, 0, 1))
    assert first.ids == again.ids
    assert set(first.ids) != set(other.ids)
