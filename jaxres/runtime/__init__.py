"""The process and its devices: compiler, memory, sharding, several processes, signals."""
