"""One file a word of `jaxres <tool>`: arguments and printing."""
