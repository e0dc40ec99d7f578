"""A day with a GPU (`make gpu`): all that can only be tried on one, in minutes, into one file."""
