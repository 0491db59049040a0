#!/usr/bin/env bash
# One node of several: torchrun.sh CONFIG NODE NODES FIRST_NODE_ADDRESS [RANKS_A_NODE]
# Start it on every node with its own number, 0 .. NODES-1. A lost node ends all of them; start all again to go on.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n 2,3p "$0"
    exit 2
fi
config=$1 node=$2 nodes=$3 address=$4
ranks=${5:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
exec torchrun --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$ranks" --max-restarts 0 \
    --rdzv-id compact --rdzv-backend c10d --rdzv-endpoint "$address:29500" \
    --no-python compact run "$config"
