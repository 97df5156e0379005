"""Compares a net with batch normalization to the same net without; `--help` lists the flags."""

import sys

from bn_keras.cli import main

if __name__ == "__main__":
    sys.exit(main())
