#!/bin/bash

# Parameters
#SBATCH --account=def-me
#SBATCH --array=0-4,7%256
#SBATCH --chdir='/scratch/my runs'
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name=relaxation.1a2b3c4d-pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/scratch/my runs/slurm/0a1b/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
module load cuda
export PYTHONPATH='/scratch/my runs/code/ff00'${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK=8

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/my runs/slurm/0a1b/%A_%a_%t_log.out' --kill-on-bad-exit=1 /env/bin/python -m launch.job --batch '/scratch/my runs/slurm/0a1b'


# teardown
code=$?
if [ "$code" -ne 0 ]; then /env/bin/python -m launch.job.requeue '/scratch/my runs/slurm/0a1b' "$code"; code=$?; fi
exit "$code"