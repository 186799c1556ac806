"""Bad specs are refused before anything starts, at the path, with what is allowed and the nearest name."""

import pytest

from jobs.errors import SpecError
from jobs.spec import JobSpec
from tests.jobs.refusals.compressions import COMPRESSIONS
from tests.jobs.refusals.refused import Cases, check, spec_with
from tests.jobs.refusals.searches import SEARCHES
from tests.jobs.refusals.sections import SECTIONS
from tests.jobs.refusals.texts_and_tables import TEXTS_AND_TABLES

TABLES = (SECTIONS, SEARCHES, TEXTS_AND_TABLES, COMPRESSIONS)
SPECS: Cases = {case: refused for table in TABLES for case, refused in table.items()}


def test_no_case_hides_another() -> None:
    assert len(SPECS) == sum(len(table) for table in TABLES)


@pytest.mark.parametrize("case", SPECS)
def test_a_bad_spec_is_refused(case: str) -> None:
    values, path, parts = SPECS[case]
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(spec_with(values))
    check(caught.value, path, parts)


def test_every_problem_is_found_and_no_other() -> None:
    values = {"train": {"epochs": 0, "seed": -1}, "layout": {"dat": 1}, "metric": "acuracy"}
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(spec_with(values))
    assert {problem.path for problem in caught.value.problems} == {
        "train.epochs",
        "train.seed",
        "layout.dat",
        "metric",
    }
