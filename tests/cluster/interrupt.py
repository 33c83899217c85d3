#!/usr/bin/env python3
"""Runs a command on a terminal of its own and presses Ctrl-C there once a file exists, or closes the
terminal instead. Ends with the command's code, and shows what it wrote.

usage: interrupt.py (press|close) FILE COMMAND...
"""
import os
import pty
import select
import sys

how, file, command = sys.argv[1], sys.argv[2], sys.argv[3:]
child, terminal = pty.fork()
if child == 0:
    os.execvp(command[0], command)
told = False
while True:
    if not told and os.path.exists(file):
        told = True
        if how == "close":
            os.close(terminal)
            break
        os.write(terminal, b"\x03")
    if not select.select([terminal], [], [], 0.05)[0]:
        continue
    try:
        written = os.read(terminal, 4096)
    except OSError:  # nobody has the terminal any more
        break
    sys.stdout.write(written.decode(errors="replace"))
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
