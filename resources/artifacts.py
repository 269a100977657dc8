"""tw://datasets/{id}, tw://adapters/{id} and tw://exports/{id}: the stored documents, and a dataset's report page."""

import json
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from tunewright.pipeline import artifacts
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.workspace import Workspace


def _document(workspace: Workspace, artifact_id: str, kind: str) -> str:
    try:
        row = workspace.store.artifact(artifact_id, kind)
    except TunewrightError as error:
        raise ResourceNotFoundError(str(error)) from error
    return json.dumps({"id": row["id"], "name": row["name"], "parents": row["parents"], **row["document"]}, indent=2)


def register(server: MCPServer[Any], workspace: Workspace) -> None:
    """Adds these resources to the server."""

    @server.resource("tw://datasets/{dataset_id}", mime_type="application/json", description="A dataset's report.")
    def dataset_resource(dataset_id: str) -> str:
        return _document(workspace, dataset_id, "dataset")

    @server.resource(
        "tw://datasets/{dataset_id}/report.html", mime_type="text/html", description="A dataset's report as a page."
    )
    def dataset_page(dataset_id: str) -> str:
        try:
            row = artifacts.find(workspace, dataset_id, "dataset")
        except TunewrightError as error:
            raise ResourceNotFoundError(str(error)) from error
        return (Path(row["document"]["path"]) / "report.html").read_text(encoding="utf-8")

    @server.resource("tw://adapters/{adapter_id}", mime_type="application/json", description="An adapter's document.")
    def adapter_resource(adapter_id: str) -> str:
        return _document(workspace, adapter_id, "adapter")

    @server.resource(
        "tw://exports/{export_id}", mime_type="application/json", description="An export's files and parity."
    )
    def export_resource(export_id: str) -> str:
        return _document(workspace, export_id, "export")
