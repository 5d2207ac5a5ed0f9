#!/bin/bash

# Parameters
#SBATCH --array=0%256
#SBATCH --chdir='/scratch/my runs'
#SBATCH --cpus-per-task=24
#SBATCH --gpus-per-node=4
#SBATCH --job-name=relaxation.1a2b3c4d-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/scratch/my runs/slurm/0a1b/%A_%a_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
export NCCL_SOCKET_IFNAME=ib0
export PYTHONPATH='/scratch/my runs/code/ff00'${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export TMPDIR="$SLURM_TMPDIR"
export SRUN_CPUS_PER_TASK=24

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/my runs/slurm/0a1b/%A_%a_%t_log.out' --kill-on-bad-exit=1 /env/bin/python -m launch.job --batch '/scratch/my runs/slurm/0a1b'
