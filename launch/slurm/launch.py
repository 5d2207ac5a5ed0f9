"""Launch a study on Slurm: checks, a graph of jobs, the next steps. It returns at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.sync import sync_runs
from launch.console import print_graph, print_header, print_line, this_command
from launch.results import print_next_steps, print_table
from launch.slurm.arrays import Array, Planner
from launch.slurm.commands import SlurmError, site_facts
from launch.slurm.job_status import states_of
from launch.slurm.preflight import check_imports
from launch.slurm.snapshot import Snapshot, snapshot_environment, take_snapshot
from launch.slurm.submit import Submission, Submitter
from launch.study.cluster import ClusterSettings, resource_kind
from launch.study.graph import Experiment
from launch.study.plan import Plan, make_writable, register
from launch.study.record import record_path, study_lock

MAX_LABELS = 5  # ours: experiments that a line names


def launch_on_slurm(
    plan: Plan, cluster: ClusterSettings, *, console: Console, together: Mapping[str, str] | None = None
) -> int:
    """Submit the experiments of a plan that are missing.

    Args:
        plan: the study.
        cluster: the cluster.
        console: the output.
        together: see ``launch.study.plan.register``.

    Returns:
        Exit code: 0 if every experiment is done, queued or running; 1 if Slurm refused a job.

    Raises:
        ValueError, OSError: if nothing could be submitted; one line.
        UnusableEnvironmentError: if the imports of the jobs fail.
    """
    print_header(plan, console, how="on Slurm", states=states_of(plan.graph))
    make_writable(plan.runs_root)
    if plan.launch.dry_run:
        code = Snapshot(plan.runs_root.resolve() / "code" / "SNAPSHOT", "", None, False)
        return _dry_run(plan, _submitter(plan, cluster, code, console), console)
    submitter = _submitter(plan, cluster, take_snapshot(plan.runs_root), console)
    missing = [item for item in plan.graph if not (item.path / "result.json").is_file()]
    submitter.check_all(resource_kind(item) for item in missing)
    check_imports(
        submitter.cluster, missing, code=submitter.code, runs_root=plan.runs_root, print_line=submitter.print_line
    )
    with study_lock(plan.runs_root, plan.name, patience_s=60.0):
        runs = register(plan, where="slurm", together=together)
        if is_done(plan):
            return _finish(plan, list(runs.values()), console, has_report=bool(together))
        done = submitter.submit(plan.graph, runs, record=record_path(plan.runs_root, plan.name))
    _print_submission(plan, done, console)
    return 1 if done.error else 0


def is_done(plan: Plan) -> bool:
    """Whether every experiment of a study has a result."""
    return all((item.path / "result.json").is_file() for item in plan.graph)


def _finish(plan: Plan, runs: Sequence[RunDirectory], console: Console, *, has_report: bool) -> int:
    """Sync a study that is done to MLflow and print its table.

    A report of several studies prints it itself.
    """
    tracking = plan.config["tracking"]
    if tracking["delivery"] != "off":
        print_line(console, sync_runs(runs, tracking["uri"], tracking["experiment"], verify=True).summary)
    if has_report:
        return 0
    has_table = print_table(plan, console)
    print_next_steps(plan, console)
    return 0 if has_table else 1


def _submitter(plan: Plan, cluster: ClusterSettings, code: Snapshot, console: Console) -> Submitter:
    return Submitter(
        study=plan.name,
        cluster=cluster,
        runs_root=plan.runs_root,
        code=snapshot_environment(code),
        print_line=lambda text: print_line(console, text),
    )


def _dry_run(plan: Plan, submitter: Submitter, console: Console) -> int:
    """Print the graph and every script, and test them with Slurm.

    Slurm tests one job of each kind, where there is Slurm.
    """
    print_graph(plan, console, states=states_of(plan.graph))
    missing = [item for item in plan.graph if not (item.path / "result.json").is_file()]
    arrays, has_slurm = plan_arrays(missing)
    folder = plan.runs_root.resolve() / "slurm" / "BATCH"
    for array in arrays:
        _print_script(_describe(array), submitter.script_of(array, folder), console)
    if arrays:
        record = record_path(plan.runs_root, plan.name)
        after = [array.submitted_id for array in arrays]
        _print_script("the table", submitter.table_script(record, folder, after=after), console)
    code = 0
    if has_slurm:
        for line in check_kinds(submitter, arrays):
            print_line(console, line)
            code = 1 if "refused" in line else code
    else:
        print_line(console, "no Slurm on this machine: the scripts were not shown to it")
    print_line(
        console, "dry_run: every config is valid; the clips are ready; nothing was submitted, no run directory made"
    )
    return code


def plan_arrays(experiments: Sequence[Experiment]) -> tuple[list[Array], bool]:
    """Return the arrays of a launch into an empty queue.

    Also whether this machine has Slurm.

    The arrays have the job numbers JOB1, JOB2, and so on.
    """
    try:
        size, has_slurm = int(site_facts().get("MaxArraySize", "1001")), True
    except SlurmError:
        size, has_slurm = 1001, False
    arrays = Planner(resource_kind, size).plan(experiments)
    for number, array in enumerate(arrays, start=1):
        array.job_id = f"JOB{number}"
    return arrays, has_slurm


def check_kinds(submitter: Submitter, arrays: Sequence[Array]) -> list[str]:
    """Test one job of each kind with Slurm.

    Returns one line a kind.
    """
    lines = []
    for kind in dict.fromkeys([*(array.kind for array in arrays), "cpu"]):
        try:
            lines.append(f"Slurm about {kind} jobs: {submitter.check(kind)}")
        except SlurmError as error:
            lines.append(f"Slurm about {kind} jobs: refused: {error}")
    return lines


def _print_script(title: str, text: str, console: Console) -> None:
    print_line(console, f"\n# ---- {title}", style="bold")
    print_line(console, text.rstrip())


def _describe(array: Array) -> str:
    count = len(array.tasks)
    after = f", {array.dependency}" if array.dependency else ""
    return f"job {array.job_id}: {count} x {array.kind} [{array.indices}]{after}"


def _some(experiments: Sequence[Experiment]) -> str:
    labels = [item.label for item in experiments]
    more = f" and {len(labels) - MAX_LABELS} more" if len(labels) > MAX_LABELS else ""
    return ", ".join(labels[:MAX_LABELS]) + more


def _print_submission(plan: Plan, done: Submission, console: Console) -> None:
    """Print the submitted jobs, Slurm's refusal if any, and the next steps."""
    if done.kept:
        print_line(console, f"{len(done.kept)} experiments are queued or running already")
    if done.elsewhere:
        print_line(
            console,
            f"{len(done.elsewhere)} experiments are run by a process outside Slurm, or need one that is: launch again"
            f" when it has ended ({_some(done.elsewhere)})",
        )
    for array in done.arrays:
        print_line(console, f"  {_describe(array)}")
    if done.table_job:
        print_line(console, f"  job {done.table_job}: the table, when all of them have ended")
    print_line(
        console,
        f"submitted {done.num_submitted} experiments in {done.num_calls} sbatch call(s), {done.seconds:.1f} s",
    )
    if done.error:
        print_line(console, f"Slurm refused: {done.error}", style="red")
        if done.not_submitted:
            rest = f"{len(done.not_submitted)} experiments ({_some(done.not_submitted)})"
            print_line(console, f"not submitted: {rest}, nor the table")
        print_line(console, f"when the cause is gone: {this_command()}")
    elif done.num_calls:
        print_line(console, "this shell may be closed: the jobs run, resume and finish by themselves")
    print_next_steps(plan, console)
