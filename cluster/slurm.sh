#!/bin/bash
# A Ray cluster inside a SLURM job, and a study on it. Goes on in the next job when the time is up.
#
#   bash -n cluster/slurm.sh; python -m cluster.check cluster/slurm.sh       reads this file, starts nothing
#   sbatch cluster/slurm.sh tables_7_9 --preset paper --gpus-per-unit 8 --micro-batch auto --storage /shared/ups/ablations
#
# To be changed by you: partition, account, nodes, GPUs and time. The environment (~/.venv, made as in cluster/README.md),
# the project and the storage lie in folders that all nodes mount.
#SBATCH --job-name=ups
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Two minutes before the end, to this script and not to its steps (B:).
#SBATCH --signal=B:USR1@120
set -euo pipefail

source ~/.venv/bin/activate
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

# Units look for this file; its folder is on every node. A requeued job has the same number, hence the count.
export UPS_PREEMPTION_FILE="$PWD/.preempted-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
export RAY_AUTH_MODE=token  # ~/.ray/auth_token, made once: ray get-auth-token --generate
export RAY_health_check_initial_delay_ms=5000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3

# srun takes no --cpus-per-task from the job since SLURM 22.05.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Ports of its own, for jobs that share a node. Ray's sockets lie in a folder whose path must be short.
port=$((20000 + SLURM_JOB_ID % 10000))
temporary="/tmp/ray-$SLURM_JOB_ID"
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head_node=${nodes[0]}
# All addresses of the node, loopback left out; the first is IPv4. Where that is the wrong network, write another here.
addresses=($(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --all-ip-addresses))
head_address=${addresses[0]}

# Every node: its wheel has kernels for its GPUs, or the job ends here with the way out.
srun --ntasks="$SLURM_NNODES" python -m cluster.node_check

srun --nodes=1 --ntasks=1 --nodelist="$head_node" \
  ray start --head --block --node-ip-address="$head_address" --port="$port" --dashboard-host=127.0.0.1 \
  --dashboard-port="$((port + 1))" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$temporary" &
# Only while this answers may workers be started, and units.
for _ in $(seq 60); do
  ray status --address "$head_address:$port" > /dev/null 2>&1 && break
  sleep 2
done
ray status --address "$head_address:$port"
if (( SLURM_NNODES > 1 )); then
  srun --nodes="$((SLURM_NNODES - 1))" --ntasks="$((SLURM_NNODES - 1))" --exclude="$head_node" \
    ray start --block --address="$head_address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

# Units save a checkpoint when the file appears; the driver ends, and the same command goes on in the requeued job.
leave() {
  echo "time is nearly up: units save and end"
  touch "$UPS_PREEMPTION_FILE"
  kill -TERM "$driver" 2> /dev/null || true
  wait "$driver" || true
  rm -f "$UPS_PREEMPTION_FILE"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap leave USR1

python -m orchestrator.ablate "$@" --address "$head_address:$port" &
driver=$!
# `wait` returns when a signal has been handled, too: `leave` does not come back here.
status=0
wait "$driver" || status=$?
exit "$status"  # Ends the steps above.
