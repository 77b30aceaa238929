"""Read-only measurements: each a function that returns plain numbers, and what shows them."""
