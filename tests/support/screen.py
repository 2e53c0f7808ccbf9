"""A terminal that remembers what stands on it: a pseudo-terminal, read by an emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from typing import TextIO

import pyte

LINES = 400  # enough that nothing scrolls away
WORD = re.compile(r"(?=.{8} \S)([a-z]+(?: \d+)?) *(?<=^.{8}) |(epoch) +\d+/\d+  ")
AGAIN = re.compile(r"^(?! #).*\S *((model|freeze|data|cache|train|folder|watch) {3,}\S|epoch +\d+/\d+  )")
BAR = re.compile(r"[━╸╺]|\d+/\d+ (batches|epochs)|-:--:--")


class Terminal:
    """What has been drawn at the end, and all that ever was: `drawn`, the bytes as they came.

    file: what to write to.
    """

    def __init__(self, columns: int) -> None:
        self.screen = pyte.Screen(columns, LINES)
        self.columns, self.drawn = columns, b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.slave = slave
        self.file: TextIO = open(slave, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream = pyte.ByteStream(self.screen)
        while True:
            try:
                read = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                return
            if not read:
                return
            self.drawn += read
            stream.feed(read)

    def end(self) -> list[str]:
        """Close it; the lines that stand on it, without the empty ones below and between."""
        self.file.flush()
        os.close(self.slave)
        self._reader.join(30)
        os.close(self._master)
        return [line.rstrip() for line in self.screen.display if line.strip()]


def words(lines: list[str]) -> list[str]:
    """The words that begin lines, in their order: `model`, `freeze`, …, and `epoch` of an epoch's."""
    return [found[1] or found[2] for line in lines if (found := WORD.match(line))]


def mixed(lines: list[str]) -> list[str]:
    """Lines in which there is a piece of a bar, or in the midst of which another begins."""
    return [line for line in lines if BAR.search(line) or AGAIN.search(line)]
