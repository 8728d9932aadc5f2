#!/bin/sh
# A few steps of training a ControlNet for the embedded model: sh examples/train.sh
# Writes canny.safetensors, and its checkpoint and log to canny.safetensors.training/. Real training takes thousands of
# steps; the same command continues where it was stopped.
set -e
controlnet-ext train --model embedded --data scenes:16 --size 64x64 --map canny -o canny.safetensors --steps 2 --batch 16 --every 2 "$@"
controlnet-ext inspect canny.safetensors
