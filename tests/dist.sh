#!/bin/sh
# What an installed wheel must do in an empty folder: `make dist` calls this with the folder of the environment's commands.
set -eu
bin=$1
sources=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

echo "every file of the packages is installed"
installed=$("$bin/python" -P -c 'import pathlib, softcotpp; print(pathlib.Path(softcotpp.__file__).parents[1])')
for room in softcotpp contrastive scaling sweeps analysis; do
    (cd "$sources" && find "$room" -type f ! -name '*.py[co]') | while read -r file; do
        cmp -s "$sources/$file" "$installed/$file" || { echo "not in the wheel: $file" >&2; exit 1; }
    done
done

set -x
"$bin/scale-run" --version
"$bin/scale-run" --latent-paths 2 --samples 2 --limit 3 --out runs/softcot++
"$bin/scale-run" --method cot --samples 4 --limit 3 --out runs/cot
"$bin/scale-report" runs/softcot++ runs/cot
test -s report/report.html
"$bin/scale-run" --task countdown --prompt paper --dry-run
"$bin/scale-sweep" plan scaling-curve --scale small
