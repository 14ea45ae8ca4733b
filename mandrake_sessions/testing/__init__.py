"""Tools for testing a host: a disk that fails, power that is cut, a process that is killed.

The library proves its own promises with them (docs/guarantees.md).
"""

from mandrake_sessions.testing.crash import CrashReport, CrashRunner, Life, Moment, WorkloadError
from mandrake_sessions.testing.faults import Fault, FaultVFS, Injection, failure
from mandrake_sessions.testing.power import PowerCut, PowerLossVFS
from mandrake_sessions.testing.workload import acknowledge, phase

__all__ = [
    "CrashReport",
    "CrashRunner",
    "Fault",
    "FaultVFS",
    "Injection",
    "Life",
    "Moment",
    "PowerCut",
    "PowerLossVFS",
    "WorkloadError",
    "acknowledge",
    "failure",
    "phase",
]
