"""The error of data that cannot be used."""

from bn_keras.texts import plain


class DataError(ValueError):
    """Data that cannot be used; the message names the file or setting and the remedy.

    The message is made one printable line: it may quote a file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))
