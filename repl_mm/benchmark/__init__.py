"""What a step costs, measured, and what shows it."""
