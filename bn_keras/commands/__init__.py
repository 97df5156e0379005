"""The verbs of `bn-keras`, one a file: a function `(arguments) -> exit status`, registered by name.

    @COMMANDS.register("list", usage="list", does="known studies, models, …")
    def main(arguments): ...

`flags` and `console` are this shelf's tools.
"""
