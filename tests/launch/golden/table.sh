#!/bin/bash

# Parameters
#SBATCH --chdir='/scratch/my runs'
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterany:12:13
#SBATCH --job-name=relaxation.1a2b3c4d-pretrain
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=FAIL
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/scratch/my runs/slurm/0a1b/%j_0_log.out'
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
export PYTHONPATH='/scratch/my runs/code/ff00'${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK=2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/my runs/slurm/0a1b/%j_%t_log.out' --kill-on-bad-exit=1 /env/bin/python -m launch.job --batch '/scratch/my runs/slurm/0a1b'
