"""Prints the findings of a health check, and what a user can do about them."""

from __future__ import annotations

from mandrake_sessions.cli.output import (
    document_of,
    print_fields,
    print_json,
    print_table,
    print_text,
)
from mandrake_sessions.engine.health import HealthReport, HealthStatus


def print_report(report: HealthReport, *, as_json: bool) -> None:
    """Print a report with its advice.

    Args:
        report: the findings.
        as_json: whether to print JSON.
    """
    if as_json:
        print_json({**document_of(report), "status": report.status, "is_usable": report.is_usable})
        return
    print_table(
        ("check", "status", "detail"),
        [(each.name, each.status, each.detail) for each in report.checks],
    )
    print_text()
    print_fields([("database", report.path), ("status", report.status), ("level", report.level)])
    advised = [each for each in report.checks if each.status is not HealthStatus.OK]
    if advised:
        print_text("\nWhat to do")
        print_fields([(each.name, each.advice) for each in advised])
