"""The store against a model of it in memory: whatever is called in whatever order, both say the same.

The model is written anew, from what is promised: it shares no table of transitions with the store.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.errors import ThresherError
from orchestrator.scheduling import Project
from orchestrator.store import Conflict, JobFilter, JobState, Lease, NewModel, NotFound, Store
from orchestrator.store.errors import LeaseLost

from .model import ENDS, HOLDERS, LONG_S, MAY_FINISH, MAY_WAIT, WAITING, Attempt, Job, S
from .small_jobs import new

numbers = st.integers(0, 7)
keys = st.sampled_from([None, None, "k1", "k2"])
names = st.sampled_from(["a", "b"])
holders = st.sampled_from(HOLDERS)
causes = st.sampled_from([None, "user_code", "infrastructure"])


class StoreMachine(RuleBasedStateMachine):
    """`fresh` makes the address of an empty store."""

    fresh: ClassVar[Callable[[], str]]

    @initialize()
    def begin(self) -> None:
        self.url = type(self).fresh()
        # One for each leader: what one writes, the other must read.
        self.stores = {holder: Store.open(self.url) for holder in HOLDERS}
        self.store = self.stores["ann"]
        self.store.put_project(Project("other"))
        self.jobs: dict[str, Job] = {}
        self.leases: dict[str, Lease] = {}
        self.leader: str | None = None
        self.free = True
        self.epoch = 0
        self.models: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.aliases: dict[tuple[str, str, str], int] = {}
        self.acquire(HOLDERS[0], LONG_S)
        self.submit("a", None, "default", HOLDERS[0])
        self.submit("b", "k1", "other", HOLDERS[1])
        self.go_on(0, 6, well=True)

    def teardown(self) -> None:
        for store in getattr(self, "stores", {}).values():
            store.close()

    # --- what is compared ----------------------------------------------------------------------------------------

    @invariant()
    def jobs_are_the_same(self) -> None:
        if not hasattr(self, "stores"):
            return
        found = {}
        for each in self.stores["bob"].list_jobs(JobFilter(), limit=1000).items:
            attempt = each.attempt and (each.attempt.number, str(each.attempt.state), each.attempt.leaving_why)
            found[each.id] = (each.state, each.run_id, each.resumes, list(each.failures), attempt)
            assert (each.ended_ms is not None) == each.state.terminal
        wanted = {}
        for name, job in self.jobs.items():
            last = job.attempt and (len(job.attempts), job.attempt.state, job.attempt.leaving)
            wanted[name] = (job.state, job.run_id, job.resumes, job.failures, last)
        assert found == wanted

    @rule()
    def live_jobs_are_those_that_have_not_ended(self) -> None:
        assert {each.id for each in self.store.live_jobs()} == {n for n, job in self.jobs.items() if not job.ended}

    @rule()
    def models_are_the_same(self) -> None:
        given = {(m.project, m.name, m.version): (m.job_id, m.artifact) for m in self.store.models()}
        wanted = {(*place, i + 1): each for place, made in self.models.items() for i, each in enumerate(made)}
        assert given == wanted
        for (project, name, alias), version in self.aliases.items():
            found = self.store.model(project, name, alias)
            assert found is not None
            assert found.version == version

    @rule()
    def events_tell_the_whole_story(self) -> None:
        events = self.store.events()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        states: dict[str, Any] = {}
        for event in events:
            if event.kind == "job":
                assert event.data["old"] == states.get(event.job_id)  # type: ignore[arg-type]
                states[event.job_id] = event.data["new"]  # type: ignore[index]
            elif event.kind == "attempt":
                place = event.data["submission_id"]
                assert event.data["old"] == states.get(place)
                states[place] = event.data["new"]
        attempts = {f"{name}-{i + 1}": each for name, job in self.jobs.items() for i, each in enumerate(job.attempts)}
        wanted = {name: job.state for name, job in self.jobs.items()} | {n: a.state for n, a in attempts.items()}
        assert states == wanted

    @rule()
    def opened_again_all_is_there(self) -> None:
        self.stores["ann"].close()
        self.store = self.stores["ann"] = Store.open(self.url)

    # --- clients ---------------------------------------------------------------------------------------------------

    @rule(name=names, key=keys, project=st.sampled_from(["default", "other"]), via=holders)
    def submit(self, name: str, key: str | None, project: str, via: str) -> None:
        known = self.by_key(project, key)
        asked = new(name=name, project=project)
        if known is not None and (self.jobs[known].name != name or self.jobs[known].resumes):
            self.refused(Conflict, lambda: self.stores[via].submit_job(asked, key))
            return
        job, created = self.stores[via].submit_job(asked, key)
        assert created == (known is None)
        if created:
            self.jobs[job.id] = Job(project, name, key, job.id)
        else:
            assert job.id == known

    @rule()
    def submit_to_nobody(self) -> None:
        self.refused(NotFound, lambda: self.store.submit_job(new(project="nobodys")))

    @precondition(lambda self: self.jobs)
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        name, job = self.pick(number)
        if job.ended:
            self.refused(Conflict, lambda: self.store.request_cancel(name, "ada"))
            return
        job.state = S.CANCELLED if job.state in WAITING else S.CANCELLING
        self.store.request_cancel(name, "ada")

    @precondition(lambda self: self.jobs)
    @rule(number=numbers, key=keys, via=holders)
    def resume(self, number: int, key: str | None, via: str) -> None:
        name, job = self.pick(number)
        known = self.by_key(job.project, key)
        if known is not None and self.jobs[known].resumes == name:
            found, created = self.stores[via].request_resume(name, "ada", key)
            assert (found.id, created) == (known, False)
            return
        taken = any(each.run_id == job.run_id and not each.ended for each in self.jobs.values())
        if known is not None or taken or job.state not in (S.FAILED, S.CANCELLED):
            self.refused(Conflict, lambda: self.stores[via].request_resume(name, "ada", key))
            return
        found, created = self.stores[via].request_resume(name, "ada", key)
        assert created
        self.jobs[found.id] = Job(job.project, job.name, key, job.run_id, name)

    @precondition(lambda self: self.models)
    @rule(number=numbers, alias=st.sampled_from(["production", "best"]), version=st.integers(1, 3))
    def set_alias(self, number: int, alias: str, version: int) -> None:
        places = sorted(self.models)
        project, name = places[number % len(places)]
        if version > len(self.models[project, name]):
            self.refused(NotFound, lambda: self.store.set_alias(project, name, alias, version))
            return
        assert alias in self.store.set_alias(project, name, alias, version).aliases
        self.aliases[project, name, alias] = version

    @precondition(lambda self: self.aliases)
    @rule(number=numbers)
    def delete_alias(self, number: int) -> None:
        places = sorted(self.aliases)
        place = places[number % len(places)]
        for _ in range(2):  # twice is once
            self.store.delete_alias(*place)
        del self.aliases[place]
        assert self.store.model(*place) is None

    # --- leaders ---------------------------------------------------------------------------------------------------

    @rule(holder=holders, ttl_s=st.sampled_from([0.0, LONG_S]))
    def acquire(self, holder: str, ttl_s: float) -> None:
        lease = self.stores[holder].acquire_lease(holder, ttl_s)
        if not self.free and self.leader != holder:
            assert lease is None
            return
        assert lease is not None
        assert lease.epoch == self.epoch + 1
        self.leases[holder], self.leader, self.epoch, self.free = lease, holder, lease.epoch, ttl_s == 0

    @precondition(lambda self: self.leases)
    @rule(holder=holders, back=st.booleans())
    def renew_or_release(self, holder: str, back: bool) -> None:
        if holder not in self.leases:
            return
        store, lease = self.stores[holder], self.leases[holder]
        if back:
            store.release_lease(lease)
            if self.leads(holder):
                self.leader, self.free = None, True
        elif self.leads(holder):
            self.leases[holder] = store.renew_lease(lease)
        else:
            self.refused(LeaseLost, lambda: store.renew_lease(lease))

    @precondition(lambda self: self.jobs and self.leases)
    @rule(number=numbers, holder=holders)
    def plan(self, number: int, holder: str) -> None:
        name, job = self.pick(number)
        again = job.attempt is not None and job.attempt.state == "PLANNED"

        def done() -> None:
            if not again:
                job.attempts.append(Attempt())
                job.state = S.STARTING

        place = f"/runs/{job.run_id}"
        self.lead(
            holder,
            lambda store, lease: store.plan_attempt(lease, name, ("n1", "n2"), place, "run").number,
            again or (job.state in WAITING and not job.live),
            done,
            lambda: len(job.attempts),
        )

    @precondition(lambda self: self.jobs and self.leases)
    @rule(number=numbers, holder=holders, alive=st.booleans())
    def saw_it(self, number: int, holder: str, alive: bool) -> None:
        name, job = self.pick(number)
        attempt = job.attempt
        if attempt is None:
            return
        to, before = ("ALIVE", "SUBMITTED") if alive else ("SUBMITTED", "PLANNED")

        def done() -> None:
            if attempt.state != to and alive and job.state is S.STARTING:
                job.state = S.RUNNING
            attempt.state = to

        def see(store: Store, lease: Lease) -> str:
            place = f"{name}-{len(job.attempts)}"
            record = store.mark_alive(lease, place) if alive else store.mark_submitted(lease, place, "c")
            return str(record.state)

        self.lead(holder, see, attempt.state in (to, before), done, lambda: to)

    @precondition(lambda self: self.jobs and self.leases)
    @rule(number=numbers, holder=holders, lost=st.booleans(), cause=causes)
    def ended(self, number: int, holder: str, lost: bool, cause: str | None) -> None:
        name, job = self.pick(number)
        attempt = job.attempt
        if attempt is None:
            return
        cause = cause or ("infrastructure" if lost else None)
        ending = ("LOST", None, cause) if lost else ("ENDED", "over", cause)

        def done() -> None:
            if attempt.live and cause is not None:
                job.failures.append(cause)
            attempt.state, attempt.ending = ending[0], ending

        def end(store: Store, lease: Lease) -> str:
            place = f"{name}-{len(job.attempts)}"
            if lost:
                return str(store.mark_lost(lease, place, str(cause)).state)
            return str(store.end_attempt(lease, place, "over", cause).state)

        self.lead(holder, end, attempt.live or attempt.ending == ending, done, lambda: ending[0])

    @precondition(lambda self: self.jobs and self.leases)
    @rule(number=numbers, holder=holders, to=st.sampled_from(ENDS), artifacts=st.sets(names, max_size=2))
    def finish(self, number: int, holder: str, to: JobState, artifacts: set[str]) -> None:
        name, job = self.pick(number)
        made = [NewModel(job.name, each, "/x", "5bec") for each in sorted(artifacts)] if to is S.SUCCEEDED else []

        def done() -> None:
            job.state = to
            for model in made:
                versions = self.models.setdefault((job.project, job.name), [])
                if (name, model.artifact) not in versions:
                    versions.append((name, model.artifact))

        self.lead(
            holder,
            lambda store, lease: store.finish_job(lease, name, to, models=made).state,
            job.state is to or (not job.live and job.state in MAY_FINISH[to]),
            done,
            lambda: to,
        )

    @precondition(lambda self: self.jobs and self.leases)
    @rule(number=numbers, holder=holders, to=st.sampled_from(WAITING))
    def requeue(self, number: int, holder: str, to: JobState) -> None:
        name, job = self.pick(number)

        def done() -> None:
            job.state = to

        allowed = job.state is to or (not job.live and job.state in MAY_WAIT[to])
        self.lead(holder, lambda store, lease: store.requeue_job(lease, name, to).state, allowed, done, lambda: to)

    @precondition(lambda self: self.jobs and self.leases)
    @rule(number=numbers, holder=holders, why=st.sampled_from(["preempt", "cancel", "limit"]))
    def leave(self, number: int, holder: str, why: Any) -> None:
        name, job = self.pick(number)
        attempt = job.attempt
        stands = attempt is not None and attempt.leaving is not None and why != "cancel"
        to = job.state if stands else {"preempt": S.PREEMPTING, "cancel": S.CANCELLING, "limit": job.state}[why]

        def done() -> None:
            assert attempt is not None
            job.state = to
            attempt.leaving = attempt.leaving if stands else why

        allowed = job.live and not (to is S.PREEMPTING and job.state is S.CANCELLING)
        self.lead(holder, lambda store, lease: store.mark_leaving(lease, name, why).state, allowed, done, lambda: to)

    @rule(number=numbers, steps=st.integers(2, 6))
    def goes_well(self, number: int, steps: int) -> None:
        """Some steps of the way that most jobs go; what is drawn at random seldom gets far."""
        self.go_on(number, steps, well=True)

    @rule(number=numbers, steps=st.integers(2, 6))
    def goes_wrong(self, number: int, steps: int) -> None:
        self.go_on(number, steps, well=False)

    def go_on(self, number: int, steps: int, *, well: bool) -> None:
        if self.leader is None:
            self.acquire(HOLDERS[0], LONG_S)
        if self.leader is None or not self.leads(self.leader):
            return
        _, job = self.pick(number)
        for _ in range(steps):
            state = job.attempt.state if job.attempt is not None else None
            if job.ended:
                return
            elif state in ("PLANNED", "SUBMITTED"):
                self.saw_it(number, self.leader, state == "SUBMITTED")
            elif state == "ALIVE":
                self.ended(number, self.leader, False, None if well else "user_code")
            elif job.state in WAITING:
                self.plan(number, self.leader)
            elif job.state is S.PREEMPTING:
                self.requeue(number, self.leader, S.QUEUED)
            else:
                end = S.CANCELLED if job.state is S.CANCELLING else S.SUCCEEDED if well else S.FAILED
                self.finish(number, self.leader, end, {"a", "b"} if well else set())

    # --- the words above -------------------------------------------------------------------------------------------

    def pick(self, number: int) -> tuple[str, Job]:
        """The newest jobs most of all: that is where things happen."""
        return list(self.jobs.items())[-1 - number % len(self.jobs)]

    def by_key(self, project: str, key: str | None) -> str | None:
        found = (name for name, job in self.jobs.items() if key and (job.project, job.key) == (project, key))
        return next(found, None)

    def leads(self, holder: str) -> bool:
        return self.leader == holder and self.leases[holder].epoch == self.epoch

    def lead(
        self,
        holder: str,
        act: Callable[[Store, Lease], object],
        allowed: bool,
        done: Callable[[], None],
        answer: Callable[[], object],
    ) -> None:
        """Does it, once more to see that twice is once; or sees it refused, and that nothing changed."""
        if holder not in self.leases:
            return
        store, lease = self.stores[holder], self.leases[holder]
        if not self.leads(holder):
            self.refused(LeaseLost, lambda: act(store, lease))
        elif not allowed:
            self.refused(Conflict, lambda: act(store, lease))
        else:
            first = act(store, lease)
            done()
            assert first == answer()
            written = len(store.events())
            assert act(store, lease) == first
            assert len(store.events()) == written

    def refused(self, kind: type[ThresherError], act: Callable[[], object]) -> None:
        written = len(self.store.events())
        try:
            act()
        except kind:
            assert len(self.store.events()) == written
            return
        raise AssertionError(f"{kind.__name__} was expected")
