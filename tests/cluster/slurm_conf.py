"""The configuration files of the test cluster: four nodes on one machine, everything inside one folder."""

import random
import socket
from pathlib import Path

CLUSTER = "hpcspec"
NODES = tuple(f"node{i}" for i in range(1, 5))
CPUS_PER_NODE = 4
GPUS_PER_NODE = 2
MEMORY_MB = 8000

_SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its old credential has expired: 5 s is the least that Slurm accepts
AuthInfo=socket={root}/munge/socket,cred_expire=5

StateSaveLocation={root}/state
SlurmctldPidFile={root}/pid/slurmctld.slurm
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdPidFile={root}/pid/%n.slurm
SlurmdLogFile={root}/log/%n.log
SlurmdSpoolDir={root}/spool/%n
# PMIx keeps its sockets here: a folder per node, or the nodes take each other's
TmpFS={root}/tmp/%n

# more CPUs than the machine has, and neither cgroups nor systemd
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
PropagateResourceLimits=NONE

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
MaxArraySize=1001

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
KillWait=5
MinJobAge=600
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=100 PreemptMode=OFF
"""

_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
# for this connection the "password" is the munge socket
AccountingStoragePass={root}/munge/socket
AccountingStorageTRES=gres/gpu
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/pid/slurmdbd.slurm
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def write(root: Path, accounting: bool) -> None:
    """Write slurm.conf, gres.conf, slurmdbd.conf (with `accounting`) and the nodes' hosts file into `root`/etc.

    The ports are free ones, chosen now and kept in these files.
    """
    host = socket.gethostname().split(".")[0]
    ctld_port, dbd_port, *node_ports = _free_ports(2 + len(NODES))
    shape = (
        f"NodeAddr=127.0.0.1 CPUs={CPUS_PER_NODE} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS_PER_NODE} "
        f"ThreadsPerCore=1 RealMemory={MEMORY_MB} Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN"
    )
    nodes = "\n".join(f"NodeName={node} Port={port} {shape}" for node, port in zip(NODES, node_ports, strict=True))
    etc = root / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "slurm.conf").write_text(
        _SLURM_CONF.format(
            cluster=CLUSTER,
            host=host,
            ctld_port=ctld_port,
            root=root,
            accounting=_ACCOUNTING.format(root=root, port=dbd_port) if accounting else "",
            nodes=nodes,
        )
    )
    # Slurm counts GPUs and sets CUDA_VISIBLE_DEVICES only where gres.conf names device files
    (etc / "gres.conf").write_text(f"NodeName=node[1-{len(NODES)}] Name=gpu File={root}/dev/gpu[0-{GPUS_PER_NODE - 1}]\n")
    if accounting:
        dbd = etc / "slurmdbd.conf"
        dbd.touch(mode=0o600)
        dbd.write_text(_SLURMDBD_CONF.format(root=root, host=host, port=dbd_port))
    hosts = Path("/etc/hosts").read_text().rstrip("\n")
    (etc / "hosts").write_text("\n".join([hosts, *(f"127.0.0.1 {node}" for node in NODES)]) + "\n")


def _free_ports(count: int) -> list[int]:
    """`count` TCP ports nobody listens on, below the range from which the kernel gives ports to outgoing connections."""
    ports: list[int] = []
    for port in random.sample(range(12000, 32000), 2000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"fewer than {count} free TCP ports")
