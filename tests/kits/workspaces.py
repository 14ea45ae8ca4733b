"""Workspaces that are registered."""

from __future__ import annotations

from mandrake_sessions import WorkspaceManager
from mandrake_sessions.aio import AsyncWorkspaceManager


def id_of(workspace: WorkspaceManager | AsyncWorkspaceManager) -> str:
    """Return the id of a workspace that a registry lists; one without a registry has none."""
    assert workspace.id is not None
    return workspace.id
