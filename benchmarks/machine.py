"""The line that every benchmark begins with: what it was measured on."""

import os
import platform
from importlib.metadata import version


def describe(*packages: str) -> str:
    """Processor, cores, load, Python, and the versions of the packages."""
    parts = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}",
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in packages),
    ]
    return "; ".join(parts)
