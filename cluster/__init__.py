"""Where the work runs: the only package that talks to ray core and to Ray's job submission.

connect.py    to a Ray of our own, or to an existing cluster
placement.py  a gang's demand as bundles (pure), and their reservation
workers.py    the protocols that work is driven through, and `run_work`
gang.py       the worker group made of Ray actors that stay warm between works
session.py    one work on its way through a gang, from outside
member.py     one worker process of a gang, from inside
trainer.py    the worker group made of a run of Ray Train
host.py       that run, and the mailbox of its workers
local.py      a Ray of several nodes on one machine, for development and tests
submit.py     whole jobs through Ray's Jobs API
"""

import os

# Ray prints what its raylets say about dead workers to standard output, even with log_to_driver=False; ours carries
# results. This must stand in the environment before ray is imported, and everything here imports it after this.
if not os.environ.get("THRESHER_DEBUG"):
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
