#!/bin/bash
# sbatch configs/accelerate/slurm.sh pipelines/stage1.py --config configs/imagenet256.yaml
# One task a GPU, and no launcher between Slurm and the tasks, so that the signal reaches them: 90 seconds
# before its time is over, or when it is preempted, the job step saves, ends with code 75 and is queued again.
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
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}

# --wait: if a task is killed, the others, which may wait for it, are ended after 60 seconds.
srun --wait=60 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python "$@"' _ "$@"
code=$?
if [ $code -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
