"""Values that other programs gave, and the scripts that asked them."""
