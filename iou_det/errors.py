"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
  """Bad input. The message is one line: what was got, what is allowed, what to do.

  The command line prints it without a traceback and exits with code 2.
  """
