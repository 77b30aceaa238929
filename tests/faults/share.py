"""How much of the suite is tried: all by default; ``FAULTS_PART=4`` takes a quarter of what it enumerates."""

import os

PART = int(os.environ.get('FAULTS_PART', 1))
