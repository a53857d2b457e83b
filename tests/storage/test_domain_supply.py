"""What there is of every domain, as a file: units, and what is told of mistakes."""

from pathlib import Path

import pytest

from tamis.storage.domain_supply import Amount, Supply, load_supply
from tamis.storage.errors import UserError


def test_a_supply_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    there = Supply(
        domains={
            "web": Amount(rows=3, bytes=2**40, tokens=2**39),
            "règles, 規則": Amount(rows=0, bytes=0, tokens=0),
        }
    )
    there.save(tmp_path / "supply.json")
    found = load_supply(tmp_path / "supply.json")
    assert found == there
    assert found.of("bytes") == {"web": float(2**40), "règles, 規則": 0.0}


def test_the_finest_unit_that_all_domains_have() -> None:
    some = Supply(domains={"a": Amount(rows=1, bytes=5, tokens=2), "b": Amount(rows=2, bytes=9)})
    assert some.unit == "bytes"
    assert some.of() == {"a": 5.0, "b": 9.0}
    assert Supply(domains={"a": Amount(rows=4)}).of() == {"a": 4.0}
    with pytest.raises(UserError, match="the tokens of 'b' were not counted; counted: bytes"):
        some.of("tokens")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object in braces"),
        ("{}", "domains: Field required"),
        ('{"domains": {}}', "domains: expected at least one, found none"),
        ('{"web": 100}', r"domains: Field required \(and 1 more\)"),
        ('{"domains": {"web": 100}}', r"domains.web: expected .*found 100"),
        ('{"domains": {"web": {"rows": -1}}}', "domains.web.rows: expected .* or equal to 0"),
        ('{"domains": {"web": {"rows": 1.5}}}', "domains.web.rows: expected a valid integer"),
        ('{"domains": {"web": {"tokens": 10}}}', "domains.web.rows: Field required"),
        ('{"domains": {"web": {"rows": 1}, "web": {"rows": 2}}}', "'web' stands there twice"),
        ('{"format": "tamis supply 9", "domains": {"web": {"rows": 1}}}', "format: expected"),
    ],
)
def test_mistakes_are_told_with_the_file(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "supply.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=what) as told:
        load_supply(path)
    assert told.value.where == str(path)
    assert "\n" not in str(told.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; `tamis mix count`"):
        load_supply(tmp_path / "none.json")
    with pytest.raises(UserError, match="a folder, expected a JSON file"):
        load_supply(tmp_path)
