#!/bin/bash
# sbatch configs/accelerate/slurm.sh pipelines/stage1.py --config configs/imagenet256.yaml
# One task a GPU, and no launcher between Slurm and the tasks, so that the signal reaches them: 90 seconds
# before its time is over, or when it is preempted, the job step saves, ends with code 75 and is queued again.
# A job with a task that was killed is queued again, too, unless it has been queued again MAX_RESTARTS times (10).
# For one node: --nodes=1.
#SBATCH --job-name=vqvae2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --gpu-bind=none
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}  # another one for each job of a node

# --wait: if a task is killed, the others, which may wait for it, get SIGTERM after 30 seconds, and SIGKILL after
# KillWait of slurm.conf, 30 seconds by default. --cpus-per-task: srun of Slurm 22.05 to 23.02 does not take it over
# from sbatch.
srun --wait=30 ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python "$@"' _ "$@"
code=$?
# srun ends with the highest code of its tasks: 75 was stopped, 130 interrupted from the keyboard, and more than 130
# ended by a signal, such as 137 by SIGKILL. SLURM_RESTART_COUNT counts all restarts of the job, not set at first.
if [ $code -eq 75 ] || { [ $code -gt 130 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-10}" ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
