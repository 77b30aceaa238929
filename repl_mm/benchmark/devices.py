"""What a GPU can do, as its maker states it, and the share of it that a training step gets."""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from repl_mm.engine.files import require_regular


@dataclass(frozen=True)
class Device:
    """Figures of a device; all are above 0.

    Attributes:
        fp32: Dense TFLOPS of matrix products, which torch leaves in FP32.
        tf32: The same of convolutions, for which torch lets cuDNN take TF32.
        bandwidth: Of the memory, in GB/s.
        bf16: The TFLOPS of mixed precision, or None where it is not to be predicted.
        compute_efficiency: Share of the TFLOPS that is reached, up to 1.
        bandwidth_efficiency: Share of the bandwidth that is reached, up to 1.
        launch_us: Time to launch an operator in microseconds.
    """

    fp32: float
    tf32: float
    bandwidth: float
    bf16: float | None = None
    compute_efficiency: float = 0.75
    bandwidth_efficiency: float = 0.85
    launch_us: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == 'bf16' and value is None:
                continue
            most = 1 if field.name.endswith('efficiency') else 1e6
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
                raise ValueError(f'{field.name} of a device is a number above 0 and at most {most:g}, got {value!r}')


# The makers' data sheets, SXM cards: A100 80 GB and H100 80 GB. The efficiencies and the launch time are assumptions.
DEVICES = {
    'a100': Device(fp32=19.5, tf32=156, bf16=312, bandwidth=2039),
    'h100': Device(fp32=67, tf32=495, bf16=990, bandwidth=3350),
}


def find_device(name: str) -> Device:
    """The figures of a device.

    Args:
        name: A key of ``DEVICES``, or a ``.json`` file with ``fp32``, ``tf32``, ``bandwidth`` and whatever else of
            :class:`Device` is not as assumed there.

    Raises:
        ValueError: A name that is not in ``DEVICES``, or a file with a figure that is missing, unknown or absurd.
    """
    if not name.endswith('.json'):
        if name not in DEVICES:
            raise ValueError(f'unknown device {name!r}: choose out of {", ".join(DEVICES)}, or give a .json file')
        return DEVICES[name]
    require_regular(name)
    try:
        given = json.loads(Path(name).read_text(encoding='utf-8'))
        if not isinstance(given, dict):
            raise ValueError(f'it is a table of figures by name, got {type(given).__name__}')
        needed = {field.name for field in fields(Device) if field.default is MISSING}
        known = [field.name for field in fields(Device)]
        if missing := sorted(needed - given.keys()):
            raise ValueError(f'{", ".join(missing)} is missing')
        if unknown := sorted(given.keys() - set(known)):
            raise ValueError(f'unknown {", ".join(unknown)}: choose out of {", ".join(known)}')
        return Device(**given)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{name} does not describe a device: {error}') from None
