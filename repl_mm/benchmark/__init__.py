"""What a step costs, measured, and what shows it."""

# Ways to compute a step that the tools offer; joined by +.
BACKENDS = ('fp32', 'amp', 'bf16', 'channels-last', 'compile')
