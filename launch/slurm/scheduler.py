"""TorchX's Slurm scheduler, fixed where 0.7.0, its last release, trips over Slurm.

`pyproject.toml` registers it with TorchX as `slurm`.
"""

import subprocess
from typing import NamedTuple

from torchx.schedulers import slurm_scheduler as torchx_slurm
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse
from torchx.specs import AppDef, AppState, ReplicaStatus, Role, RoleStatus

STATES = torchx_slurm.SLURM_STATES | {
    "COMPLETING": AppState.RUNNING,
    "CONFIGURING": AppState.PENDING,
    "REQUEUE_HOLD": AppState.PENDING,
    "REQUEUE_FED": AppState.PENDING,
    "RESV_DEL_HOLD": AppState.PENDING,
    "SPECIAL_EXIT": AppState.PENDING,
    "STOPPED": AppState.PENDING,
}


class SlurmScheduler(torchx_slurm.SlurmScheduler):
    """The same, with GPUs asked for per node, logs that outlive a requeue, and states of cancelled jobs."""

    def _submit_dryrun(
        self, app: AppDef, cfg: torchx_slurm.SlurmOpts
    ) -> AppDryRunInfo[torchx_slurm.SlurmBatchRequest]:
        info = super()._submit_dryrun(app, cfg)
        for replica in info.request.replicas.values():
            # Slurm 23.11 refuses --gpus-per-task without --ntasks, 24.11 in any case; a node has one task here.
            if gpus := replica.sbatch_opts.pop("gpus-per-task", None):
                replica.sbatch_opts["gpus-per-node"] = gpus
            replica.srun_opts["open-mode"] = "append"  # what a job said before it was requeued stays readable
        return info

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """State of a job and of each of its nodes; None if Slurm doesn't know the job."""
        jobs = [job for job in _jobs(app_id) if job.app_id == app_id]
        if not jobs:
            return None
        roles: dict[str, RoleStatus] = {}
        for job in jobs:
            role, _, replica = job.name.rpartition("-")
            if role and replica.isdecimal():  # another program's job has a name of its own
                status = roles.setdefault(role, RoleStatus(role, []))
                status.replicas.append(
                    ReplicaStatus(id=int(replica), role=role, state=job.state, hostname=job.host)
                )
        return DescribeAppResponse(
            app_id=app_id,
            roles=[Role(name, image="", num_replicas=len(roles[name].replicas)) for name in roles],
            roles_statuses=list(roles.values()),
            state=jobs[0].state,  # it runs the batch script, which ends when all of them have
            msg=jobs[0].slurm_state,
        )

    def list(self) -> list[ListAppResponse]:
        """The user's jobs, ended ones included."""
        states: dict[str, AppState] = {}
        for job in _jobs():
            states.setdefault(job.app_id, job.state)
        return [ListAppResponse(app_id, state) for app_id, state in states.items()]


class _Job(NamedTuple):
    """A job, or a component of a heterogeneous job: what TorchX has for each node."""

    job_id: str  # 12, or 12+1 for a component
    name: str
    slurm_state: str
    host: str

    @property
    def app_id(self) -> str:
        return self.job_id.partition("+")[0]

    @property
    def state(self) -> AppState:
        # Accounting says `CANCELLED by 1000`.
        return STATES.get(self.slurm_state.split()[0], AppState.UNKNOWN)


def _jobs(app_id: str | None = None) -> list[_Job]:
    """Jobs in the order of their ids: accounting remembers them all, the controller is up to date.

    Either may know nothing of a job, and a cluster may have no accounting.

    Raises:
        RuntimeError: neither answers, so that nothing can be said of any job.
    """
    choice = ["-j", app_id] if app_id else ["-u", subprocess.getoutput("id -un")]
    known: dict[str, _Job] = {}
    answered, said = False, ""
    for command in (
        ["sacct", "-X", "-n", "-P", "-S", "1970-01-01", "-o", "JobID,JobName,State,NodeList"],
        ["squeue", "-h", "-t", "all", "-o", "%i|%j|%T|%N"],
    ):
        answer = subprocess.run([*command, *choice], capture_output=True, text=True, check=False)
        # squeue calls it a failure that it has forgotten a job.
        answered |= answer.returncode == 0 or "Invalid job id" in answer.stderr
        said += answer.stderr
        for line in answer.stdout.splitlines():
            job = _Job(*line.split("|", 3))
            known[job.job_id] = job
    if not answered:
        raise RuntimeError(f"neither sacct nor squeue answers: {' '.join(said.split())}")
    return sorted(known.values(), key=lambda job: [int(part) for part in job.job_id.split("+")])


def create_scheduler(session_name: str, **_: object) -> SlurmScheduler:
    """What TorchX calls."""
    return SlurmScheduler(session_name)
