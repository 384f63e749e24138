"""Files, memory, threads and devices: what every stage uses and no stage owns."""
