"""How a fine-tune should be run on a machine: memory, speed and every argument, from configs and statistics. Light."""
