"""A study behind the page: looked at when somebody asks, added up in a thread when its results have changed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.report import result_as_json
from bitworth.report.document import as_text
from bitworth.report.page import render_page
from bitworth.types import StudyResult
from bitworth.view.folder import Folder, Standing
from bitworth.view.page import Shown

_LOOK_S = 0.5
"""Least time between two looks, however many ask."""
_REST = 4.0
"""Adding up rests for so many times as long as it took, so that a large study that runs does not keep a core busy."""
PATIENCE_S = 1.5
"""How long a page waits for figures before it comes without them."""


class Watched:
    """One study; nothing happens while nobody asks.

    Raises (when made):
        BitworthError: the folder holds no study.
    """

    def __init__(self, place: int, root: Path) -> None:
        self.place, self.root = place, root
        self._folder = Folder(root)
        self._standing: Standing = self._folder.look()
        self._looked = 0.0
        self._looking = asyncio.Lock()
        self._adding: asyncio.Task[None] | None = None
        self._result: StudyResult | None = None
        self._version = self._tried = 0
        self._rested = 0.0
        self._problem: str | None = None
        self._page: tuple[int, str] = (0, "")

    async def shown(self, *, patience_s: float = 0.0) -> Shown:
        """The study now; waits so long for figures that are being added up."""
        await self._look()
        if self._adding is not None and self._result is None and patience_s:
            await asyncio.wait([self._adding], timeout=patience_s)
        return Shown(
            place=self.place,
            root=self.root,
            standing=self._standing,
            result=self._result,
            version=self._version,
            reading=self._adding is not None,
            problem=self._problem,
        )

    async def result(self) -> StudyResult:
        """What the study says, as last added up; the first time, this waits for it.

        Raises:
            BitworthError: why it says nothing.
        """
        await self._look()
        while self._result is None and self._adding is not None:
            await asyncio.wait([self._adding])
        if self._result is None:
            raise BitworthError(self._problem or f"{self.root} has not been read yet; try again.")
        return self._result

    async def report(self) -> str:
        """The study's whole report, drawn once a version."""
        result, version = await self.result(), self._version
        if self._page[0] != version:
            self._page = (version, await asyncio.to_thread(render_page, result))
        return self._page[1]

    async def document(self) -> str:
        """The study's recommendation.json."""
        return as_text(result_as_json(await self.result()))

    async def _look(self) -> None:
        async with self._looking:
            if time.monotonic() - self._looked < _LOOK_S:
                return
            try:
                self._standing = await asyncio.to_thread(self._folder.look)
            except BitworthError as error:
                self._problem = str(error)
            self._looked = time.monotonic()
            if self._adding is None and self._standing.version != self._tried and self._looked >= self._rested:
                self._adding = asyncio.create_task(self._add_up(self._standing.version))

    async def _add_up(self, version: int) -> None:
        began = time.monotonic()
        self._tried = version
        try:
            result = await asyncio.to_thread(self._folder.result)
            self._result, self._version, self._problem = result, version, None
        except BitworthError as error:
            self._problem = str(error)
        except Exception as error:  # a fault in one study's files must not take the others' page down
            self._problem = f"The results in {self.root} cannot be added up ({type(error).__name__}: {error})."
        self._rested = time.monotonic() + _REST * (time.monotonic() - began)
        self._adding = None
