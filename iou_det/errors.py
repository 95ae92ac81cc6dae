"""What ends a command other than success or a bug."""

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again


class UserError(ValueError):
  """Bad input. The message is one line: what was got, what is allowed, what to do.

  The command line prints it without a traceback and exits with code 2.
  """


class Preempted(Exception):
  """The machine is about to be taken away; the state is saved. The command line exits with EXIT_PREEMPTED."""
