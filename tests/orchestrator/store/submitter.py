"""One of several processes that submit to one store at once: `python -m tests.orchestrator.store.submitter URL NUMBER`.

Says "ready", waits for a line, opens the store, submits under keys that all have and keys of its own, and prints what
it was told: {key: [job, created]}.
"""

import json
import random
import sys

from orchestrator.scheduling import Demand
from orchestrator.store import NewJob, Store

SHARED, OWN = 20, 10


def main(url: str, number: int) -> None:
    keys = [f"shared-{each}" for each in range(SHARED)] + [f"own-{number}-{each}" for each in range(OWN)]
    random.Random(number).shuffle(keys)
    new = NewJob("digits", "default", {"name": "digits"}, "5bec", Demand.of(2, CPU=1))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    told = {}
    with Store.open(url) as store:
        for key in keys:
            job, created = store.submit_job(new, key)
            told[key] = [job.id, created]
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
