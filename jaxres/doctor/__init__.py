"""What is wrong here: the machine, the data, a run; numbers and words, printed by `jaxres doctor`."""
