import pytest
import torch
from pydantic import ValidationError

from methods.keep import RULES, Keep, KeepOptions

VALUES = {
    "a": torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64),
    "b": torch.tensor([3.0, 1.0], dtype=torch.float64),
    "dead": torch.zeros(2, dtype=torch.float64),
}
COST = {"a": 10, "b": 20, "dead": 5}


@pytest.mark.parametrize(
    ("keep", "ranks"),
    [
        (Keep(), (3, 2, 2)),
        (Keep(rank=2), (2, 2, 2)),
        (Keep(mean_rank=1), (2, 1, 0)),
        (Keep(mean_rank=0.3), (0, 0, 0)),
        (Keep(energy=0.9), (2, 1, 0)),  # 20/21 of a's squares, 9/10 of b's
        (Keep(energy=1), (3, 2, 0)),
        (Keep(max_params=30), (1, 1, 0)),  # 16, 4 and 1 per 10 numbers; 9 and 1 per 20
        (Keep(max_params=1000), (3, 2, 0)),
    ],
    ids=str,
)
def test_each_rule_by_hand(keep: Keep, ranks: tuple[int, ...]) -> None:
    assert tuple(keep.ranks(VALUES, COST).values()) == ranks


def test_max_params_keeps_all_that_lives_if_it_fits() -> None:
    live = {"a": 3, "b": 2, "dead": 1}
    assert Keep(max_params=75).ranks(VALUES, COST, live=live) == live
    assert Keep(max_params=74).ranks(VALUES, COST, live=live)["dead"] == 0


def test_energy_of_all_layers_together() -> None:
    # squares 16, 9, 4, 1, 1 of 31
    assert Keep(energy=25 / 31).ranks(VALUES, COST, together=True) == {"a": 1, "b": 1, "dead": 0}


def test_energy_of_updates_whose_leading_values_alone_are_known() -> None:
    leading = {"a": VALUES["a"][:2]}
    assert Keep(energy=0.9).ranks(leading, COST, squared={"a": 21.0}) == {"a": 2}
    assert Keep(energy=0.9).ranks(leading, COST, squared={"a": 18.0}) == {"a": 2}
    assert Keep(energy=0.9).ranks(leading, COST, squared={"a": 17.0}) == {"a": 1}


def test_mean_rank_counts_dead_modules_that_are_not_stored() -> None:
    assert Keep(mean_rank=0.5).ranks(VALUES, COST, modules=6) == {"a": 2, "b": 1, "dead": 0}


def test_two_rules_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="rank and energy exclude each other"):
        Keep(rank=1, energy=0.5)
    with pytest.raises(ValidationError, match="rank and energy exclude each other"):
        KeepOptions(rank=1, energy=0.5)


def test_every_rule_can_be_given_and_is_described() -> None:
    assert RULES.keys() == KeepOptions.model_fields.keys()
    for name in RULES:
        assert KeepOptions(**{name: 1}).keep().given() == {name: 1}
        with pytest.raises(ValidationError, match=name):
            KeepOptions(**{name: 0})
