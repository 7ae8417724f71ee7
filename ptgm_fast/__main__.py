"""`python -m ptgm_fast` is `ptgm-fast`."""

from ptgm_fast.cli import main

if __name__ == "__main__":
    main()
