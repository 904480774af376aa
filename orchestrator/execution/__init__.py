"""All of Ray: the driver, Tune's trials, the cluster's nodes."""

import os

# Tune reads these when it is imported: no result files (the ledger has them), no handler of Ctrl-C (`driver` has one).
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
