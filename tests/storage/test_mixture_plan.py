"""A mixture as a file: what is read back, what people write by hand, what is told of mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan, load_plan


def written(folder: Path, text: str) -> Path:
    path = folder / "mixture.json"
    path.write_text(text, "utf-8")
    return path


def test_a_plan_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    plan = MixturePlan.of(
        {"web": 0.3, "Код 代码": 0.7},
        {"web": 1.0, "Код 代码": 0.0},
        shares=(1, 3),
        origin={"method": "temperature", "tau": [5.0, 1.0]},
    )
    plan.save(tmp_path / "deep" / "plan.json")
    found = load_plan(tmp_path / "deep" / "plan.json")
    assert found == plan
    assert [phase.share for phase in found.phases] == [0.25, 0.75]
    assert found.domains == ("web", "Код 代码")
    assert found.over_all() == pytest.approx({"web": 0.25 * 0.3 + 0.75, "Код 代码": 0.25 * 0.7})
    assert "代码" in (tmp_path / "deep" / "plan.json").read_text("utf-8")


def test_proportions_by_hand_are_one_phase(tmp_path: Path) -> None:
    found = load_plan(written(tmp_path, '\ufeff{"web": 0.6, "code": 0.4}'))
    assert len(found.phases) == 1
    assert found.phases[0].share == 1.0
    assert found.over_all() == {"web": 0.6, "code": 0.4}


def test_a_domain_may_be_called_as_a_key_of_the_file_is(tmp_path: Path) -> None:
    found = load_plan(written(tmp_path, '{"format": 0.25, "phases": 0.75}'))
    assert found.over_all() == {"format": 0.25, "phases": 0.75}


def test_rounded_proportions_are_divided_by_their_sum(tmp_path: Path) -> None:
    found = load_plan(written(tmp_path, '{"a": 0.333, "b": 0.333, "c": 0.333}'))
    assert sum(found.over_all().values()) == pytest.approx(1, abs=1e-15)
    assert found.over_all()["a"] == pytest.approx(1 / 3)


def test_one_domain_is_a_mixture(tmp_path: Path) -> None:
    assert load_plan(written(tmp_path, '{"web": 1}')).over_all() == {"web": 1.0}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{}", "no domains"),
        ("", "not JSON"),
        ('{"web": 0.6, "code": 0.4', "not JSON"),
        ("[0.6, 0.4]", "expected a JSON object in braces, found"),
        ("null", "expected a JSON object in braces, found None"),
        ('{"web": 0.5, "web": 0.5}', "the name 'web' stands there twice"),
        ('{"web": 60, "code": 40}', "sum to 100, expected 1; percentages"),
        ('{"web": 3, "code": 1}', "sum to 4, expected 1; divide them by 4"),
        ('{"web": 0.6, "code": 0.3}', "sum to 0.9"),
        ('{"web": 0, "code": 0}', "sum to 0"),
        ('{"web": 1.5, "code": -0.5}', "'code' has -0.5, expected 0 or more"),
        ('{"web": NaN, "code": 0.5}', "'web' has nan"),
        ('{"web": Infinity, "code": 0.5}', "'web' has inf"),
        ('{"web": "60 %", "code": 0.4}', "mixture.web: expected a valid number, found '60 %'"),
        ('{"web": null, "code": 0.4}', "mixture.web: expected a valid number, found None"),
        ('{"web": {"share": 1}}', "mixture.web: expected a valid number, found {'share': 1}"),
        ('{"phases": []}', "phases"),
        ('{"format": "tamis mixture 1"}', "phases: Field required"),
        ('{"format": "tamis mixture 2", "phases": []}', "format: expected 'tamis mixture 1'"),
        (
            '{"phases": [{"share": 0, "mixture": {"web": 1}}]}',
            "phases.0.share: expected greater than 0, found 0",
        ),
        (
            '{"phases": [{"share": NaN, "mixture": {"web": 1}}]}',
            "phases.0.share: expected .* found nan",
        ),
        ('{"phases": [{"share": 1, "mixture": {}}]}', "phases.0.mixture"),
        ('{"phases": [{"share": 1, "mixture": {"web": 1}, "tau": 5}]}', "phases.0.tau"),
        (
            '{"phases": [{"share": 1, "mixture": {"web": 1}}, '
            '{"share": 1, "mixture": {"web": 0.5, "code": 0.5}}]}',
            r"phases\[1\]: domains differ from those of phases\[0\] \(code\)",
        ),
    ],
)
def test_mistakes_are_told_with_the_file(tmp_path: Path, text: str, what: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=what) as told:
        load_plan(path)
    assert told.value.where == str(path)
    assert "\n" not in str(told.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; .*tamis mix optimise --out"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(UserError, match="a folder, expected a JSON file"):
        load_plan(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00PAR1")
    with pytest.raises(UserError, match="not JSON"):
        load_plan(tmp_path / "binary.json")


def test_plans_that_are_built_in_code_are_checked_alike() -> None:
    with pytest.raises(UserError, match=r"sum to 1\.2"):
        MixturePlan.of({"web": 0.8, "code": 0.4})
    with pytest.raises(UserError, match="2 mixtures, and shares of 1 phases"):
        MixturePlan.of({"web": 1.0}, {"web": 1.0}, shares=(1,))
    with pytest.raises(UserError, match="no mixture was given"):
        MixturePlan.of()


@given(
    st.lists(
        st.tuples(
            st.floats(1e-3, 1e3), st.lists(st.floats(0, 1e6), min_size=2, max_size=4).filter(any)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_shares_and_proportions_sum_to_one(phases: list[tuple[float, list[float]]]) -> None:
    size = min(len(values) for _, values in phases)
    mixtures: list[dict[str, Any]] = []
    for _, values in phases:
        total = sum(values[:size]) or 1.0
        shares = (
            [value / total for value in values[:size]]
            if any(values[:size])
            else [1.0] + [0.0] * (size - 1)
        )
        mixtures.append({f"d{i}": share for i, share in enumerate(shares)})
    plan = MixturePlan.of(*mixtures, shares=[share for share, _ in phases])
    assert sum(phase.share for phase in plan.phases) == pytest.approx(1)
    assert sum(plan.over_all().values()) == pytest.approx(1)
    again = MixturePlan.model_validate(json.loads(plan.model_dump_json()))
    assert again.over_all() == pytest.approx(plan.over_all(), abs=1e-15)
