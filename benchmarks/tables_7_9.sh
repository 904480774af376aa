#!/usr/bin/env bash
# Tables 7-9 on the open sets, preset small, one seed, 1,200 iterations over all tasks in every row, two units at a time.
# The report goes to OUT/report; the ledger, and with it all checkpoints, to OUT/storage.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: tables_7_9.sh OUT UIPRMD UTD_MHAD JHMDB (folders of prepared clip sets)}
python -m orchestrator.ablate tables_7_9 --preset small --seeds 1 --set steps=1200 --max-concurrent 2 --address local \
  --data "uiprmd=${2:?}" --data "utd_mhad=${3:?}" --data "jhmdb=${4:?}" --storage "$out/storage" --out "$out/report"
