"""Where files lie: folders, object stores, leases on them."""
