"""The verbs of the command line, loaded when they are named."""
