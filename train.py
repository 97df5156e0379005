"""Compares a net with batch normalization to the same net without; `--help` lists the flags."""

import sys

from bn_keras.commands.train import script

if __name__ == "__main__":
    sys.exit(script())
