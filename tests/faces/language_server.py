"""A client of pyright's language server, which asks what editors ask."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

LANGUAGE_SERVER = Path(sys.executable).with_name("pyright-langserver")


class LanguageServer:
    """A running server, for one ``with`` block.

    Args:
        folder: the project that it looks at.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [LANGUAGE_SERVER, "--stdio"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        root = self._folder.as_uri()
        self.ask(
            "initialize",
            {
                "processId": None,
                "rootUri": root,
                "capabilities": {
                    "textDocument": {"hover": {"contentFormat": ["plaintext"]}},
                },
                "workspaceFolders": [{"uri": root, "name": "project"}],
            },
        )
        self._send({"method": "initialized", "params": {}})
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("shutdown", None)
        self._send({"method": "exit"})
        self._process.communicate()

    def open(self, path: Path) -> None:
        """Have it read a Python file as an editor shows it."""
        document = {
            "uri": path.as_uri(),
            "languageId": "python",
            "version": 1,
            "text": path.read_text("utf-8"),
        }
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})

    def ask(self, method: str, params: Any) -> Any:
        """Send a request and return the result of its answer."""
        self._asked += 1
        self._send({"id": self._asked, "method": method, "params": params})
        while True:
            message = self._receive()
            if "method" in message:
                if "id" in message:
                    self._send({"id": message["id"], "result": self._answer(message)})
            elif message.get("id") == self._asked:
                assert "error" not in message, message
                return message["result"]

    def _answer(self, message: dict[str, Any]) -> Any:
        """Return what an editor without settings answers."""
        if message["method"] == "workspace/configuration":
            return [None for _ in message["params"]["items"]]
        return None

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        length = 0
        while line := self._process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            if name == b"Content-Length":
                length = int(value)
        assert length, "the language server has ended"
        return json.loads(self._process.stdout.read(length))
