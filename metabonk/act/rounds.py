import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from metabonk.core.errors import FolderError, UsageError
from metabonk.core.files import claim_folder, folder_lock, write_atomic
from metabonk.core.text import parse_json

class Rounds:
    "Numbered rounds in a folder; a subclass says what one is"

    kind: ClassVar[str] = "rounds"  # what messages call them
    file: ClassVar[str] = "rounds.json"  # where finished ones are noted
    marks: ClassVar[Sequence[str]] = ()  # by what a folder is known in which no round is finished yet

    def __init__(
        self,
        folder: str | Path,  # for what comes of them
        count: int,  # how many there are to be
        about: Mapping[str, Any],  # what must be the same when they are gone on with; JSON values
    ):
        self.folder, self.count = Path(folder), count
        self.about = {"format": f"metabonk {self.kind}", "version": 1, **about}
        self.rows: list[dict[str, Any]] = []

    @property
    def table(self) -> pd.DataFrame:  # round, what `play` gave, seconds
        "What each round came to"
        return pd.DataFrame(self.rows)

    def place(
        self,
        number: int,  # of a round
    ) -> Path:  # made by whoever writes there
        "Folder of a round"
        return self.folder / f"round-{number:03d}"

    def prepare(self) -> None:
        "Take up what the rounds before have left; `rows` tells which are done"

    def play(
        self,
        number: int,  # of the round; 0 for the first
    ) -> dict[str, Any]:  # its row of the table; JSON values
        "Do one round; called again for a round that was interrupted"
        raise NotImplementedError(f"{type(self).__name__} must define play(number)")

    def tidy(
        self,
        number: int,  # of a round that has just been noted
    ) -> None:
        "Remove what nobody needs any more"

    def run(self) -> pd.DataFrame:  # the table
        "Play the rounds that are not played yet"
        claim_folder(self.folder, self.kind, (self.file, *self.marks))
        with folder_lock(self.folder, f"{self.kind} folder"):
            self.rows = self._noted()
            self.prepare()
            while len(self.rows) < self.count:
                number, begun = len(self.rows), time.monotonic()
                row = {"round": number, **self.play(number)}
                self.rows.append({**row, "seconds": round(time.monotonic() - begun, 1)})
                write_atomic(self.folder / self.file, json.dumps({**self.about, "rows": self.rows}, indent=1))
                self.tidy(number)
        return self.table

    def _noted(self) -> list[dict[str, Any]]:
        "Rows of the rounds that are done"
        path = self.folder / self.file
        if not path.exists():
            return []
        try:
            state = parse_json(path.read_text())
            rows = [dict(row) for row in state.pop("rows")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise FolderError(f"{path} can't be read: delete it to begin anew, or choose another folder") from None
        for name, value in self.about.items():
            if state.get(name) != value:
                raise UsageError(f"{path} was made with {name}={state.get(name)!r}, not {value!r}: use that, or another folder")
        return rows
