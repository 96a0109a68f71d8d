"""Is this answer right? Rules (graders), and a pool of processes in which no answer can hang or kill the program."""
