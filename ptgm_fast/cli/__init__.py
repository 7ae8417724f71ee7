"""The command line: parses, prints, never computes. Commands import what they need when they run."""

from __future__ import annotations

import errno
import sys

from ptgm_fast.errors import UserError


def main() -> None:
    """The entry point `ptgm-fast`: user's mistakes end with one message and exit code 2, a clean stop with 130."""
    from ptgm_fast.cli.app import app

    try:
        app()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" {error.filename!r}" if error.filename else ""
        _fail(
            f"cannot write{where}: {error.strerror}. What was written before is whole; "
            "make room (or choose another --out) and continue: train with --resume, synthesize with the same command"
        )
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"ptgm-fast: {message}", file=sys.stderr)
    sys.exit(2)
