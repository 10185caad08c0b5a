"""Computes the next action for one model on one server from observed and desired state. Pure: no clock, no I/O.

The planner is called again after every action, with the state at that time. A restart, a crash, an unload by another
client and a failed action are therefore all the same case. The code refers to the numbers of these rules:

0.  Not now.
    0.1  a step without a target failed a moment ago: nothing
    0.2  Triton is loading this model (our load timed out, or another client's load): wait
1.  Nothing is to be loaded.
    1.1  the candidate is loaded: unload it
    1.2  the model is loaded: unload it, after the pipelines that use it
    1.3  its memory is not free yet: wait
    1.4  unused folders are left: clean up
2.  Choose the goal: the first of these that no failure blocks.
    2.1  the desired target; also if it is loaded and answers, and only the move to its assigned GPUs failed
    2.2  a fallback that is loaded and not known to be bad: it stays active
    2.3  a fallback that is not loaded or must be repaired
    2.4  none, and the active version is known to be bad: unload it (it can only do harm)
    2.5  none: nothing
3.  The goal is loaded under the right configuration.
    3.1  not proved: prove it, by its number (it need not be the active version)
    3.2  proved to be bad, and due for another try: load it again
    3.2b proved, and on other GPUs than its assigned ones: load it again there; Triton then drops the old instances
         (after a failure, only wait for the next try: every load would move it)
    3.3  proved, and other versions than it, the one kept for the bake window and those that pipelines need are loaded:
         narrow the policy (while a rollout has a candidate, none is kept: never three replicas in memory)
         3.3b a version that a pipeline needs would become active: keep all until the pipeline runs with another one
         3.3c a version that a pipeline needs is not loaded: stage it, load it beside the goal, and prove it
    3.4  a rollout has a candidate
         3.4.1  it failed and must wait: unload it
         3.4.2  it is not loaded and proved under the candidate's name: stage, load and prove it, as in 5.3
    3.5  a candidate is left: unload it
    3.6  unused folders are left: clean up
    3.7  nothing: the deployment is Ready
4.  The goal is not loaded and nothing else is, so no traffic is at risk: load under the model's own name.
    4.1  a candidate is loaded: unload it (never three replicas in memory)
    4.2  the memory of the unloaded versions is not free yet: wait
    4.3  not staged: stage it
    4.4  load it alone
5.  The goal is not loaded, another version is.
    5.1  besides the active version another one is baking that no pipeline needs: drop it (never three replicas in
         memory); the configuration stays as it is, even if it is not ours
    5.2  the goal is a lower version under the same configuration and would not become active: stage it and load it
         beside the active version; 3.1 then proves it (a candidate is unloaded first)
    5.3  the goal would become active at once and was not proved on this server: prove it under the candidate's name
         (stage, load, prove; a stale candidate is unloaded first), except
         5.3b its proof is on record, it has not failed here, and the active version is proved, stays loaded beside it
              and is a fallback: load it once, as in 5.4.1; 3.1 then proves it
    5.4  it was proved: unless there is memory for a third replica, unload the candidate; stage under the own name, then
         5.4.1  same configuration: load it beside the active version
         5.4.2  other configuration, or other GPUs: load it alone (Triton loads it before it drops the old version);
                not while a pipeline needs another version that is loaded
         With enough memory, 3.5 unloads the candidate after the version is active: no load waits for its memory.
"""

from datetime import datetime

from controlplane.lifecycle.actions import Action, CleanUp, Load, Prove, Stage, Unload, Wait
from controlplane.lifecycle.state import DesiredReplica, ObservedReplica, ProofStatus, Target, bake_until


def plan(desired: DesiredReplica, observed: ObservedReplica, now: datetime) -> Action | None:
    """Return the next action; None if there is nothing to do at this moment.

    Args:
        desired: The desired state.
        observed: The observed state.
        now: The present time (UTC), for back-off and bake window.
    """
    if observed.hold_until and now < observed.hold_until:  # 0.1
        return None
    if observed.loading:  # 0.2
        return Wait("Triton is busy loading")
    if not desired.loaded:  # 1
        return _nothing_wanted(desired, observed)
    goal = choose_goal(desired, observed, now)  # 2
    if goal is None:
        answering = observed.answering
        if answering is not None and observed.mark(answering).bad:  # 2.4
            return Unload(candidate=False, because=f"version {answering} failed its proof")
        if observed.candidate is not None:
            return Unload(candidate=True, because="the candidate failed")
        return None  # 2.5
    if goal.version in observed.loaded and observed.digest == goal.digest:  # 3
        return _goal_loaded(desired, observed, goal, now)
    if not observed.loaded:  # 4
        return _load_first(observed, goal)
    return _replace(desired, observed, goal, now)  # 5


def choose_goal(desired: DesiredReplica, observed: ObservedReplica, now: datetime) -> Target | None:
    """Return the target to work towards: the desired one, or a fallback while the desired one is blocked."""
    wanted = desired.targets[0] if desired.targets else None
    free = [target for target in desired.targets if not _blocked(observed, target, now)]
    if wanted is not None and (wanted in free[:1] or _only_displaced(desired, observed, wanted)):  # 2.1
        return wanted
    for target in free:  # 2.2
        loaded = target.version in observed.loaded and target.digest == observed.digest
        if loaded and not observed.mark(target.version).bad:
            return target
    return free[0] if free else None  # 2.3


def kept_alongside(desired: DesiredReplica, observed: ObservedReplica, goal: Target, now: datetime) -> int | None:
    """Return the version that stays loaded for the goal's bake window; it is lower, so it does not become active."""
    if desired.trial is not None or now >= bake_until(desired, observed, goal.version):
        return None
    for version in desired.history:
        if version in observed.loaded and version < goal.version and not observed.mark(version).bad:
            return version
    return None


def _only_displaced(desired: DesiredReplica, observed: ObservedReplica, target: Target) -> bool:
    """Return whether a target is loaded and not known to be bad, and is only on the wrong devices."""
    loaded = target.version in observed.loaded and target.digest == observed.digest
    return bool(desired.relocation_reason) and loaded and not observed.mark(target.version).bad


def _blocked(observed: ObservedReplica, target: Target, now: datetime) -> bool:
    failure = observed.failures.get(target)
    return failure is not None and failure.blocks(now)


def _nothing_wanted(desired: DesiredReplica, observed: ObservedReplica) -> Action | None:
    if observed.candidate is not None:  # 1.1
        return Unload(candidate=True, because="the desired state is unloaded")
    if observed.loaded and desired.users:  # 1.2
        return Wait(f"{_names(desired)} is unloaded first")
    if observed.loaded:  # 1.2
        return Unload(candidate=False, because="the desired state is unloaded")
    if observed.leaving or observed.candidate_leaving:  # 1.3
        return Wait("Triton is unloading it")
    if observed.candidate_staged or (desired.deleted and observed.staged):  # 1.4
        return CleanUp(
            because="its folders are unused", candidate=bool(observed.candidate_staged), model=desired.deleted
        )
    return None


def _goal_loaded(desired: DesiredReplica, observed: ObservedReplica, goal: Target, now: datetime) -> Action | None:
    mark = observed.mark(goal.version)
    if mark is ProofStatus.UNPROVED:  # 3.1
        return Prove(goal, candidate=False, because=f"version {goal.version} is loaded and not proved")
    if mark.bad:  # 3.2
        return Load(
            goal,
            tuple(sorted(observed.loaded)),
            reload=True,
            because=f"version {goal.version} failed its proof",
        )
    if desired.relocation_reason:  # 3.2b
        if _blocked(observed, goal, now):
            return None
        return Load(goal, tuple(sorted(observed.loaded)), reload=True, because=desired.relocation_reason)
    beside = kept_alongside(desired, observed, goal, now)
    needed = desired.needed & observed.loaded
    wanted = {goal.version} | ({beside} if beside is not None else set()) | needed
    if goal == desired.targets[0] and any(v > goal.version and not observed.mark(v).bad for v in needed):  # 3.3b
        return Wait(f"{_names(desired)} needs version {max(needed)}, which would become active")
    wanted -= {version for version in wanted if version > goal.version}
    if observed.loaded != wanted:  # 3.3
        return Load(
            goal,
            tuple(sorted(wanted)),
            because=f"version {goal.version} is proved and must be active",
            switch=wanted <= observed.loaded,
        )
    if (action := _for_pipelines(desired, observed, goal, now)) is not None:  # 3.3c
        return action
    trial = desired.trial if goal == desired.targets[0] else None
    if trial is not None and not _blocked(observed, trial, now):  # 3.4
        if not on_trial(observed, trial):  # 3.4.2
            return _prove_candidate(observed, trial)
    elif observed.candidate is not None:  # 3.4.1, 3.5
        return Unload(candidate=True, because="the candidate is not needed any more")
    stale = observed.staged - wanted - observed.leaving
    left = bool(observed.candidate_staged) and trial is None
    if (stale or left) and not observed.candidate_leaving:  # 3.6
        return CleanUp(because="folders of earlier versions are left", versions=tuple(sorted(stale)), candidate=left)
    return None  # 3.7


def _for_pipelines(desired: DesiredReplica, observed: ObservedReplica, goal: Target, now: datetime) -> Action | None:
    """Return the next step for a version that a pipeline needs beside the goal; None if there is none."""
    for target in sorted(Target(version, goal.digest) for version in desired.needed if version < goal.version):
        if target not in desired.targets or _blocked(observed, target, now):
            continue  # it cannot be loaded beside the goal; the pipeline's status says so
        if target.version not in observed.loaded:
            return _load_own(observed, target, tuple(sorted(observed.loaded | {target.version})))
        if observed.mark(target.version) is ProofStatus.UNPROVED:
            return Prove(target, candidate=False, because=f"{_names(desired)} needs version {target.version}")
    return None


def _names(desired: DesiredReplica) -> str:
    """Return the pipelines that use a model, as text."""
    return f"the pipeline {', '.join(desired.users)}" if desired.users else "a pipeline"


def on_trial(observed: ObservedReplica, trial: Target) -> bool:
    """Return whether a rollout's new version is loaded and proved under the candidate's name."""
    loaded = observed.candidate == trial.version and observed.candidate_digest == trial.digest
    return loaded and observed.candidate_mark is ProofStatus.PASSED


def _load_first(observed: ObservedReplica, goal: Target) -> Action:
    if observed.candidate is not None:  # 4.1
        return Unload(candidate=True, because="no version answers, so no candidate is needed")
    if observed.leaving or observed.candidate_leaving:  # 4.2
        return Wait("Triton is unloading an earlier version")
    if goal.version not in observed.staged:  # 4.3
        return Stage(goal, candidate=False, because=f"version {goal.version} is not staged")
    return Load(goal, (goal.version,), because=f"no version is loaded and version {goal.version} is desired")  # 4.4


def _replace(desired: DesiredReplica, observed: ObservedReplica, goal: Target, now: datetime) -> Action:
    base, same = _base(observed), goal.digest == observed.digest and not desired.relocation_reason
    present = Target(base, observed.digest or "")
    kept = desired.needed & observed.loaded - {goal.version}
    if not observed.loaded <= {base} | kept and not _blocked(observed, present, now):  # 5.1
        return Load(
            present,
            tuple(sorted({base} | kept)),
            because=f"version {goal.version} needs memory; version {base} stays active",
        )
    if same and goal.version < base:  # 5.2
        if observed.candidate is not None:
            return Unload(candidate=True, because=f"version {goal.version} needs no candidate")
        return _load_own(observed, goal, tuple(sorted({goal.version, base} | kept)))
    if goal not in observed.cleared:  # 5.3
        if not (same and _loads_once(desired, observed, goal, present, now)):
            return _prove_candidate(observed, goal)
        return _load_own(observed, goal, tuple(sorted({base, goal.version} | kept)), known="its proof is on record")
    if observed.candidate is not None and not desired.fits_alongside:  # 5.4
        return Unload(candidate=True, because=f"version {goal.version} is proved")
    if same:
        return _load_own(observed, goal, tuple(sorted({base, goal.version} | kept)))  # 5.4.1
    if kept:
        versions = ", ".join(map(str, sorted(kept)))
        return Wait(f"{_names(desired)} needs version {versions}, whose configuration differs")
    return _load_own(observed, goal, (goal.version,))  # 5.4.2


def _base(observed: ObservedReplica) -> int:
    """Return the loaded version that is to stay active: the highest passed one, else the highest unproved one."""
    for wanted in (ProofStatus.PASSED, ProofStatus.UNPROVED):
        versions = [version for version in observed.loaded if observed.mark(version) is wanted]
        if versions:
            return max(versions)
    return max(observed.loaded)


def _loads_once(
    desired: DesiredReplica, observed: ObservedReplica, goal: Target, present: Target, now: datetime
) -> bool:
    """Return whether a version that was not proved here may be loaded beside the active version and proved there."""
    if not desired.proof_on_record or goal != desired.targets[0] or goal in observed.failures:
        return False
    if observed.candidate is not None:
        return False  # it is half-way through 5.3, which goes on
    return (
        observed.mark(present.version) is ProofStatus.PASSED
        and present in desired.targets
        and not _blocked(observed, present, now)
    )


def _load_own(observed: ObservedReplica, goal: Target, versions: tuple[int, ...], *, known: str = "") -> Action:
    if goal.version not in observed.staged:
        return Stage(goal, candidate=False, because=f"version {goal.version} is not staged")
    if observed.leaving or observed.candidate_leaving:
        return Wait("Triton is unloading an earlier version")
    beside = [str(version) for version in versions if version != goal.version]
    how = f"beside version {', '.join(beside)}" if beside else "in place of the loaded version"
    why = f"version {goal.version} must be loaded {how}"
    return Load(goal, versions, because=f"{why}: {known}" if known else why, on_record=bool(known))


def _prove_candidate(observed: ObservedReplica, goal: Target) -> Action:
    stale = observed.candidate is not None and Target(observed.candidate, observed.candidate_digest or "") != goal
    if stale or (observed.candidate is not None and observed.candidate_mark.bad):
        return Unload(candidate=True, because="an earlier candidate is loaded")
    if observed.candidate is not None:
        return Prove(goal, candidate=True, because=f"version {goal.version} must be proved before it answers")
    if goal.version not in observed.candidate_staged:
        return Stage(goal, candidate=True, because=f"version {goal.version} must be proved before it answers")
    if observed.candidate_leaving or observed.leaving:
        return Wait("Triton is unloading an earlier version")
    return Load(
        goal, (goal.version,), candidate=True, because=f"version {goal.version} must be proved before it answers"
    )
