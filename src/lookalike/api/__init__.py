"""The verbs behind the commands: embed, index, search, evaluate, submit, export."""
