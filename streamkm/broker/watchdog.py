"""Parent process of the broker's JVM: ends the JVM when the process that started it has ended.

Run as a script by :class:`streamkm.broker.LocalBroker` (standard library only, so that it starts in milliseconds)::

    python -I -S watchdog.py PARENT_PID REMOVE_DIR COMMAND...

``PR_SET_PDEATHSIG`` for the JVM alone is not enough: the signal is sent when the *thread* that forked ends, so a broker
started from a worker thread would die with the thread. This process has one thread. It watches its parent's id, and
sets the signal for the JVM, so that the JVM cannot outlive it either.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
CHECK_SECONDS = 0.2
GRACE_SECONDS = 10.0


def _die_with_parent(parent: int) -> None:
    """Run in the child before exec: request SIGKILL at the parent's end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The watchdog's signal mask would be inherited, and the JVM would never receive SIGTERM.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})
    if os.getppid() != parent:
        os._exit(1)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Terminate the child, and kill it after `GRACE_SECONDS`."""
    child.terminate()
    child.send_signal(signal.SIGCONT)  # a stopped process does not receive SIGTERM
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main(argv: list[str]) -> int:
    """Run the command until it ends or the parent has ended; returns its exit status as a shell would."""
    parent, remove, command = int(argv[0]), argv[1], argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    own = os.getpid()
    # stdout is the pipe to the parent, for the id alone; the JVM's output goes to our stderr, a file.
    child = subprocess.Popen(  # noqa: S603 - the command is LocalBroker's own
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        preexec_fn=lambda: _die_with_parent(own),  # noqa: PLW1509 - this process has one thread
    )
    os.write(1, f"{child.pid}\n".encode())
    os.close(1)
    while child.poll() is None and os.getppid() == parent:
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, CHECK_SECONDS)
        if got is not None and got.si_signo == signal.SIGTERM:
            break
    if child.poll() is None:
        _end(child)
    if remove and os.getppid() != parent:
        shutil.rmtree(remove, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
