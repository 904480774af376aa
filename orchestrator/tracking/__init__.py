"""MLflow shows what the ledger holds."""
