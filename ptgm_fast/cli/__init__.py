"""The command line: parses and prints, never computes. Commands import what they need only when they run."""

from __future__ import annotations

import errno
import sys

from ptgm_fast.cli.streams import lenient_streams
from ptgm_fast.errors import UserError


def main() -> None:
    """The entry point `ptgm-fast`: user errors end with one message and exit code 2, a clean stop with 130."""
    with lenient_streams():
        try:
            from ptgm_fast.cli.app import app

            app()
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno is None:
                raise
            _fail(_of_the_system(error))
        except (MemoryError, RuntimeError) as error:
            # On CPUs, torch raises a RuntimeError when memory runs out.
            if not (isinstance(error, MemoryError) or "not enough memory" in str(error)):
                raise
            _fail("not enough memory; lower the batch sizes or the number of images")
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)


def _of_the_system(error: OSError) -> str:
    where = f" {error.filename!r}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return (
            f"cannot write{where}: {error.strerror}. Everything written before is intact; "
            "free some space (or choose another --out) and continue: train with --resume, synthesize with the same command"
        )
    return f"cannot use{where}: {error.strerror}"


def _fail(message: str) -> None:
    print(f"ptgm-fast: {message}", file=sys.stderr)
    sys.exit(2)
