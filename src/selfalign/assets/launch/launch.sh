#!/bin/sh
# One node: sh launch.sh. Several nodes: on each of them, in a shared folder,
#   NODES=2 NODE_RANK=0 MASTER_ADDR=<the first node's address> sh launch.sh           (Slurm: sbatch train.slurm)
# CPU=1 tests a ddp folder on CPU cores (gloo). Arguments go to train.py: --base, --out, --resume.
set -eu
here=$(dirname "$0")
if [ "${CPU:-0}" = 1 ]; then export ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES=; fi
exec accelerate launch --config_file "$here/accelerate.yaml" \
  --num_machines "${NODES:-@NODES@}" --machine_rank "${NODE_RANK:-0}" \
  --num_processes "$((${NODES:-@NODES@} * ${GPUS:-@GPUS@}))" \
  --main_process_ip "${MASTER_ADDR:-127.0.0.1}" --main_process_port "${MASTER_PORT:-29500}" \
  --rdzv_backend "${RDZV_BACKEND:-static}" --rdzv_conf "${RDZV_CONF:-}" \
  "$here/train.py" "$@"
