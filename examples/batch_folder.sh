#!/bin/sh
# Maps of a folder of images, with two processes: sh examples/batch_folder.sh
# Writes photos/ (copies of the example photo) and maps/. The same command continues an interrupted job.
set -e
photo="$(dirname "$0")/coffee.jpg"
mkdir -p photos/more
for name in photos/a.jpg photos/b.jpg photos/more/c.jpg; do cp "$photo" "$name"; done
controlnet-ext preprocess canny,lineart_standard photos -o maps/ --recursive --jobs 2 --resolution 256 --canny.low 50
ls maps maps/more
