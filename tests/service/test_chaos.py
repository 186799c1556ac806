"""A small chaos: every job ends in the state that its evidence supports. `make chaos` is the large one."""

import pytest

from tests.service.chaos import judge, play, world


@pytest.mark.timeout(600)  # three times what it takes
def test_jobs_end_as_their_evidence_says_whatever_dies():
    blows = ["kill_service", "kill_driver", "kill_service", "lose_node"]
    with world(seed=3) as of:
        records = play(of, jobs=6, failing=1, blows=blows, within_s=400, gap_s=10.0)
        states, wrong = judge(of, records, failing=1)
        assert not wrong, ("\n".join(wrong), (of.folder / "serve.log").read_text()[-4000:])
        assert states["SUCCEEDED"] == 5
        assert states["FAILED"] == 1
        assert of.did["service killed"] == 2
