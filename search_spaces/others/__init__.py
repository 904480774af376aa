"""Studies of other networks than UPS, and of UPS beside them."""
