"""Files, memory, threads and devices: used by every stage."""
