#!/bin/sh
# A few minutes of training: the embedded model's ControlNet, which reads canny edges, learns to read line drawings.
# sh examples/train.sh
# Writes lineart.safetensors with its model card; checkpoint, log and the report lie in lineart.safetensors.training/.
# The same command continues where it was stopped.
set -e
controlnet-ext train --model embedded --control embedded/canny --data scenes:2000 --map lineart_standard \
    -o lineart.safetensors --steps 120 --batch 8 --rate 5e-4 --warm-up 20 --every 20 --draws 32 --stop gain:3 "$@"
controlnet-ext inspect lineart.safetensors
echo "Open lineart.safetensors.training/report.html in a browser."
