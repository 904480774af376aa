"""Plans, runs, records and reports ablation studies: Ray Tune schedules, MLflow mirrors, the ledger decides."""

from orchestrator import process

process.start()
