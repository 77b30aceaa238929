"""How much of the suite is tried: all by default; ``FAULTS_PART=3`` takes a third of what it enumerates."""

import os

PART = int(os.environ.get('FAULTS_PART', 1))
